import math

import pytest
import torch
from panda_fusion_example.js import JensenShannon, JensenShannonOptions
from scipy.spatial.distance import jensenshannon

from panda_fusion.errors import OptionError
from panda_fusion.testing import checks_for


@pytest.mark.parametrize("check", checks_for("KD loss", JensenShannon), ids=str)
def test_conformance(check):
    check.run()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equals_scipy(temperature):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn((2, 3, 5, 4), generator=generator) * 3
    method = JensenShannon(JensenShannonOptions(temperature=temperature))
    found = method.loss(student, method.targets(teacher, "classification"), "classification")
    soft = [(logits.double() / temperature).softmax(-1).numpy() for logits in (student, teacher)]
    # scipy returns the distance, the square root of the divergence.
    expected = (jensenshannon(*soft, axis=-1) ** 2).mean(-1) * temperature**2
    torch.testing.assert_close(found.double(), torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_is_log_2_for_opposite_certain_outputs():
    student, teacher = torch.tensor([[[100.0, -100.0]]]), torch.tensor([[[-100.0, 100.0]]])
    method = JensenShannon()
    loss = method.loss(student, method.targets(teacher, "classification"), "classification")
    assert loss.item() == pytest.approx(math.log(2))


def test_regression_is_refused():
    with pytest.raises(OptionError, match="regression"):
        JensenShannon().check_kind("regression")
