"""Which checks belong to which kind of method."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from panda_fusion.method import Method
from panda_fusion.testing.check import Check
from panda_fusion.testing.executor_checks import check_executor
from panda_fusion.testing.fusion_checks import check_fusion
from panda_fusion.testing.kd_checks import check_kd_loss
from panda_fusion.testing.option_checks import check_options, option_variants, setting
from panda_fusion.testing.peft_checks import check_peft_method
from panda_fusion.testing.similarity_checks import check_similarity
from panda_fusion.testing.teacher_checks import check_teacher

CHECKS: dict[str, Callable[..., Iterator[Check]]] = {
    "PEFT method": check_peft_method,
    "teacher": check_teacher,
    "fusion": check_fusion,
    "KD loss": check_kd_loss,
    "similarity": check_similarity,
    "executor": check_executor,
}
"""Kind word of a registry -> the check function of its methods."""


def checks_for(kind: str, method_type: type[Method], name: str = "checked") -> list[Check]:
    """All checks of a method: those of its options, then those of its kind with the default options and with
    every other choice that an option offers (`space=logits: ...`).

    Args:
        kind: the registry's kind word (`KD loss`).
        method_type: the class.
        name: the registered name, for methods that print it.

    Returns:
        The checks, not yet run.

    Raises:
        OptionError: an option cannot be written in a method string.
    """
    checks = list(check_options(method_type))
    for options in option_variants(method_type.Options):
        prefix = setting(options)
        for check in CHECKS[kind](method_type, options, name):
            checks.append(Check(f"{prefix}: {check.name}" if prefix else check.name, check.run))
    return checks
