"""Adapters, against Houlsby et al.'s networks put into transformers' own models by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_samples import CLASSES, MAX_LENGTH, columns, encoded, largest, method, pack
from torch import nn
from transformers import AutoModel, T5EncoderModel

from panda_fusion.backbone import Backbone
from panda_fusion.dataset import encode, gather
from panda_fusion.errors import BackboneError
from panda_fusion.injection import Rows
from panda_fusion.layout import layout
from panda_fusion.prompt_file import shape_of
from panda_fusion.students import new_students
from panda_fusion.trainer import TrainSettings, train_pack

Tiny = Callable[[str], Backbone]
ROWS = 6
REDUCTION = 4

# Output projections of the sublayers, as the models' sources name them; {} is the number of the layer.
PROJECTIONS = {
    "bert": ("encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense"),
    "roberta": ("encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense"),
    "distilbert": ("transformer.layer.{}.attention.out_lin", "transformer.layer.{}.ffn.lin2"),
    "modernbert": ("layers.{}.attn.Wo", "layers.{}.mlp.Wo"),
    "deberta-v2": ("encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense"),
    "gpt2": ("h.{}.attn.c_proj", "h.{}.mlp.c_proj"),
    "opt": ("decoder.layers.{}.self_attn.out_proj", "decoder.layers.{}.fc2"),
    "llama": ("layers.{}.self_attn.o_proj", "layers.{}.mlp.down_proj"),
    "t5": ("encoder.block.{}.layer.0.SelfAttention.o", "encoder.block.{}.layer.1.DenseReluDense.wo"),
}
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "swish": nn.SiLU}


class Houlsby(nn.Module):
    """A projection with an adapter behind it: two linear layers with a function between, and a skip connection."""

    def __init__(self, projection: nn.Module, tensors: dict[str, torch.Tensor], activation: str) -> None:
        super().__init__()
        self.projection = projection
        self.weight = projection.weight  # T5 asks for its dtype
        hidden, bottleneck = tensors["down_weight"].shape
        self.down, self.up = nn.Linear(hidden, bottleneck), nn.Linear(bottleneck, hidden)
        for layer, name in ((self.down, "down"), (self.up, "up")):
            layer.weight.data = tensors[f"{name}_weight"].T.clone()
            layer.bias.data = tensors[f"{name}_bias"].clone()
        self.activation = ACTIVATIONS[activation]()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        output = self.projection(states)
        return output + self.up(self.activation(self.down(output)))


class InTurn(nn.Module):
    """A module of ALBERT's one layer with the adapter of each layer in turn."""

    def __init__(self, adapters: list[Houlsby]) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(adapters)
        self.calls = 0

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.adapters[self.calls - 1](states)


