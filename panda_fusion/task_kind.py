"""What a task kind means for labels: how they are read, which metrics score them, what to warn about.

A kind that this version can train is one entry of `KINDS`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from panda_fusion.errors import DataError
from panda_fusion.nearest import nearest_names
from panda_fusion.printable import printable
from panda_fusion.row_reader import CHOICES, answers, json_type
from panda_fusion.task import MetricName, Row, Task

Label = int | float | list[int] | list[tuple[str, int]]
"""A class index or a choice, a value, the tags of the words, the answers with their places."""
LabelReader = Callable[[object, Row], Label]
"""From the value in a row's label column, and what was read of the row, to its label; raises ValueError with the reason
(the rest of a sentence, without a full stop)."""


@dataclass(frozen=True)
class TaskKind:
    """What the engine must know about one kind.

    Attributes:
        metrics: metrics that can score it; the first is the default.
        label_reader: makes the label reader of a task.
        concerns: from a task and its training labels to sentences that a user should see.
    """

    metrics: tuple[MetricName, ...]
    label_reader: Callable[[Task], LabelReader]
    concerns: Callable[[Task, Sequence[Label]], list[str]]


def numbered_labels(labels: Sequence[str]) -> str:
    """Class names with their indices, shortened after twelve: `0 entailment, 1 neutral`."""
    shown = [f"{index} {_short(name)}" for index, name in enumerate(labels)]
    if len(shown) > 12:
        shown[11:-1] = ["..."]
    return ", ".join(shown)


def _short(value: object) -> str:
    return printable(str(value), 40)


def _class_reader(task: Task) -> LabelReader:
    names = {name: index for index, name in enumerate(task.labels)}
    known = numbered_labels(task.labels)
    # Class names "1", "2", "3" make the label 1 mean two things: the class of that name and the one at index
    # 1.
    ambiguous = any(name.lstrip("-").isdigit() and name != str(index) for name, index in names.items())

    def read(value: object, _row: Row) -> int:
        if type(value) is int:
            if ambiguous:
                raise ValueError(
                    f"label {_short(value)} is ambiguous, because the class names are numbers but not their "
                    f"own indices ({known}); write class names as strings"
                )
            if 0 <= value < len(names):
                return value
            raise ValueError(
                f"label {_short(value)} is not a class index from 0 to {len(names) - 1} ({known}); correct "
                "the label or the task's `labels`"
            )
        if isinstance(value, str):
            index = names.get(value)
            if index is not None:
                return index
            near = nearest_names(value, names, 1)
            hint = f", nearest {_short(near[0])!r}" if near else ""
            raise ValueError(
                f"label {_short(value)!r} is none of the task's labels ({known}{hint}); correct the label or "
                "the task's `labels`"
            )
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"label is NaN; write a class index or a class name ({known})")
        raise ValueError(
            f"label must be a class index (an integer) or a class name ({known}), found {json_type(value)}; "
            "correct the label"
        )

    return read


def _number_reader(task: Task) -> LabelReader:
    def read(value: object, _row: Row) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"label must be a number, found {json_type(value)}; correct the label")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            found = "NaN" if math.isnan(number) else "infinite"
            raise ValueError(f"label is {found}; write a finite number or remove the row")
        return number

    return read


def _class_concerns(task: Task, labels: Sequence[Label]) -> list[str]:
    counts = Counter(cast("Sequence[int]", labels))
    if len(counts) == 1:
        (only,) = counts
        name = _short(task.labels[int(only)])
        return [f"All {len(labels)} training rows have the label {name!r}; there is nothing to learn."]
    missing = [name for index, name in enumerate(task.labels) if index not in counts]
    return [f"No training row has the label {_short(name)!r}." for name in missing]


def _number_concerns(task: Task, labels: Sequence[Label]) -> list[str]:
    if len(set(cast("Sequence[float]", labels))) == 1:
        return [f"All {len(labels)} training rows have the value {labels[0]}; there is nothing to learn."]
    return []


def _choice_reader(task: Task) -> LabelReader:
    def read(value: object, row: Row) -> int:
        choices = cast("list[str]", row[CHOICES])
        most = len(choices) - 1
        if isinstance(value, str | list):  # the text of the right choice, or of all right ones
            for right in [value] if isinstance(value, str) else value:
                if right in choices:
                    return choices.index(right)
            raise ValueError(f"answer {_short(value)!r} is none of the row's choices; correct the row")
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(
                f"label {_short(value)} is not the index of one of the row's choices, 0 to {most}; correct the label"
            )
        return value

    return read


def _tag_reader(task: Task) -> LabelReader:
    read_one = _class_reader(task)

    def read(value: object, row: Row) -> list[int]:
        words = len(cast("list[str]", row[task.inputs[0]]))
        if not isinstance(value, list):
            raise ValueError(f"column {task.label!r} must be a list of tags, found {json_type(value)}")
        if len(value) != words:
            raise ValueError(
                f"there are {len(value)} tags in column {task.label!r} for {words} words in column {task.inputs[0]!r}; "
                "give every word one tag"
            )
        return [cast(int, read_one(tag, row)) for tag in value]

    return read


def _answer_reader(task: Task) -> LabelReader:
    def read(value: object, row: Row) -> list[tuple[str, int]]:
        return answers(value, cast(str, row[task.inputs[1]]), task.columns.no_answer)

    return read


def _no_concerns(_task: Task, _labels: Sequence[Label]) -> list[str]:
    return []


KINDS: dict[str, TaskKind] = {
    "classification": TaskKind(
        metrics=("accuracy", "f1", "macro_f1", "matthews"),
        label_reader=_class_reader,
        concerns=_class_concerns,
    ),
    "regression": TaskKind(
        metrics=("pearson_spearman",),
        label_reader=_number_reader,
        concerns=_number_concerns,
    ),
    "multiple-choice": TaskKind(metrics=("accuracy",), label_reader=_choice_reader, concerns=_no_concerns),
    "token-classification": TaskKind(metrics=("span_f1", "accuracy"), label_reader=_tag_reader, concerns=_no_concerns),
    "extractive-qa": TaskKind(metrics=("squad",), label_reader=_answer_reader, concerns=_no_concerns),
}


def task_kind(kind: str, task: str) -> TaskKind:
    """The entry of a kind.

    Args:
        kind: one of `panda_fusion.task.Kind`.
        task: name of the task, for the message.

    Raises:
        DataError: this version does not support the kind yet.
    """
    if kind not in KINDS:
        raise DataError(
            f"Task {task!r} is of kind {kind!r}, which is not supported yet by this version; it supports "
            f"{' and '.join(KINDS)}."
        )
    return KINDS[kind]


def check_task(task: Task) -> Task:
    """Check what a task's types cannot express, and give the task back.

    Empty `labels` of a classification pass: they may still come from the data (`panda_fusion.task_labels`).

    Raises:
        DataError: its kind is not supported yet, its columns clash, or labels and metric do not fit the kind.
    """
    kind = task_kind(task.kind, task.name)
    if "" in task.inputs or not task.label:
        raise DataError(f"Task {task.name!r} has a column without a name; name every column of `inputs` and `label`.")
    if len({*task.inputs, task.label}) <= len(task.inputs):
        raise DataError(
            f"Task {task.name!r} names a column twice (`inputs` {', '.join(task.inputs)}; `label` "
            f"{task.label}); name different columns."
        )
    if task.metric not in kind.metrics:
        raise DataError(
            f"Metric {task.metric!r} of task {task.name!r} does not fit the kind {task.kind!r}; set `metric` "
            f"to {' or '.join(kind.metrics)}."
        )
    if task.kind in ("regression", "multiple-choice", "extractive-qa") and task.labels:
        raise DataError(f"Task {task.name!r} is a {task.kind} task, which has no class names; remove its `labels`.")
    _check_columns(task)
    if task.kind == "classification" and task.labels:
        if len(task.labels) < 2 or len(set(task.labels)) < len(task.labels) or "" in task.labels:
            raise DataError(
                f"Task {task.name!r} has the `labels` {list(task.labels)}; give at least two different class names."
            )
        if task.metric == "f1" and len(task.labels) != 2:
            raise DataError(
                f"Metric 'f1' is the F1 of class 1 of two and task {task.name!r} has {len(task.labels)} "
                "classes; set `metric` to macro_f1."
            )
    return task


def _check_columns(task: Task) -> None:
    """Check what a kind needs of `inputs` and `columns`."""
    if task.kind == "multiple-choice" and not task.columns.choices:
        raise DataError(
            f"Task {task.name!r} is a multiple-choice task without choices; name their column in `inputs` as "
            '"choices", or their columns under [columns] as `choices`.'
        )
    if task.kind == "token-classification" and len(task.inputs) != 1:
        raise DataError(f"Task {task.name!r} tags words, so `inputs` must name their column and no other.")
    if task.kind == "extractive-qa" and len(task.inputs) != 2:
        raise DataError(f"Task {task.name!r} finds answers, so `inputs` must name two columns: question and context.")
    if task.metric == "span_f1" and task.labels and not any(name.startswith("B-") for name in task.labels):
        raise DataError(
            f"Metric 'span_f1' of task {task.name!r} needs tags like B-PER and I-PER, and its `labels` have none; set "
            "`metric` to accuracy."
        )
