"""What a PEFT method must fulfil, outside of and inside tiny real backbones."""

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
    from panda_fusion.injection import Injection, OutputTransform, Rows

PACK = 3
_INDEPENDENT = "prompts of a pack are independent"
_Run = Callable[[PEFTMethod, "Backbone"], None]


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
    from panda_fusion.testing.samples import ODD_BACKBONES, sample_backbone, tiny_backbone

    method = method_type(options)
    method.name = name

    def checks(kept: dict[str, _Run]) -> list[tuple[str, _Run]]:
        return [(what, run) for what, run in kept.items() if method.packable or what != _INDEPENDENT]

    yield Check("virtual_tokens is a number of at least 0", lambda: _virtual_tokens(method))
    for special in ODD_BACKBONES:
        for what, run in checks(_OUTSIDE_CHECKS):
            yield Check(f"{special}: {what}", lambda run=run, special=special: run(method, sample_backbone(special)))  # type: ignore[misc]
    for model in models:
        for what, run in checks(_INSIDE_CHECKS):
            yield Check(f"{model}: {what}", lambda run=run, model=model: run(method, tiny_backbone(model)))  # type: ignore[misc]


# On what goes into a backbone


def _virtual_tokens(method: PEFTMethod) -> None:
    found = method.virtual_tokens()
    require(isinstance(found, int) and found >= 0, f"virtual_tokens() is {found!r}; expected 0, 1, ...")


def _create(method: PEFTMethod, backbone: Backbone) -> None:
    import torch

    state = torch.get_rng_state()
    made = method.create(backbone, torch.Generator().manual_seed(1))
    require(made, "create made no tensor, so nothing would be trained")
    for name, tensor in made.items():
        require(tensor.dtype == torch.float32, f"tensor {name!r} is {tensor.dtype}; expected float32")
        require(tensor.device.type == "cpu", f"tensor {name!r} is on {tensor.device}; expected the CPU")
        require(not tensor.requires_grad, f"tensor {name!r} requires a gradient; the trainer decides that")
        require(bool(tensor.isfinite().all()), f"tensor {name!r} is not finite")
    again = method.create(backbone, torch.Generator().manual_seed(1))
    require(
        set(made) == set(again) and all(torch.equal(made[name], again[name]) for name in made),
        "two generators of one seed gave different tensors; draw from the generator only",
    )
    require(torch.equal(state, torch.get_rng_state()), "create drew from torch's global random state")


def _injected(method: PEFTMethod, backbone: Backbone) -> None:
    from panda_fusion.testing.samples import perturbed

    shape = backbone.shape
    for pack in (1, PACK) if method.packable else (1,):
        injection = method.inject(perturbed(method, backbone, pack), shape)
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
            injection.key is not None or injection.embedding is not None or injection.outputs or injection.weights,
            "the injection is empty, so the prompt has no effect",
        )
        require(
            method.packable or bool(injection.weights),
            "packable is False, but no weight of the backbone is replaced; only that keeps prompts from sharing a pass",
        )
        for name, tensor in injection.weights.items():
            require(not method.packable, "weights of the backbone are replaced, so packable must be False")
            known = (shape.parameters or {}).get(name)
            require(
                known is not None and tuple(tensor.shape) == (1, *known),
                f"weight {name!r} has the shape {list(tensor.shape)}; expected one that the backbone has, and the "
                "backbone's shape behind a pack axis of 1",
            )


def _slices(method: PEFTMethod, backbone: Backbone) -> None:
    import torch

    from panda_fusion.testing.samples import perturbed

    shape = backbone.shape
    tensors = perturbed(method, backbone, PACK)
    together = _applied(method.inject(tensors, shape), shape, PACK)
    for prompt in range(PACK):
        alone = {name: tensor[prompt : prompt + 1] for name, tensor in tensors.items()}
        for what, found in _applied(method.inject(alone, shape), shape, 1, prompt).items():
            require(
                torch.allclose(together[what][prompt], found[0], rtol=1e-4, atol=1e-5),
                f"{what}: prompt {prompt} of a pack of {PACK} differs from the same prompt alone",
            )


def _gradients(method: PEFTMethod, backbone: Backbone) -> None:
    import torch

    from panda_fusion.testing.samples import perturbed

    shape, pack = backbone.shape, PACK if method.packable else 1
    one = pack // 2
    tensors = {name: tensor.requires_grad_() for name, tensor in perturbed(method, backbone, pack).items()}
    applied = _applied(method.inject(tensors, shape), shape, pack)
    generator = torch.Generator().manual_seed(5)
    total = torch.stack(
        [(found[one] * torch.randn(found[one].shape, generator=generator)).sum() for found in applied.values()]
    ).sum()
    total.backward()
    for name, tensor in tensors.items():
        _require_gradient(name, tensor.grad)
        assert tensor.grad is not None
        require(
            all(not tensor.grad[other].any() for other in range(pack) if other != one),
            f"prompt {one} depends on other prompts' {name!r}; prompt g must depend on slice g alone",
        )


