"""Conformance checks that built-in and third-party plugins both run, and tiny backbones to run them on.

A plugin's own tests are::

    import pytest
    from panda_fusion.testing import checks_for

    @pytest.mark.parametrize("check", checks_for("KD loss", MyLoss), ids=str)
    def test_conformance(check):
        check.run()

`checks_for` runs a kind's check function (`check_kd_loss`, ...) with the default options and with every other
choice that the options offer; call the function itself for one setting. `panda-fusion plugins check` runs the
same checks on everything that is registered. Importing this package imports neither torch nor transformers;
making and running checks does.
"""

from panda_fusion.plugin_manager import temporary_plugin
from panda_fusion.testing.backbones import MODEL_TYPES, make_tiny_backbone
from panda_fusion.testing.check import Check, CheckResult, ConformanceError, run_checks
from panda_fusion.testing.executor_checks import check_executor
from panda_fusion.testing.fusion_checks import check_fusion
from panda_fusion.testing.kd_checks import check_kd_loss
from panda_fusion.testing.kinds import checks_for
from panda_fusion.testing.option_checks import check_options, option_variants
from panda_fusion.testing.peft_checks import check_peft_method
from panda_fusion.testing.similarity_checks import check_similarity
from panda_fusion.testing.teacher_checks import check_teacher

__all__ = [
    "MODEL_TYPES",
    "Check",
    "CheckResult",
    "ConformanceError",
    "check_executor",
    "check_fusion",
    "check_kd_loss",
    "check_options",
    "check_peft_method",
    "check_similarity",
    "check_teacher",
    "checks_for",
    "make_tiny_backbone",
    "option_variants",
    "run_checks",
    "temporary_plugin",
]
