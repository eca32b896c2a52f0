"""Where sublayers and neurons are, checked on what runs through them; and transforms of module outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_samples import MAX_LENGTH, columns, largest
from torch.nn import functional as F
from transformers import AlbertConfig, AlbertModel, XLNetConfig, XLNetModel

from panda_fusion.backbone import Backbone
from panda_fusion.dataset import Batch, encode, gather
from panda_fusion.errors import BackboneError
from panda_fusion.injection import Injection, Rows, per_layer
from panda_fusion.layout import layout
from panda_fusion.testing import MODEL_TYPES

Tiny = Callable[[str], Backbone]
ROWS = 5
FEED_FORWARD = 64


def batch_of(backbone: Backbone) -> Batch:
    data = encode(backbone, columns(ROWS, 3), None, "classification", MAX_LENGTH)
    return gather(data, torch.arange(ROWS), data.input_ids.shape[1])


def run(backbone: Backbone, batch: Batch, outputs: dict[str, Any], rows: Rows | None = None) -> torch.Tensor:
    injection = Injection(outputs=outputs)
    return backbone.hidden_states(batch.input_ids, batch.lengths, batch.token_types, injection, rows or Rows(1))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_outputs_have_the_shapes_that_are_promised_in_every_layer(model_type: str, tiny: Tiny) -> None:
    backbone = tiny(model_type)
    found = backbone.shape.layout
    assert found is not None
    batch = batch_of(backbone)
    width = batch.input_ids.shape[1]
    for names, features in (
        (found.attention_outputs, 32),
        (found.feedforward_outputs, 32),
        (found.neurons, FEED_FORWARD),
    ):
        assert len(names) == backbone.shape.layers
        seen: list[tuple[int, tuple[int, ...]]] = []

        def note(layer: int, seen: Any = seen) -> Any:
            def transform(output: torch.Tensor, _rows: Rows) -> torch.Tensor:
                seen.append((layer, tuple(output.shape)))
                return output

            return transform

        run(backbone, batch, per_layer(names, [note(layer) for layer in range(len(names))]))
        assert seen == [(layer, (ROWS, width, features)) for layer in range(len(names))]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_sublayers_are_cut_before_the_residual(model_type: str, tiny: Tiny) -> None:
    """Both sublayers of a layer silenced, and its norms made idle, the layer must pass its input on unchanged."""
    backbone = tiny(model_type)
    found = backbone.shape.layout
    assert found is not None
    modules = dict(backbone._model.named_modules())
    first = found.layers[0]
    entered: list[torch.Tensor] = []
    left: list[torch.Tensor] = []

    def before(_module: Any, arguments: Any, named: Any) -> None:
        entered.append(arguments[0] if arguments else named["hidden_states"])

    def after(_module: Any, _arguments: Any, output: Any) -> None:
        left.append(output[0] if isinstance(output, tuple) else output)

    handles = [
        modules[first].register_forward_pre_hook(before, with_kwargs=True),
        modules[first].register_forward_hook(after),
    ]
    for name, module in modules.items():
        if name.startswith(f"{first}.") and "Norm" in type(module).__name__:
            handles.append(module.register_forward_hook(lambda _m, inputs, _o: inputs[0]))
    try:
        silent = {
            names[0]: lambda output, _rows: torch.zeros_like(output)
            for names in (found.attention_outputs, found.feedforward_outputs)
        }
        run(backbone, batch_of(backbone), silent)
    finally:
        for handle in handles:
            handle.remove()
    assert largest(left[0], entered[0]) == 0.0


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_neurons_are_what_the_activation_function_gives(model_type: str, tiny: Tiny) -> None:
    """Activation functions of this kind never fall below -0.2, and what they pass on has not been mixed again."""
    backbone = tiny(model_type)
    assert backbone.shape.layout is not None
    seen = []

    def note(output: torch.Tensor, _rows: Rows) -> torch.Tensor:
        seen.append(output)
        return output

    names = backbone.shape.layout.neurons
    run(backbone, batch_of(backbone), per_layer(names, [note] * len(names)))
    for output in seen:
        assert float(output.min()) >= -0.3  # SiLU's minimum is -0.279
        assert float(output.max()) > 0.3
        assert bool((output <= 0).any())


def test_albert_with_groups_and_inner_layers() -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    model = AlbertModel(AlbertConfig(**sizes, num_hidden_layers=4, num_hidden_groups=2, inner_group_num=2)).eval()
    called: list[str] = []
    for name, module in model.named_modules():
        if type(module).__name__ == "AlbertLayer":
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    model(torch.ones(1, 3, dtype=torch.int64))
    assert list(layout(model).layers) == called
    assert len(called) == 8


def test_unknown_architecture() -> None:
    model = XLNetModel(XLNetConfig(vocab_size=50, d_model=16, n_layer=1, n_head=2, d_inner=16))
    with pytest.raises(BackboneError, match=r"^Architecture 'xlnet' is not one whose .*bert.*\.$"):
        layout(model)


def test_an_architecture_that_was_laid_out_anew_is_refused() -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    model = AlbertModel(AlbertConfig(**sizes, num_hidden_layers=2))
    layer: Any = model.encoder.albert_layer_groups[0].albert_layers[0]
    layer.activation = None
    with pytest.raises(BackboneError, match=r"^Architecture 'albert' lacks its module '.*activation'"):
        layout(model)


def test_per_layer_groups_the_layers_of_one_module() -> None:
    def one(output: torch.Tensor, _rows: Rows) -> torch.Tensor:
        return output

    def two(output: torch.Tensor, _rows: Rows) -> torch.Tensor:
        return output

    assert per_layer(("a", "b"), (one, two)) == {"a": one, "b": two}
    assert per_layer(("a", "a"), (one, two)) == {"a": (one, two)}
    with pytest.raises(ValueError, match="zip"):
        per_layer(("a",), (one, two))


@pytest.mark.parametrize("position", [0, 1])
def test_the_kth_transform_is_for_the_kth_call(position: int, tiny: Tiny, tiny_folder: Callable[[str], Path]) -> None:
    """ALBERT: a shift in one layer only, against the layers run one by one."""
    backbone = tiny("albert")
    assert backbone.shape.layout is not None
    shift = torch.randn(32, generator=torch.Generator().manual_seed(1))

    def moved(output: torch.Tensor, _rows: Rows) -> torch.Tensor:
        return output + shift

    def kept(output: torch.Tensor, _rows: Rows) -> torch.Tensor:
        return output

    batch = batch_of(backbone)
    transforms = [moved if layer == position else kept for layer in range(2)]
    found = run(backbone, batch, per_layer(backbone.shape.layer_modules, transforms))

    model: Any = AlbertModel.from_pretrained(tiny_folder("albert"), attn_implementation="eager").eval()
    keep = torch.arange(batch.input_ids.shape[1]) < batch.lengths[:, None]
    bias = torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)[:, None, None]
    states = model.encoder.embedding_hidden_mapping_in(model.embeddings(batch.input_ids, batch.token_types))
    for layer in range(2):
        states = model.encoder.albert_layer_groups[0].albert_layers[0](states, bias)
        states = states + shift if layer == position else states
    assert largest(found[keep], states[keep]) <= 1e-5


@pytest.mark.parametrize("number", [1, 3], ids=["too few", "too many"])
def test_another_number_of_calls_than_transforms_raises(number: int, tiny: Tiny) -> None:
    backbone = tiny("albert")
    transforms = (lambda output, _rows: output,) * number
    with pytest.raises(BackboneError, match=rf"transforms for {number} calls .*albert_layers\.0"):
        run(backbone, batch_of(backbone), {backbone.shape.layer_modules[0]: transforms})
    assert not backbone._model.get_submodule(backbone.shape.layer_modules[0])._forward_hooks


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_transforms_of_a_pack_see_rows_and_only_their_own(model_type: str, tiny: Tiny) -> None:
    """A shift per prompt of feed-forward outputs: in a pack as each alone (OPT folds rows and tokens together)."""
    backbone = tiny(model_type)
    assert backbone.shape.layout is not None
    names = backbone.shape.layout.feedforward_outputs
    shifts = torch.randn(2, len(names), 32, generator=torch.Generator().manual_seed(0))

    def moving(own: torch.Tensor) -> dict[str, Any]:
        return per_layer(
            names,
            [
                lambda output, rows, layer=layer: output + rows.spread(own[:, layer], output.shape[0])[:, None]
                for layer in range(len(names))
            ],
        )

    batch = batch_of(backbone)
    twice = Batch(
        batch.input_ids.repeat(2, 1),
        batch.lengths.repeat(2),
        None if batch.token_types is None else batch.token_types.repeat(2, 1),
    )
    together = run(backbone, twice, moving(shifts), Rows(2))
    keep = torch.arange(batch.input_ids.shape[1]) < batch.lengths[:, None]
    alone = [run(backbone, batch, moving(shifts[place : place + 1])) for place in range(2)]
    for place in range(2):
        part = together[place * ROWS : (place + 1) * ROWS]
        assert largest(part[keep], alone[place][keep]) <= 1e-5 * float(part[keep].abs().max())
    assert float(F.mse_loss(alone[0][keep], alone[1][keep])) > 1e-2
