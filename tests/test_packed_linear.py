"""Packed linear layers against the plain ones they are made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from panda_fusion import packed_linear
from panda_fusion.backbone import load_backbone
from panda_fusion.packed_linear import PackedLinear, can_pack, pack_linear_layers
from panda_fusion.replaced_weights import replaced_weights
from panda_fusion.testing import make_tiny_backbone

pytestmark = pytest.mark.skipif(not can_pack(), reason="this PyTorch or processor has no bfloat16 products by oneDNN")

ROUNDING = 2**-7
"""One bfloat16 rounding, relative: the plain layer rounds before it adds the bias where rows do not lie in a row."""


def layer(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(inputs * outputs)
    return nn.Linear(inputs, outputs, bias=bias).bfloat16().requires_grad_(False)


INPUTS = {
    "rows in a row": lambda width: torch.randn(5, 7, width).bfloat16(),
    "rows from elsewhere": lambda width: torch.randn(7, 5, width).bfloat16().transpose(0, 1),
    "one token of each": lambda width: torch.randn(5, 9, width).bfloat16()[:, :1],
    "one row": lambda width: torch.randn(width).bfloat16(),
    "no row": lambda width: torch.randn(0, width).bfloat16(),
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (33, 7), (1, 5), (384, 1536)])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradient_are_those_of_the_plain_layer(kind: str, inputs: int, outputs: int, bias: bool) -> None:
    plain = layer(inputs, outputs, bias)
    packed = PackedLinear(plain)
    torch.manual_seed(1)
    data = INPUTS[kind](inputs)
    results = []
    for one in (plain, packed):
        own = data.detach().clone().requires_grad_()
        output = one(own)
        (output.float() ** 2).sum().backward()
        results.append((output.detach(), own.grad))
    with torch.inference_mode():
        assert torch.equal(packed(data), results[1][0])
    for expected, found in zip(*results, strict=True):
        assert expected is not None
        torch.testing.assert_close(found, expected, rtol=2 * ROUNDING, atol=2 * ROUNDING)


def test_weights_in_their_place_are_used() -> None:
    model = nn.Sequential(layer(16, 8))
    model[0] = PackedLinear(model[0])  # type: ignore[arg-type]
    data = torch.randn(3, 16).bfloat16()
    before = model(data)
    with replaced_weights(model, {"0.weight": torch.zeros(8, 16).bfloat16().requires_grad_()}):
        assert torch.equal(model(data), model[0].bias.expand(3, 8))  # type: ignore[union-attr, operator]
    assert torch.equal(model(data), before)


def test_names_of_parameters_stay_the_same() -> None:
    plain = nn.Sequential(layer(16, 8), layer(8, 4, bias=False))
    names = {name: id(parameter) for name, parameter in plain.named_parameters()}
    assert pack_linear_layers([plain])
    assert {name: id(parameter) for name, parameter in plain.named_parameters()} == names
    assert not list(plain.buffers())
    assert all(type(child) is PackedLinear for child in plain)


def test_large_weights_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "LARGEST", 2 * 16 * 8 - 1)
    plain = nn.Sequential(layer(16, 8))
    assert not pack_linear_layers([plain])
    assert type(plain[0]) is nn.Linear


@pytest.mark.parametrize("model_type", ["bert", "opt", "llama", "t5"])
def test_a_bfloat16_backbone_is_packed_and_a_float32_one_is_not(model_type: str, tmp_path: Path) -> None:
    folder = make_tiny_backbone(model_type, tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        backbone = load_backbone(str(folder), device=torch.device("cpu"), dtype=dtype)
        layers = [backbone._model.get_submodule(name) for name in backbone.shape.layer_modules]
        linear = [type(module) for one in layers for module in one.modules() if isinstance(module, nn.Linear)]
        assert linear
        assert set(linear) == {PackedLinear if dtype == torch.bfloat16 else nn.Linear}


def test_where_the_operators_are_missing_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(weight: torch.Tensor) -> torch.Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(packed_linear, "_packed", missing)
    plain = nn.Sequential(layer(16, 8))
    assert not pack_linear_layers([plain])
    assert type(plain[0]) is nn.Linear
