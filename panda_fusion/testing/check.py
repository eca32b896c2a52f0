"""A named check, its result, and what a failing check raises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


class ConformanceError(AssertionError):
    """A method breaks its contract; the message says which part, and what was found."""


@dataclass(frozen=True)
class Check:
    """One check of one method.

    Attributes:
        name: what is checked, in words.
        run: raises ConformanceError (or whatever the method itself raises) where it fails.
    """

    name: str
    run: Callable[[], None]

    def __str__(self) -> str:
        return self.name


class CheckResult(NamedTuple):
    """What came of a check: its name, whether it passed, and what was wrong (empty if nothing)."""

    name: str
    passed: bool
    message: str


def require(condition: object, message: str) -> None:
    """Raise ConformanceError with the message unless the condition holds (also under `python -O`)."""
    if not condition:
        raise ConformanceError(message)


def run_checks(checks: Iterable[Check]) -> Iterator[CheckResult]:
    """Run checks one after the other; whatever one of them raises is its failure, and the others go on."""
    for check in checks:
        try:
            check.run()
        except ConformanceError as error:
            yield CheckResult(check.name, False, str(error))
        except Exception as error:  # a broken method may raise anything
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
            yield CheckResult(check.name, False, message)
        else:
            yield CheckResult(check.name, True, "")
