"""The rows of a task as columns, checked: what training, evaluation and prediction read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from panda_fusion.errors import DataError
from panda_fusion.prompt import TaskInfo
from panda_fusion.row_check import check_inputs, check_rows
from panda_fusion.row_reader import CHOICES
from panda_fusion.row_source import file_source, find_rows
from panda_fusion.task import Row, SplitName, Task
from panda_fusion.task_kind import check_task, task_kind
from panda_fusion.task_labels import with_labels


@dataclass(frozen=True)
class Split:
    """Rows as columns.

    Attributes:
        texts: one list of M texts per input column (one or two); for token-classification a list of M lists of words,
            and a list of M predicates where the task has them.
        labels: M class indices or choices, M floats (regression), M lists of tags, M lists of answers.
        choices: M lists of choices (multiple-choice); None for other kinds.
    """

    texts: tuple[list[Any], ...]
    labels: list[Any]
    choices: list[list[str]] | None = None

    def __len__(self) -> int:
        return len(self.texts[0])

    def select(self, indices: Sequence[int]) -> Split:
        """The rows at these indices, in the order given."""
        return Split(
            texts=tuple([column[index] for index in indices] for column in self.texts),
            labels=[self.labels[index] for index in indices],
            choices=None if self.choices is None else [self.choices[index] for index in indices],
        )


@dataclass(frozen=True)
class TaskData:
    """A task with both splits.

    Attributes:
        task: the task; `labels` filled in where they came from the data.
        train: the training set.
        validation: the set that scores are reported on.
        warnings: sentences that a user should see, such as a class without a training row.
    """

    task: Task
    train: Split
    validation: Split
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class DataReport:
    """What `check_task_data` found.

    Attributes:
        rows: rows read per split, good or bad; a split that could not be opened is left out.
        problems: the first problems, one sentence each, with file and line.
        total: how many problems there are.
        warnings: as in `TaskData`, when there are no problems.
    """

    rows: dict[str, int]
    problems: tuple[str, ...]
    total: int
    warnings: tuple[str, ...]


def load_rows(task: Task, split: SplitName, data_dir: Path | None) -> list[Row]:
    """Read and check one split.

    Args:
        task: the task, for example from `panda_fusion.task_source.resolve_task`.
        split: which split.
        data_dir: the folder given with --data; see `panda_fusion.row_source.find_rows` for what is taken
            when.

    Returns:
        Rows as `panda_fusion.row_check.check_rows` gives them.

    Raises:
        DataError: no rows to be had, or the first row that does not fit, by file and line.
    """
    task = check_task(with_labels(task, data_dir))
    rows: list[Row] = []
    for row in check_rows(task, find_rows(task, split, data_dir)):
        if isinstance(row, DataError):
            raise row
        rows.append(row)
    return rows


def load_split(task: Task, split: SplitName, data_dir: Path | None) -> Split:
    """`load_rows` as columns; for commands that need one split only."""
    return _as_columns(task, load_rows(task, split, data_dir), task.label)


def load_task_data(task: Task, data_dir: Path | None) -> TaskData:
    """Read and check both splits.

    Args:
        task: the task.
        data_dir: the folder given with --data.

    Raises:
        DataError: no rows to be had, or the first row that does not fit, by file and line.
    """
    task = check_task(with_labels(task, data_dir))
    train = load_split(task, "train", data_dir)
    validation = load_split(task, "validation", data_dir)
    concerns = task_kind(task.kind, task.name).concerns(task, train.labels)
    return TaskData(task=task, train=train, validation=validation, warnings=tuple(concerns))


def load_inputs(task: TaskInfo, path: Path) -> Split:
    """Read rows to predict on from a JSONL file; labels and other columns are ignored.

    Args:
        task: what the prompt file says about its task.
        path: the file.

    Returns:
        The rows in the order of the file, without labels.

    Raises:
        DataError: the task's kind is not supported, the file cannot be read or is empty, or the first row
            that does not fit, by line.
    """
    task_kind(task.kind, task.name)
    rows: list[Row] = []
    for row in check_inputs(task, file_source(path)):
        if isinstance(row, DataError):
            raise row
        rows.append(row)
    return _as_columns(task, rows, None)


def check_task_data(task: Task, data_dir: Path | None, limit: int = 20) -> DataReport:
    """Check both splits to the end and collect the problems instead of raising the first.

    Args:
        task: the task.
        data_dir: the folder given with --data.
        limit: how many problems to keep; all are counted.
    """
    problems: list[str] = []
    rows: dict[str, int] = {}
    labels: list[Any] = []
    total = 0

    def note(problem: DataError) -> None:
        nonlocal total
        total += 1
        if len(problems) < limit:
            problems.append(str(problem))

    try:
        task = check_task(with_labels(task, data_dir))
    except DataError as problem:
        note(problem)
        return DataReport(rows=rows, problems=tuple(problems), total=total, warnings=())
    for split in get_args(SplitName):
        try:
            for row in check_rows(task, find_rows(task, split, data_dir)):
                rows[split] = rows.get(split, 0) + 1
                if isinstance(row, DataError):
                    note(row)
                elif split == "train":
                    labels.append(row[task.label])
        except DataError as problem:
            note(problem)
    warnings = () if total else tuple(task_kind(task.kind, task.name).concerns(task, labels))
    return DataReport(rows=rows, problems=tuple(problems), total=total, warnings=warnings)


def _as_columns(task: Task | TaskInfo, rows: list[Row], label: str | None) -> Split:
    columns = task.inputs
    if task.kind == "token-classification" and task.columns.predicate:
        columns = (*columns, task.columns.predicate)
    return Split(
        texts=tuple([row[column] for row in rows] for column in columns),
        labels=[] if label is None else [row[label] for row in rows],
        choices=[cast("list[str]", row[CHOICES]) for row in rows] if task.kind == "multiple-choice" else None,
    )
