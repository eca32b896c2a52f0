import pytest
import torch
from panda_fusion_example.layer_affine import LayerAffine, LayerAffineOptions

from panda_fusion.injection import Rows
from panda_fusion.testing import checks_for
from panda_fusion.testing.samples import PLAIN


@pytest.mark.parametrize("check", checks_for("PEFT method", LayerAffine), ids=str)
def test_conformance(check):
    check.run()


def test_starts_as_the_identity():
    tensors = LayerAffine().create(PLAIN, torch.Generator())
    injection = LayerAffine().inject({name: tensor[None] for name, tensor in tensors.items()}, PLAIN)
    output = torch.randn(2, 3, PLAIN.hidden)
    assert list(injection.outputs) == list(PLAIN.layer_modules)
    for transform in injection.outputs.values():
        torch.testing.assert_close(transform(output, Rows(1)), output, rtol=0, atol=0)


def test_scales_then_shifts_each_row_with_its_own_prompt():
    shape = (2, PLAIN.layers, PLAIN.hidden)
    scale, shift = torch.ones(shape), torch.zeros(shape)
    scale[1], shift[1] = 3.0, 10.0
    transform = LayerAffine().inject({"scale": scale, "shift": shift}, PLAIN).outputs["layer.1"]
    changed = transform(torch.full((3, 2, PLAIN.hidden), 2.0), Rows(2, torch.tensor([1, 0, 1])))
    assert changed[:, 0, 0].tolist() == [16.0, 2.0, 16.0]


def test_without_scale_only_the_shift_is_trained():
    method = LayerAffine(LayerAffineOptions(scale=False))
    assert list(method.create(PLAIN, torch.Generator())) == ["shift"]
