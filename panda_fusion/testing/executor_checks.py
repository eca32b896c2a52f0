"""What an executor must fulfil."""

from __future__ import annotations

from collections.abc import Iterator

from panda_fusion.executor import Executor
from panda_fusion.method import Options
from panda_fusion.testing.check import Check, require


def check_executor(
    method_type: type[Executor], options: Options | None = None, name: str = "checked"
) -> Iterator[Check]:
    """Checks of an executor.

    Args:
        method_type: the class.
        options: its options; None takes the defaults.
        name: what the instance is called.
    """

    def run(jobs: list[int]) -> list[tuple[int, float | BaseException]]:
        executor = method_type(options)
        executor.name = name
        return list(executor.run(_reciprocal, jobs))

    def every_job() -> None:
        results = sorted(run([4, 1, 2]), key=lambda pair: pair[0])
        require(results == [(1, 1.0), (2, 0.5), (4, 0.25)], f"1/x for 4, 1, 2 gave {results}")

    def failing_job() -> None:
        results = dict(run([2, 0, 4]))
        require(
            isinstance(results.get(0), ZeroDivisionError),
            f"a job that raised ZeroDivisionError gave {results.get(0)!r} instead of the exception",
        )
        require(
            results.get(2) == 0.5 and results.get(4) == 0.25,
            f"beside a failing job, the others gave {results}",
        )

    def no_jobs() -> None:
        require(run([]) == [], "no jobs gave results")

    yield Check("every job's result comes back with its job", every_job)
    yield Check("a job that raises does not stop the others", failing_job)
    yield Check("no jobs, no results", no_jobs)


def _reciprocal(number: int) -> float:
    """At the top level of a module, so that it can be sent to another process."""
    return 1 / number
