import pytest
import torch
from panda_fusion_example.layer_affine import LayerAffine, LayerAffineOptions

from panda_fusion.injection import Rows
from panda_fusion.testing import checks_for
from panda_fusion.testing.samples import PLAIN, SHARED, sample_backbone


@pytest.mark.parametrize("check", checks_for("PEFT method", LayerAffine), ids=str)
def test_conformance(check):
    check.run()


def test_starts_as_the_identity():
    backbone = sample_backbone(PLAIN)
    tensors = LayerAffine().create(backbone, torch.Generator())
    injection = LayerAffine().inject({name: tensor[None] for name, tensor in tensors.items()}, backbone.shape)
    output = torch.randn(2, 3, backbone.shape.hidden)
    assert list(injection.outputs) == list(backbone.shape.layer_modules)
    for transform in injection.outputs.values():
        torch.testing.assert_close(transform(output, Rows(1)), output, rtol=0, atol=0)


def test_scales_then_shifts_each_row_with_its_own_prompt():
    shape = sample_backbone(PLAIN).shape
    size = (2, shape.layers, shape.hidden)
    scale, shift = torch.ones(size), torch.zeros(size)
    scale[1], shift[1] = 3.0, 10.0
    transform = LayerAffine().inject({"scale": scale, "shift": shift}, shape).outputs["encoder.layer.1"]
    changed = transform(torch.full((3, 2, shape.hidden), 2.0), Rows(2, torch.tensor([1, 0, 1])))
    assert changed[:, 0, 0].tolist() == [16.0, 2.0, 16.0]


def test_without_scale_only_the_shift_is_trained():
    method = LayerAffine(LayerAffineOptions(scale=False))
    assert list(method.create(sample_backbone(PLAIN), torch.Generator())) == ["shift"]


def test_layers_that_share_a_module_have_a_transform_each():
    shape = sample_backbone(SHARED).shape
    shift = torch.arange(shape.layers).expand(shape.hidden, -1).T[None].float()
    (transforms,) = LayerAffine(LayerAffineOptions(scale=False)).inject({"shift": shift}, shape).outputs.values()
    changed = [transform(torch.zeros(1, 1, shape.hidden), Rows(1))[0, 0, 0] for transform in transforms]
    assert changed == [0, 1, 2]
