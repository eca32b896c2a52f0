"""Layers computed again in the backward pass: the same values and gradients, and a prompt that is never lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_samples import MAX_LENGTH, columns, largest, method, pack

from panda_fusion.backbone import Backbone, load_backbone
from panda_fusion.dataset import Batch, encode, gather
from panda_fusion.errors import BackboneError
from panda_fusion.injection import Injection, Rows, per_layer
from panda_fusion.testing import MODEL_TYPES

Folder = Callable[[str], Path]
ROWS = 4
CPU = torch.device("cpu")
KINDS = ("prefix:length=3", "prefix:length=3,projection=5", "prompt:length=3", "adapter:reduction=4", "shift")


def backbones(folder: Path) -> tuple[Backbone, Backbone]:
    """The same backbone without and with checkpointing."""
    return tuple(  # type: ignore[return-value]
        load_backbone(str(folder), device=CPU, dtype=torch.float32, gradient_checkpointing=on) for on in (False, True)
    )


def batch_of(backbone: Backbone) -> Batch:
    data = encode(backbone, columns(2 * ROWS, 3, 2), None, "classification", MAX_LENGTH)
    return gather(data, torch.arange(2 * ROWS), data.input_ids.shape[1])


def trainable(kind: str, backbone: Backbone) -> dict[str, torch.Tensor]:
    if kind == "shift":  # what an adapter does: every layer's two sublayers and the layer itself
        made = torch.randn(2, 3, backbone.shape.layers, 32, generator=torch.Generator().manual_seed(4))
        return {"shift": (0.3 * made).requires_grad_()}
    made = pack(method(kind), backbone, 2)
    if kind.startswith("adapter"):  # a new one changes nothing, and its first matrix has no gradient
        generator = torch.Generator().manual_seed(4)
        made = {name: tensor + 0.2 * torch.randn(tensor.shape, generator=generator) for name, tensor in made.items()}
    return {name: tensor.requires_grad_() for name, tensor in made.items()}


def injection_of(kind: str, backbone: Backbone, tensors: Mapping[str, torch.Tensor]) -> Injection:
    if kind != "shift":
        return method(kind).inject(tensors, backbone.shape)
    assert backbone.shape.layout is not None
    outputs: dict[str, Any] = {}
    places = (backbone.shape.layout.attention_outputs, backbone.shape.layout.neurons, backbone.shape.layer_modules)
    for number, names in enumerate(places):
        transforms = []
        for layer in range(len(names)):

            def transform(output: torch.Tensor, rows: Rows, at: tuple[int, int] = (number, layer)) -> torch.Tensor:
                own = rows.spread(tensors["shift"][:, at[0], at[1]], output.shape[0])[:, None]
                # A product, so that the gradient needs activations of the layer that is computed again.
                return output * (1 + torch.tanh(own.repeat(1, 1, output.shape[2] // 32)))

            transforms.append(transform)
        outputs |= per_layer(names, transforms)
    return Injection(outputs=outputs)


def step(backbone: Backbone, kind: str, dropout: float = 0.0, between: Callable[[], object] | None = None) -> Any:
    """All tokens' states and gradients of one step with two prompts.

    Not pooled vectors, for which the last layer may be spared in part (`panda_fusion.last_layer`) without
    checkpointing, so that dropout draws other numbers.
    """
    tensors = trainable(kind, backbone)
    batch = batch_of(backbone)
    torch.manual_seed(11)
    injection = injection_of(kind, backbone, tensors)
    states = backbone.hidden_states(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(2), dropout)
    if between is not None:
        between()
    aim = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    (states * aim).sum().backward()
    return states.detach(), {name: tensor.grad for name, tensor in tensors.items()}


def assert_equal(first: Any, second: Any) -> None:
    assert largest(first[0], second[0]) <= 1e-6
    for name, gradient in first[1].items():
        assert float(gradient.abs().max()) > 1e-3, name
        assert largest(gradient, second[1][name]) <= 1e-6 * max(1.0, float(gradient.abs().max())), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_values_and_gradients_are_those_without(model_type: str, kind: str, tiny_folder: Folder) -> None:
    plain, checkpointed = backbones(tiny_folder(model_type))
    assert checkpointed.gradient_checkpointing
    assert_equal(step(plain, kind), step(checkpointed, kind))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_layers_really_are_computed_again(model_type: str, tiny_folder: Folder) -> None:
    """Feed-forward sublayers run twice in a step, and once where no gradient is wanted."""
    _, backbone = backbones(tiny_folder(model_type))
    assert backbone.shape.layout is not None
    runs = []
    for name in set(backbone.shape.layout.attention_outputs):
        backbone._model.get_submodule(name).register_forward_hook(lambda *_: runs.append(1))
    step(backbone, "prefix:length=3")
    assert len(runs) == 2 * backbone.shape.layers
    runs.clear()
    with torch.no_grad():
        batch = batch_of(backbone)
        injection = injection_of("prefix:length=3", backbone, trainable("prefix:length=3", backbone))
        backbone.forward(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(2))
    assert len(runs) == backbone.shape.layers


@pytest.mark.parametrize("model_type", ["bert", "opt", "t5", "albert"])
def test_dropout_is_drawn_again_alike(model_type: str, tiny_folder: Folder) -> None:
    plain, checkpointed = backbones(tiny_folder(model_type))
    with_dropout = step(plain, "prefix:length=3", 0.3)
    assert largest(with_dropout[0], step(plain, "prefix:length=3")[0]) > 1e-2
    assert_equal(with_dropout, step(checkpointed, "prefix:length=3", 0.3))
    assert not checkpointed._model.training


@pytest.mark.parametrize("model_type", ["bert", "opt", "albert"])
def test_another_pass_between_forward_and_backward_changes_nothing(model_type: str, tiny_folder: Folder) -> None:
    """A teacher runs there, with another prompt and without dropout."""
    plain, checkpointed = backbones(tiny_folder(model_type))
    expected = step(plain, "prefix:length=3", 0.3)

    def teacher() -> None:
        batch = batch_of(checkpointed)
        peft = method("prefix:length=7")
        other = peft.inject(pack(peft, checkpointed, 1, seed=5), checkpointed.shape)
        with torch.no_grad():
            checkpointed.forward(batch.input_ids, batch.lengths, batch.token_types, other, Rows(1))

    assert_equal(expected, step(checkpointed, "prefix:length=3", 0.3, teacher))


@pytest.mark.parametrize("model_type", ["bert", "albert", "llama"])
def test_backward_may_run_twice(model_type: str, tiny_folder: Folder) -> None:
    gradients = []
    for backbone in backbones(tiny_folder(model_type)):
        tensors = trainable("prefix:length=3", backbone)
        batch = batch_of(backbone)
        injection = injection_of("prefix:length=3", backbone, tensors)
        pooled = backbone.forward(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(2))
        loss = pooled.square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        gradients.append(tensors["key"].grad)
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert float(gradients[0].abs().max()) > 1e-3
    assert largest(gradients[0], gradients[1]) <= 1e-6 * max(1.0, float(gradients[0].abs().max()))


def test_less_is_kept_for_the_backward_pass(tiny_folder: Folder) -> None:
    """Bytes that autograd holds after the forward pass."""
    held = []
    for backbone in backbones(tiny_folder("llama")):
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        tensors = trainable("prefix:length=3", backbone)
        batch = batch_of(backbone)
        injection = injection_of("prefix:length=3", backbone, tensors)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            backbone.forward(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(2))
        weights = {p.untyped_storage().data_ptr() for p in backbone._model.parameters()}
        held.append(sum(size for pointer, size in sizes.items() if pointer not in weights))
    assert held[1] < 0.5 * held[0]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("model_type", ["bert", "llama", "t5", "deberta-v2"])
def test_a_flag_that_was_switched_on_elsewhere_never_loses_the_prompt(
    model_type: str, reentrant: bool, tiny_folder: Folder
) -> None:
    backbone = load_backbone(str(tiny_folder(model_type)), device=CPU, dtype=torch.float32)
    backbone._model.gradient_checkpointing_enable(  # type: ignore[operator]
        gradient_checkpointing_kwargs={"use_reentrant": reentrant}
    )
    with pytest.raises(BackboneError, match=r"own gradient checkpointing is switched on .* switch it off"):
        step(backbone, "prefix:length=3", 0.1)
    backbone._model.gradient_checkpointing_disable()  # type: ignore[operator]
    step(backbone, "prefix:length=3", 0.1)
