"""The base class of executors: where independent jobs run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from panda_fusion.method import Method

Job = TypeVar("Job")
Result = TypeVar("Result")


class Executor(Method):
    """Runs jobs that do not depend on each other, in this process, in others, or on other machines."""

    @abstractmethod
    def run(
        self, function: Callable[[Job], Result], jobs: Iterable[Job]
    ) -> Iterator[tuple[Job, Result | BaseException]]:
        """Run `function(job)` for every job and yield (job, result) as they end, in any order.

        A job that raises yields its exception as the result; the others go on.
        """

    def workers(self) -> int:
        """How many jobs it runs at a time; who hands in work cuts it into as many jobs."""
        return 1
