"""What a PEFT method must fulfil, on made-up backbone shapes and inside tiny real backbones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from panda_fusion.errors import OptionError
from panda_fusion.method import Options
from panda_fusion.peft_method import PEFTMethod
from panda_fusion.testing.backbones import MODEL_TYPES
from panda_fusion.testing.check import Check, require

if TYPE_CHECKING:
    import torch

    from panda_fusion.backbone import Backbone, BackboneShape
    from panda_fusion.injection import Injection, Rows

PACK = 3


def check_peft_method(
    method_type: type[PEFTMethod],
    options: Options | None = None,
    name: str = "checked",
    models: Sequence[str] = MODEL_TYPES,
) -> Iterator[Check]:
    """Checks of a PEFT method.

    Args:
        method_type: the class.
        options: its options; None takes the defaults.
        name: what the instance is called.
        models: model types of the tiny backbones (`panda_fusion.testing.MODEL_TYPES`); empty: none.
    """
    from panda_fusion.testing.samples import SHAPES

    method = method_type(options)
    method.name = name
    yield Check("virtual_tokens is a number of at least 0", lambda: _virtual_tokens(method))
    for words, shape in SHAPES.items():
        for what, run in _SHAPE_CHECKS.items():
            yield Check(f"{words}: {what}", lambda run=run, shape=shape: run(method, shape))  # type: ignore[misc]
    for model in models:
        for what, inside in _BACKBONE_CHECKS.items():
            yield Check(f"{model}: {what}", lambda run=inside, model=model: _inside(run, method, model))  # type: ignore[misc]


# On a shape alone


def _virtual_tokens(method: PEFTMethod) -> None:
    found = method.virtual_tokens()
    require(isinstance(found, int) and found >= 0, f"virtual_tokens() is {found!r}; expected 0, 1, ...")


def _create(method: PEFTMethod, shape: BackboneShape) -> None:
    import torch

    state = torch.get_rng_state()
    made = method.create(shape, torch.Generator().manual_seed(1))
    require(made, "create made no tensor, so nothing would be trained")
    for name, tensor in made.items():
        require(tensor.dtype == torch.float32, f"tensor {name!r} is {tensor.dtype}; expected float32")
        require(tensor.device.type == "cpu", f"tensor {name!r} is on {tensor.device}; expected the CPU")
        require(not tensor.requires_grad, f"tensor {name!r} requires a gradient; the trainer decides that")
        require(bool(tensor.isfinite().all()), f"tensor {name!r} is not finite")
    again = method.create(shape, torch.Generator().manual_seed(1))
    require(
        set(made) == set(again) and all(torch.equal(made[name], again[name]) for name in made),
        "two generators of one seed gave different tensors; draw from the generator only",
    )
    require(torch.equal(state, torch.get_rng_state()), "create drew from torch's global random state")


def _injected(method: PEFTMethod, shape: BackboneShape) -> None:
    from panda_fusion.testing.samples import perturbed

    for pack in (1, PACK):
        injection = method.inject(perturbed(method, shape, pack), shape)
        length = injection.prefix_length
        if injection.key is not None or injection.value is not None:
            expected = (pack, shape.layers, length, shape.kv_heads, shape.head_dim)
            for name, tensor in (("key", injection.key), ("value", injection.value)):
                require(tensor is not None, f"{name} is missing beside the other one of key and value")
                assert tensor is not None
                require(
                    tensor.shape == expected,
                    f"{name} has the shape {list(tensor.shape)}; expected [G, layers, P, kv_heads, "
                    f"head_dim] = {list(expected)}",
                )
        if injection.embedding is not None:
            wanted = (pack, injection.embedding_length, shape.input_width)
            require(
                injection.embedding.shape == wanted,
                f"embedding has the shape {list(injection.embedding.shape)}; expected [G, P, width of the "
                f"input embeddings] = {list(wanted)}",
            )
        taken = length + injection.embedding_length
        require(
            taken == method.virtual_tokens(),
            f"virtual_tokens() is {method.virtual_tokens()}, but {taken} positions are injected",
        )
        require(
            injection.key is not None or injection.embedding is not None or injection.outputs,
            "the injection is empty, so the prompt has no effect",
        )


def _slices(method: PEFTMethod, shape: BackboneShape) -> None:
    import torch

    from panda_fusion.testing.samples import perturbed

    tensors = perturbed(method, shape, PACK)
    together = _applied(method.inject(tensors, shape), shape, PACK)
    for prompt in range(PACK):
        alone = {name: tensor[prompt : prompt + 1] for name, tensor in tensors.items()}
        for what, found in _applied(method.inject(alone, shape), shape, 1, prompt).items():
            require(
                torch.allclose(together[what][prompt], found[0], rtol=1e-4, atol=1e-5),
                f"{what}: prompt {prompt} of a pack of {PACK} differs from the same prompt alone",
            )


def _gradients(method: PEFTMethod, shape: BackboneShape) -> None:
    import torch

    from panda_fusion.testing.samples import perturbed

    tensors = {name: tensor.requires_grad_() for name, tensor in perturbed(method, shape, PACK).items()}
    applied = _applied(method.inject(tensors, shape), shape, PACK)
    generator = torch.Generator().manual_seed(5)
    total = torch.stack(
        [(found[1] * torch.randn(found[1].shape, generator=generator)).sum() for found in applied.values()]
    ).sum()
    total.backward()
    for name, tensor in tensors.items():
        _require_gradient(name, tensor.grad)
        assert tensor.grad is not None
        require(
            not tensor.grad[0].any() and not tensor.grad[2].any(),
            f"prompt 1 depends on other prompts' {name!r}; prompt g must depend on slice g alone",
        )


def _stored(method: PEFTMethod, shape: BackboneShape) -> None:
    import torch

    from panda_fusion.testing.samples import perturbed

    trained = {name: tensor[0] for name, tensor in perturbed(method, shape, 1).items()}
    stored = method.to_stored(trained, shape)
    found = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    expected = {name: tuple(sizes) for name, sizes in method.stored_shapes(shape).items()}
    require(found == expected, f"to_stored gives {found}, stored_shapes says {expected}")
    for name, tensor in stored.items():
        require(tensor.dtype == torch.float32, f"stored {name!r} is {tensor.dtype}; expected float32")
        require(not tensor.requires_grad, f"stored {name!r} still requires a gradient")
    reader = method.stored()
    require(
        reader.stored_shapes(shape) == method.stored_shapes(shape),
        "stored() has other stored_shapes than the method itself",
    )
    require(reader.name == method.name, f"stored() is named {reader.name!r}; expected {method.name!r}")
    require(reader.virtual_tokens() == method.virtual_tokens(), "stored() has another number of virtual tokens")
    _same_effect(method, trained, reader, reader.from_stored(stored, shape), shape)
    again = reader.to_stored(reader.from_stored(stored, shape), shape)
    require(
        all(torch.equal(stored[name], again[name]) for name in stored),
        "storing, reading and storing again changes the tensors",
    )
    try:
        continued = method.from_stored(stored, shape)
    except OptionError:
        require(reader is not method, "from_stored refuses what stored() says is its own form")
    else:
        _same_effect(method, trained, method, continued, shape)


def _same_effect(
    first: PEFTMethod,
    before: dict[str, torch.Tensor],
    second: PEFTMethod,
    after: dict[str, torch.Tensor],
    shape: BackboneShape,
) -> None:
    import torch

    one = _applied(first.inject({name: t.unsqueeze(0) for name, t in before.items()}, shape), shape, 1)
    two = _applied(second.inject({name: t.unsqueeze(0) for name, t in after.items()}, shape), shape, 1)
    require(set(one) == set(two), f"{sorted(one)} is injected before storing, {sorted(two)} afterwards")
    for what in one:
        require(
            torch.allclose(one[what], two[what], rtol=1e-5, atol=1e-6),
            f"{what} is another one after storing and reading back",
        )


def _tokens(method: PEFTMethod, shape: BackboneShape) -> None:
    from panda_fusion.testing.samples import perturbed

    trained = {name: tensor[0] for name, tensor in perturbed(method, shape, 1).items()}
    matrix = method.token_matrix(method.to_stored(trained, shape))
    require(matrix.dim() == 2, f"token_matrix has the shape {list(matrix.shape)}; expected [tokens, features]")
    rows = max(1, method.virtual_tokens())
    require(
        len(matrix) in (1, rows),
        f"token_matrix has {len(matrix)} rows; expected one per virtual token ({rows}) or one in all",
    )
    require(bool(matrix.isfinite().all()), "token_matrix is not finite")


def _applied(injection: Injection, shape: BackboneShape, pack: int, first: int = 0) -> dict[str, torch.Tensor]:
    """Everything that an injection adds, as tensors [G, ...]: transforms are applied to random layer outputs.

    Prompt g gets the layer outputs of number `first` + g, so that a prompt alone sees what it saw in a pack.
    """
    import torch

    from panda_fusion.injection import Rows

    found = {
        name: tensor
        for name, tensor in (
            ("key", injection.key),
            ("value", injection.value),
            ("embedding", injection.embedding),
        )
        if tensor is not None
    }
    outputs = torch.randn((PACK, 2, 4, shape.hidden), generator=torch.Generator().manual_seed(9))
    outputs = outputs[first : first + pack]
    for name in injection.outputs:
        if name not in shape.layer_modules:
            continue  # of any other module only a real backbone knows the width
        for words, index in (("", None), (" with row numbers", torch.arange(pack).repeat_interleave(2))):
            given = outputs.flatten(0, 1)
            changed = injection.outputs[name](given.clone(), Rows(pack, index))
            require(
                changed.shape == given.shape,
                f"the transform of {name!r} turns {list(given.shape)} into {list(changed.shape)}",
            )
            found[f"output of {name!r}{words}"] = changed.unflatten(0, (pack, 2))
    return found


def _half_precision(method: PEFTMethod, shape: BackboneShape) -> None:
    import torch

    from panda_fusion.injection import Rows
    from panda_fusion.testing.samples import perturbed

    injection = method.inject(perturbed(method, shape, 1), shape)
    for name in set(injection.outputs) & set(shape.layer_modules):
        given = torch.ones((2, 4, shape.hidden), dtype=torch.bfloat16)
        changed = injection.outputs[name](given, Rows(1))
        require(
            changed.dtype == torch.bfloat16,
            f"the transform of {name!r} turns bfloat16 into {changed.dtype}; expected the dtype that came in",
        )


_SHAPE_CHECKS: dict[str, Callable[[PEFTMethod, BackboneShape], None]] = {
    "create is float32 and repeatable": _create,
    "injection has the stated shapes": _injected,
    "prompts of a pack are independent": _slices,
    "gradients reach every trainable tensor": _gradients,
    "stored form reads back": _stored,
    "token_matrix is [tokens, features]": _tokens,
    "transforms keep the dtype": _half_precision,
}


# Inside a backbone


def _inside(run: Callable[[PEFTMethod, Backbone], None], method: PEFTMethod, model: str) -> None:
    from panda_fusion.testing.samples import tiny_backbone

    run(method, tiny_backbone(model))


def _pooled(backbone: Backbone, injection: Injection | None, rows: Rows, examples: Sequence[int]) -> torch.Tensor:
    """[N, hidden]: the pooled vectors of these sample texts, padded to the longest of them."""
    import torch

    from panda_fusion.testing.samples import encoded_texts

    data = encoded_texts(backbone)
    index = torch.tensor(list(examples))
    lengths = data.lengths[index]
    width = int(lengths.max())
    return backbone.forward(
        data.input_ids[index, :width].long(),
        lengths,
        None if data.token_types is None else data.token_types[index, :width].long(),
        injection,
        rows,
    )


def _has_effect(method: PEFTMethod, backbone: Backbone) -> None:
    import torch

    from panda_fusion.injection import Rows
    from panda_fusion.testing.samples import perturbed

    with torch.no_grad():
        injection = method.inject(perturbed(method, backbone.shape, 1), backbone.shape)
        without = _pooled(backbone, None, Rows(1), range(4))
        with_prompt = _pooled(backbone, injection, Rows(1), range(4))
    require(bool(with_prompt.isfinite().all()), "the pooled vectors are not finite")
    shift = (with_prompt - without).abs().amax(1)
    require(bool((shift > 1e-6).all()), "the prompt changes nothing in some text's pooled vector")


def _pack_inside(method: PEFTMethod, backbone: Backbone) -> None:
    import torch

    from panda_fusion.injection import Rows
    from panda_fusion.testing.samples import perturbed

    shape = backbone.shape
    tensors = perturbed(method, shape, PACK)
    with torch.no_grad():
        grouped = _pooled(backbone, method.inject(tensors, shape), Rows(PACK), [0, 1] * PACK)
        order = torch.tensor([2, 0, 1])
        numbered = _pooled(backbone, method.inject(tensors, shape), Rows(PACK, order), [0, 0, 0])
        for prompt in range(PACK):
            one = {name: tensor[prompt : prompt + 1] for name, tensor in tensors.items()}
            alone = _pooled(backbone, method.inject(one, shape), Rows(1), [0, 1])
            _close(grouped[2 * prompt : 2 * prompt + 2], alone, f"prompt {prompt} in a pack and alone")
            place = int((order == prompt).nonzero())
            _close(numbered[place : place + 1], alone[:1], f"prompt {prompt} by row number and alone")


def _padding(method: PEFTMethod, backbone: Backbone) -> None:
    import torch

    from panda_fusion.injection import Rows
    from panda_fusion.testing.samples import perturbed

    with torch.no_grad():
        injection = method.inject(perturbed(method, backbone.shape, 1), backbone.shape)
        batch = _pooled(backbone, injection, Rows(1), range(6))
        for row in range(6):
            alone = _pooled(backbone, injection, Rows(1), [row])
            _close(batch[row : row + 1], alone, f"text {row} padded and not")


def _gradients_inside(method: PEFTMethod, backbone: Backbone) -> None:
    import torch

    from panda_fusion.injection import Rows
    from panda_fusion.testing.samples import perturbed

    shape = backbone.shape
    tensors = {name: tensor.requires_grad_() for name, tensor in perturbed(method, shape, 2).items()}
    pooled = _pooled(backbone, method.inject(tensors, shape), Rows(2), [0, 1, 0, 1])
    (pooled * torch.randn(pooled.shape, generator=torch.Generator().manual_seed(6))).sum().backward()
    for name, tensor in tensors.items():
        _require_gradient(name, tensor.grad)


def _require_gradient(name: str, gradient: torch.Tensor | None) -> None:
    require(gradient is not None, f"no gradient reaches {name!r}")
    assert gradient is not None
    require(bool(gradient.isfinite().all()), f"the gradient of {name!r} is not finite")
    require(bool(gradient.any()), f"the gradient of {name!r} is zero everywhere")


def _close(first: torch.Tensor, second: torch.Tensor, what: str) -> None:
    gap = float((first - second).abs().max())
    require(gap < 1e-4, f"{what} differ by {gap:.2g} in the pooled vector")


_BACKBONE_CHECKS: dict[str, Callable[[PEFTMethod, Backbone], None]] = {
    "changes the pooled vector": _has_effect,
    "prompts of a pack are independent": _pack_inside,
    "padding changes nothing": _padding,
    "gradients reach every trainable tensor": _gradients_inside,
}