def put_in(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def with_adapters(
    model: nn.Module, model_type: str, tensors: dict[str, torch.Tensor], both: bool, activation: str
) -> list[list[Houlsby]]:
    """Put adapters [layers, A, ...] into a model; returns them by layer and place."""
    layers = len(tensors["down_weight"])
    made: list[list[Houlsby]] = [[] for _ in range(layers)]

    def adapter(projection: nn.Module, layer: int, place: int) -> Houlsby:
        made[layer].append(Houlsby(projection, {k: t[layer, place] for k, t in tensors.items()}, activation))
        return made[layer][-1]

    for place, sublayer in enumerate((0, 1) if both else (1,)):
        if model_type == "albert":
            inner = "encoder.albert_layer_groups.0.albert_layers.0."
            name = inner + ("attention.dense", "ffn_output")[sublayer]
            projection = model.get_submodule(name)
            put_in(model, name, InTurn([adapter(projection, layer, place) for layer in range(layers)]))
            continue
        for layer in range(layers):
            name = PROJECTIONS[model_type][sublayer].format(layer)
            put_in(model, name, adapter(model.get_submodule(name), layer, place))
    return made


def plain_model(model_type: str, folder: Path) -> Any:
    kind = T5EncoderModel if model_type == "t5" else AutoModel
    return kind.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def pooled_by_hand(pooling: str, states: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    if pooling == "first":
        return states[:, 0]
    if pooling == "last":
        return torch.stack([row[real][-1] for row, real in zip(states, keep, strict=True)])
    return torch.stack([row[real].mean(0) for row, real in zip(states, keep, strict=True)])


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        *((model_type, "") for model_type in (*PROJECTIONS, "albert")),
        ("bert", ",activation=relu"),
        ("bert", ",activation=swish,placement=feedforward"),
        ("albert", ",placement=feedforward"),
    ],
)
def test_equals_houlsby_adapters_put_in_by_hand(
    model_type: str, options: str, tiny: Tiny, tiny_folder: Callable[[str], Path]
) -> None:
    """Hidden states of every token, and the gradient of every tensor."""
    backbone, peft = tiny(model_type), method(f"adapter:reduction={REDUCTION}{options}")
    tensors = pack(peft, backbone, 1)
    generator = torch.Generator().manual_seed(1)
    ours = {name: (t + 0.2 * torch.randn(t.shape, generator=generator)).requires_grad_() for name, t in tensors.items()}
    rows = columns(ROWS, 5)
    data = encode(backbone, rows, None, "classification", 2 * MAX_LENGTH)
    batch = gather(data, torch.arange(ROWS), data.input_ids.shape[1])
    injection = peft.inject(ours, backbone.shape)
    found = backbone.hidden_states(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(1))

    model = plain_model(model_type, tiny_folder(model_type))
    activation = getattr(peft.options, "activation")  # noqa: B009 (the options' type is a plugin's)
    both = getattr(peft.options, "placement") == "both"  # noqa: B009
    made = with_adapters(model, model_type, {k: t.detach()[0] for k, t in ours.items()}, both, activation)
    keep = torch.arange(batch.input_ids.shape[1]) < batch.lengths[:, None]
    types = {} if batch.token_types is None or model_type in ("gpt2",) else {"token_type_ids": batch.token_types}
    expected = model(input_ids=batch.input_ids, attention_mask=keep.long(), **types).last_hidden_state

    assert largest(found[keep], expected[keep]) <= 2e-5
    pooled = backbone.forward(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(1))
    assert largest(pooled, pooled_by_hand(backbone.pooling, expected, keep)) <= 2e-5
    aim = torch.randn(expected.shape, generator=generator) * keep[..., None]
    (found * aim).sum().backward()
    (expected * aim).sum().backward()
    for layer, adapters in enumerate(made):
        for place, adapter in enumerate(adapters):
            for name, part in (("down", adapter.down), ("up", adapter.up)):
                for kind, parameter in (("weight", part.weight), ("bias", part.bias)):
                    own, theirs = ours[f"{name}_{kind}"].grad, parameter.grad
                    assert own is not None
                    assert theirs is not None
                    scale = float(theirs.abs().max())
                    assert scale > 1e-3
                    assert largest(own[0, layer, place], theirs.T if kind == "weight" else theirs) <= 1e-4 * scale


@pytest.mark.parametrize("model_type", [*PROJECTIONS, "albert"])
def test_an_untrained_adapter_leaves_the_backbone_as_it_is(model_type: str, tiny: Tiny) -> None:
    backbone, peft = tiny(model_type), method("adapter")
    data = encoded(backbone, CLASSES, ROWS)
    batch = gather(data, torch.arange(ROWS), data.input_ids.shape[1])
    arguments = (batch.input_ids, batch.lengths, batch.token_types)
    new = {name: tensor[None] for name, tensor in peft.create(backbone, torch.Generator().manual_seed(3)).items()}
    assert float(new["down_weight"].std()) == pytest.approx(backbone.shape.hidden**-0.5, rel=0.2)
    found = backbone.hidden_states(*arguments, peft.inject(new, backbone.shape), Rows(1))
    assert torch.equal(found, backbone.hidden_states(*arguments, None, Rows(1)))


