"""The executor for one machine: jobs in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from panda_fusion import hookimpl
from panda_fusion.errors import TrainingError
from panda_fusion.executor import Executor, Job, Result
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.method import Options

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class LocalOptions(Options, frozen=True, kw_only=True):
    """Options of `local`."""

    processes: Annotated[int, Meta(ge=1, le=1024, description="jobs at a time; 1 runs them in this process")] = 1


class Local(Executor):
    """Runs jobs in this process one after the other, or in up to `processes` fresh ones side by side.

    A process that dies takes no other job with it.
    """

    Options = LocalOptions
    options: LocalOptions

    def workers(self) -> int:
        return self.options.processes

    def run(
        self, function: Callable[[Job], Result], jobs: Iterable[Job]
    ) -> Iterator[tuple[Job, Result | BaseException]]:
        if self.options.processes == 1:
            for job in jobs:
                try:
                    yield job, function(job)
                except Exception as error:
                    yield job, error
            return
        yield from _side_by_side(function, list(jobs), self.options.processes)


def _side_by_side(function: Callable[[Any], Any], jobs: list[Any], most: int) -> Iterator[tuple[Any, Any]]:
    import multiprocessing
    from multiprocessing import connection

    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(jobs))
    running: dict[Any, tuple[Any, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < most:
                job = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(function, job, sender))
                process.start()
                sender.close()
                running[receiver] = (job, process)
            for ready in connection.wait(list(running)):
                job, process = running.pop(ready)
                try:
                    result = ready.recv()  # type: ignore[union-attr, call-arg]
                except (EOFError, OSError):
                    process.join()
                    result = TrainingError(
                        f"The process of a job ended with exit code {process.exitcode} and no result; it may have run "
                        "out of memory: run it again, with fewer processes if memory was short."
                    )
                except Exception as error:  # exceptions that can be pickled and not read again
                    result = TrainingError(f"A job's result cannot be read: {error}; see its output above.")
                process.join()
                yield job, result
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()


def _work(function: Callable[[Any], Any], job: Any, sender: Connection) -> None:
    """The body of a process: at the top level, so that it can be sent."""
    import threading

    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        result = function(job)
    except BaseException as error:
        result = error
    try:
        sender.send(result)
    except Exception as error:  # what cannot be pickled
        sender.send(RuntimeError(f"A job's result cannot be sent back: {error}"))


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: nobody would know that it goes on."""
    import multiprocessing
    import os
    from multiprocessing import connection

    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@hookimpl
def register_executors(register: RegisterMethod) -> None:
    register("local", Local, help="processes on this machine, or this process itself")