def _stored(method: PEFTMethod, backbone: Backbone) -> None:
    import torch

    from panda_fusion.prompt_file import shape_of
    from panda_fusion.testing.samples import perturbed

    shape = backbone.shape
    trained = {name: tensor[0] for name, tensor in perturbed(method, backbone, 1).items()}
    stored = method.to_stored(trained, shape)
    found = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    stated = method.stored_shapes(shape)
    require(stated is not None, "stored_shapes is None although the backbone is at hand")
    expected = {name: tuple(sizes) for name, sizes in (stated or {}).items()}
    require(
        method.stored_shapes(shape_of(backbone.info)) in (None, stated),
        "stored_shapes is another one without the model (as files are checked) than with it",
    )
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


def _tokens(method: PEFTMethod, backbone: Backbone) -> None:
    from panda_fusion.testing.samples import perturbed

    trained = {name: tensor[0] for name, tensor in perturbed(method, backbone, 1).items()}
    matrix = method.token_matrix(method.to_stored(trained, backbone.shape))
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
    found |= {f"weight {name!r}": tensor for name, tensor in injection.weights.items()}
    outputs = torch.randn((PACK, 2, 4, shape.hidden), generator=torch.Generator().manual_seed(9))
    outputs = outputs[first : first + pack]
    for name, transform in _transforms(injection, shape):
        for words, index in (("", None), (" with row numbers", torch.arange(pack).repeat_interleave(2))):
            given = outputs.flatten(0, 1)
            changed = transform(given.clone(), Rows(pack, index))
            require(
                changed.shape == given.shape,
                f"the transform of {name} turns {list(given.shape)} into {list(changed.shape)}",
            )
            found[f"output of {name}{words}"] = changed.unflatten(0, (pack, 2))
    return found


def _transforms(injection: Injection, shape: BackboneShape) -> Iterator[tuple[str, OutputTransform]]:
    """Transforms of layers and sublayers, whose outputs are [N, T, hidden]; of any other module only the backbone knows
    the width."""
    layout = shape.layout
    known = {
        *shape.layer_modules,
        *(() if layout is None else (*layout.attention_outputs, *layout.feedforward_outputs)),
    }
    for name, transform in injection.outputs.items():
        if name not in known:
            continue
        if not isinstance(transform, tuple):
            yield repr(name), transform
        else:
            yield from ((f"{name!r}, call {call}", one) for call, one in enumerate(transform, start=1))


def _half_precision(method: PEFTMethod, backbone: Backbone) -> None:
    import torch

    from panda_fusion.injection import Rows
    from panda_fusion.testing.samples import perturbed

    shape = backbone.shape
    injection = method.inject(perturbed(method, backbone, 1), shape)
    for name, transform in _transforms(injection, shape):
        given = torch.ones((2, 4, shape.hidden), dtype=torch.bfloat16)
        changed = transform(given, Rows(1))
        require(
            changed.dtype == torch.bfloat16,
            f"the transform of {name} turns bfloat16 into {changed.dtype}; expected the dtype that came in",
        )


_OUTSIDE_CHECKS: dict[str, _Run] = {
    "create is float32 and repeatable": _create,
    "injection has the stated shapes": _injected,
    _INDEPENDENT: _slices,
    "gradients reach every trainable tensor": _gradients,
    "stored form reads back": _stored,
    "token_matrix is [tokens, features]": _tokens,
    "transforms keep the dtype": _half_precision,
}


# Inside a backbone


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
        injection = method.inject(perturbed(method, backbone, 1), backbone.shape)
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
    tensors = perturbed(method, backbone, PACK)
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
        injection = method.inject(perturbed(method, backbone, 1), backbone.shape)
        batch = _pooled(backbone, injection, Rows(1), range(6))
        for row in range(6):
            alone = _pooled(backbone, injection, Rows(1), [row])
            _close(batch[row : row + 1], alone, f"text {row} padded and not")


def _gradients_inside(method: PEFTMethod, backbone: Backbone) -> None:
    """Through the head as well: a method that trains the backbone's pooler reaches it only there."""
    import torch

    from panda_fusion.injection import Rows
    from panda_fusion.testing.samples import perturbed

    pack = 2 if method.packable else 1
    tensors = {name: tensor.requires_grad_() for name, tensor in perturbed(method, backbone, pack).items()}
    injection = method.inject(tensors, backbone.shape)
    pooled = _pooled(backbone, injection, Rows(pack), [0, 1] * pack)
    head = backbone.head(2)
    drawn = {
        name: torch.stack([tensor] * pack) for name, tensor in head.create(torch.Generator().manual_seed(8)).items()
    }
    logits = head(drawn, pooled.view(pack, 2, -1), weights=injection.weights)
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(6))).sum().backward()
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


_INSIDE_CHECKS: dict[str, _Run] = {
    "changes the pooled vector": _has_effect,
    _INDEPENDENT: _pack_inside,
    "padding changes nothing": _padding,
    "gradients reach every trainable tensor": _gradients_inside,
}