@pytest.mark.parametrize("index", [None, [1, 0, 1]])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_gradients_by_finite_differences(index: list[int] | None, activation: str, tiny: Tiny) -> None:
    """In float64, for the states and for every tensor, rows grouped by prompt and rows in any order."""
    shape = tiny("bert").shape
    peft = method(f"adapter:reduction=16,activation={activation}")
    sizes = peft.stored_shapes(shape)
    assert sizes is not None
    generator = torch.Generator().manual_seed(2)
    names = sorted(sizes)
    start = [torch.randn((2, *sizes[name]), generator=generator, dtype=torch.float64) for name in names]
    rows = Rows(2, None if index is None else torch.tensor(index))
    states = torch.randn((2 if index is None else 3, 2, shape.hidden), generator=generator, dtype=torch.float64)
    last = layout_of(tiny("bert"))[-1]

    def adapted(states: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        transform = peft.inject(dict(zip(names, tensors, strict=True)), shape).outputs[last]
        assert not isinstance(transform, tuple)
        return transform(states, rows)[..., :3]

    inputs = [tensor.requires_grad_() for tensor in (states, *start)]
    assert torch.autograd.gradcheck(adapted, inputs, fast_mode=True)


def layout_of(backbone: Backbone) -> tuple[str, ...]:
    assert backbone.shape.layout is not None
    return backbone.shape.layout.feedforward_outputs


def test_a_trained_pack_equals_every_adapter_alone(tiny: Tiny) -> None:
    backbone, peft = tiny("albert"), method("adapter:reduction=4")
    data = encoded(backbone, CLASSES, 20)
    settings = TrainSettings(epochs=2, batch_size=8, dropout=0.0)
    students = new_students(backbone, CLASSES, peft, [0, 1, 2], 1e-2)
    together = train_pack(backbone, peft, students, CLASSES, data, settings)
    for place, student in enumerate(students):
        alone = train_pack(backbone, peft, [student], CLASSES, data, settings)
        for name, tensor in alone.tensors.items():
            assert largest(tensor[0], student.tensors[name]) > 1e-3, "nothing was trained"
            assert largest(together.tensors[name][place], tensor[0]) <= 2e-4


def test_it_learns(tiny: Tiny) -> None:
    backbone, peft = tiny("bert"), method("adapter:reduction=2")
    data = encoded(backbone, CLASSES, 60)
    assert new_students(backbone, CLASSES, peft, [0], None)[0].learning_rate == 1e-3, "its own default"
    students = new_students(backbone, CLASSES, peft, [0], 2e-2)
    settings = TrainSettings(epochs=30, batch_size=20, dropout=0.0)
    trained = train_pack(backbone, peft, students, CLASSES, data, settings, validation=data)
    assert data.labels is not None
    majority = float(torch.bincount(data.labels).max()) / len(data)
    assert trained.scores[0].last["accuracy"] > majority + 0.2


@pytest.mark.parametrize(
    ("options", "adapters", "bottleneck"), [("", 2, 2), (":placement=feedforward", 1, 2), (":reduction=999", 2, 1)]
)
def test_sizes_need_no_model(options: str, adapters: int, bottleneck: int, tiny: Tiny) -> None:
    """Files are checked from what they say of their backbone: 2 layers of 32 features."""
    peft = method(f"adapter{options}")
    assert peft.stored_shapes(shape_of(tiny("bert").info)) == {
        "down_weight": (2, adapters, 32, bottleneck),
        "down_bias": (2, adapters, bottleneck),
        "up_weight": (2, adapters, bottleneck, 32),
        "up_bias": (2, adapters, 32),
    }


def test_the_layout_names_the_projections(tiny_folder: Callable[[str], Path]) -> None:
    for model_type, (attention, feedforward) in PROJECTIONS.items():
        model = plain_model(model_type, tiny_folder(model_type))
        found = layout(model)
        assert found.attention_outputs == tuple(attention.format(i) for i in range(len(found.layers)))
        assert found.feedforward_outputs == tuple(feedforward.format(i) for i in range(len(found.layers)))


def test_unknown_sublayers_are_refused_in_one_sentence(tiny: Tiny) -> None:
    """Before anything is trained, and where a file of such a prompt is used."""
    backbone, peft = tiny("bert"), method("adapter")
    bare = shape_of(backbone.info)
    tensors = {name: tensor[None] for name, tensor in peft.create(backbone, torch.Generator()).items()}
    with pytest.raises(BackboneError, match=r"sublayers are not known; use prefix or prompt, .*\.$"):
        peft.inject(tensors, bare)
    unknown = Backbone.__new__(Backbone)
    unknown.shape = bare
    with pytest.raises(BackboneError, match="sublayers are not known"):
        peft.create(unknown, torch.Generator())
