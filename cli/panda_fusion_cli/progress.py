"""Progress of training: a bar on a terminal, plain lines in a log. A lifecycle plugin like any other."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from panda_fusion import hookimpl
from panda_fusion.plugin_manager import temporary_plugin
from panda_fusion.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from panda_fusion_cli.output import Output


class TrainingProgress:
    """Shows the steps of whatever trains and the scores of every evaluation, on stderr."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = "training"

    def stage(self, name: str) -> None:
        """Say what the next training is for."""
        self._stage = name

    @hookimpl
    def run_started(self, run: Mapping[str, object]) -> None:
        what = f"{self._stage}: {printable(str(run['task']))}"
        if not sys.stderr.isatty():
            prompts = f", {run['prompts']} prompts" if run["prompts"] != 1 else ""
            self._say(f"{what}, {run['steps']} steps{prompts}, {run['device']} {run['precision']}")
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[score]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(what, total=cast(int, run["steps"]), score="")
        self._bar.start()

    @hookimpl
    def step_ended(self, step: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step)

    @hookimpl
    def evaluated(self, step: int, epoch: float, scores: Mapping[str, list[float]]) -> None:
        name, values = next(iter(scores.items()))
        shown = f"{sum(values) / len(values):.4f}"
        if len(values) > 1:
            shown += f" (mean of {len(values)})"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, score=f"{name} {shown}")
        else:
            self._say(f"  epoch {epoch:.4g}, step {step}: {name} {shown}")

    @hookimpl
    def run_ended(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def _say(self, text: str) -> None:
        if not self._output.quiet:
            print(text, file=sys.stderr, flush=True)


@contextmanager
def training_progress(output: Output) -> Iterator[TrainingProgress]:
    """Show the progress of whatever trains inside the block; with `--quiet` nothing is shown."""
    progress = TrainingProgress(output)
    if output.quiet:
        yield progress
        return
    with temporary_plugin(progress, "progress"):
        yield progress
