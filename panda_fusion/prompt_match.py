"""Whether prompts fit a task and each other, told from what their files say, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from panda_fusion.errors import DataError, PromptFileError
from panda_fusion.printable import printable

if TYPE_CHECKING:
    from panda_fusion.prompt import TaskInfo
    from panda_fusion.task import Task

MOST_LABELS = 12
"""How many labels a message lists."""


def check_same_labels(where: str, info: TaskInfo, task: Task, advice: str) -> None:
    """Check that a prompt predicts what a task asks for.

    Args:
        where: what to call the prompt in an error, usually its path.
        info: the task that the prompt was trained on.
        task: the task that it is to be used for.
        advice: what to do otherwise; ends the message.

    Raises:
        DataError: kind or labels (names or order) differ.
    """
    if (task.kind, tuple(task.labels)) != (info.kind, tuple(info.labels)):
        raise DataError(
            f"Task {printable(task.name, 60)!r} is {_described(task.kind, task.labels)}, but prompt"
            f" {printable(where)} was trained on {printable(info.name, 60)!r},"
            f" {_described(info.kind, info.labels)}; {advice}."
        )


def check_one_method(methods: Sequence[tuple[str, str]]) -> None:
    """Check that source prompts share one PEFT method with the same options.

    Args:
        methods: per source what to call it in an error, usually its path, and its stored method string.

    Raises:
        PromptFileError: two differ.
    """
    (first, method), *others = methods
    for path, other in others:
        if other != method:
            raise PromptFileError(
                f"Sources must share one PEFT method and shape to be used together, but {printable(first)} is"
                f" {printable(method, 80)} and {printable(path)} is {printable(other, 80)}; transfer from"
                " them one at a time."
            )


def _described(kind: str, labels: Sequence[str]) -> str:
    if not labels:
        return f"a {kind}"
    shown = [printable(label, 40) for label in labels[:MOST_LABELS]]
    rest = f" and {len(labels) - MOST_LABELS} more" if len(labels) > MOST_LABELS else ""
    return f"a {kind} with labels {', '.join(shown)}{rest}"
