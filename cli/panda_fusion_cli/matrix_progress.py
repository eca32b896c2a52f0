"""Progress of a matrix: a bar of cells on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from panda_fusion.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from panda_fusion.matrix.plan import Plan
    from panda_fusion.matrix.records import Records
    from panda_fusion.matrix.runner import Progress
    from panda_fusion_cli.output import Output

LOOK_SECONDS = 2.0
"""Time between two looks at the records of other processes."""


class MatrixProgress:
    """Shows cells done, the pack that runs, the rate and the time left, on stderr."""

    def __init__(self, output: Output, plan: Plan, before: Records) -> None:
        self._output = output
        self._cells = {cell.id for cell in plan.cells}
        self._rows = {cell.id: max(1, plan.training_rows(cell)) for cell in plan.cells}
        self._begun = time.perf_counter()
        self._done_before = len(self._cells & set(before.done))
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._said_waiting = False

    def start(self) -> None:
        """Put up the bar, where there is a terminal."""
        if self._output.quiet or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("cells {task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("matrix", total=len(self._cells), completed=self._done_before, rate="")
        self._bar.start()

    def stop(self) -> None:
        """Take it down."""
        if self._bar is not None:
            self._bar.stop()

    def report(self, progress: Progress) -> None:
        """Told by the runner of every pack that starts."""
        what = "waiting for other processes" if progress.waiting else "done"
        if progress.pack is not None:
            first = progress.pack.cells[0]
            systems = "+".join(sorted({cell.system for cell in progress.pack.cells}))
            what = f"{first.target}: {systems}, {len(progress.pack.cells)} cells"
        self._show(progress.done, progress.failed, what, progress.waiting)

    def watch(self, folder: Path, ended: threading.Event) -> None:
        """Follow the records that other processes write, until the event is set."""
        from panda_fusion.matrix.records import read_records

        seen = -1
        while not ended.wait(LOOK_SECONDS):
            records = read_records(folder)
            done = len(self._cells & set(records.done))
            if done != seen:
                seen = done
                self._show(done, len(self._cells & set(records.failed)), "workers", waiting=False)

    def _show(self, done: int, failed: int, what: str, waiting: bool) -> None:
        minutes = (time.perf_counter() - self._begun) / 60
        rate = max(0, done - self._done_before) / minutes if minutes > 0 else 0.0
        rest = len(self._cells) - done - failed
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, description=printable(what), rate=f"{rate:.1f}/min")
            return
        if self._output.quiet or (waiting and self._said_waiting):
            return
        self._said_waiting = waiting
        left = f", about {rest / rate:.0f} min left" if rate > 0 and rest > 0 else ""
        broken = f", {failed} failed" if failed else ""
        print(
            f"[{done}/{len(self._cells)} cells{broken}, {rate:.1f}/min{left}] {printable(what)}",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def matrix_progress(output: Output, plan: Plan, before: Records) -> Iterator[MatrixProgress]:
    """Show the progress of a matrix in the block."""
    progress = MatrixProgress(output, plan, before)
    progress.start()
    try:
        yield progress
    finally:
        progress.stop()
