"""The tasks that ship inside the package, as `tiny/<name>`."""

from __future__ import annotations

from typing import cast

from panda_fusion import hookimpl
from panda_fusion.hookspecs import RegisterTask
from panda_fusion.task import Kind, MetricName, Row, SplitName, Task
from panda_fusion.tiny import tasks

PREFIX = "tiny/"


@hookimpl
def register_tasks(register: RegisterTask) -> None:
    for tiny in tasks.TASKS.values():
        register(
            Task(
                name=f"{PREFIX}{tiny.name}",
                kind=cast(Kind, tiny.kind),
                inputs=tiny.inputs,
                labels=tiny.labels,
                metric=cast(MetricName, tiny.metric),
                rows=f"{__name__}:rows",
                description=tiny.description,
            )
        )


def rows(name: str, split: SplitName) -> list[Row]:
    """The rows of a task, by its full name (`tiny/nli`)."""
    return [dict(row) for row in tasks.rows(name.removeprefix(PREFIX), split)]
