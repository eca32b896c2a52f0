"""What a task's rows look like: sizes, class balance, text lengths, first rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from panda_fusion.row_reader import CHOICES
from panda_fusion.rows import Split, TaskData
from panda_fusion.task import Row, Task


@dataclass(frozen=True)
class Words:
    """Lengths of one column's texts in words (separated by white space).

    Attributes:
        median: half of the texts have at most so many words.
        percentile_95: 95 % of the texts have at most so many words.
        longest: words of the longest text.
        empty: texts without a word.
    """

    median: int
    percentile_95: int
    longest: int
    empty: int


@dataclass(frozen=True)
class Values:
    """The labels of a regression."""

    least: float
    mean: float
    greatest: float


@dataclass(frozen=True)
class SplitSummary:
    """One split.

    Attributes:
        rows: how many.
        classes: class name -> rows, in the order of the labels; empty for a regression.
        values: None for a classification.
        words: input column -> text lengths.
    """

    rows: int
    classes: dict[str, int]
    values: Values | None
    words: dict[str, Words]


@dataclass(frozen=True)
class TaskSummary:
    """Both splits.

    Attributes:
        train: the training set.
        validation: the validation set.
        shared: validation rows whose texts, all columns together, also occur in train.
        examples: the first rows of train, labels as names.
    """

    train: SplitSummary
    validation: SplitSummary
    shared: int
    examples: tuple[Row, ...]


def summarise(data: TaskData, examples: int = 3) -> TaskSummary:
    """Summarise a task's rows.

    Args:
        data: the task with both splits.
        examples: how many rows to show.
    """
    seen = set(_keys(data.train))
    shared = sum(key in seen for key in _keys(data.validation))
    return TaskSummary(
        train=_summarise_split(data.task, data.train),
        validation=_summarise_split(data.task, data.validation),
        shared=shared,
        examples=tuple(_row(data.task, data.train, index) for index in range(min(examples, len(data.train)))),
    )


def _summarise_split(task: Task, split: Split) -> SplitSummary:
    labels = split.labels
    tags = [tag for row in labels for tag in row] if task.kind == "token-classification" else labels
    counts = Counter(tags) if task.labels else Counter()
    return SplitSummary(
        rows=len(split),
        classes={name: counts[index] for index, name in enumerate(task.labels)},
        values=Values(min(labels), fmean(labels), max(labels)) if task.kind == "regression" else None,
        words={column: _words(texts) for column, texts in zip(task.inputs, split.texts, strict=False)},
    )


def _keys(split: Split) -> Iterator[tuple[object, ...]]:
    """What makes two rows the same: all texts, and the choices."""
    columns: list[list[Any]] = [*split.texts, *([] if split.choices is None else [split.choices])]
    for row in zip(*columns, strict=True):
        yield tuple(tuple(value) if isinstance(value, list) else value for value in row)


def _words(texts: list[Any]) -> Words:
    lengths = sorted(len(text if isinstance(text, list) else text.split()) for text in texts)

    def at_most(share: float) -> int:
        return lengths[math.ceil(share * len(lengths)) - 1]

    return Words(median=at_most(0.5), percentile_95=at_most(0.95), longest=lengths[-1], empty=lengths.count(0))


def _row(task: Task, split: Split, index: int) -> Row:
    row: Row = {column: texts[index] for column, texts in zip(task.inputs, split.texts, strict=False)}
    if split.choices is not None:
        row[CHOICES] = split.choices[index]
    label = split.labels[index]
    if isinstance(label, list):
        row[task.label] = [task.labels[tag] for tag in label] if task.labels else label
    else:
        row[task.label] = task.labels[int(label)] if task.labels else label
    return row
