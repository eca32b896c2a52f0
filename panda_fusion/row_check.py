"""Checking rows against a task: every problem names the place and says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from panda_fusion.errors import DataError
from panda_fusion.json_lines import BadRow
from panda_fusion.row_reader import Inputs, cell, input_reader, json_type
from panda_fusion.row_source import RowSource
from panda_fusion.task import Row, Task
from panda_fusion.task_kind import LabelReader, task_kind

if TYPE_CHECKING:
    from panda_fusion.prompt import TaskInfo


def check_rows(task: Task, source: RowSource) -> Iterator[Row | DataError]:
    """Check one split.

    Args:
        task: the task; one with classes or tags has its `labels`.
        source: the split's rows.

    Returns:
        For every row, in order: what `panda_fusion.row_reader` reads of it and its label (a class index, a float, a
        list of tags, a list of answers) under the task's label column, or the DataError that says what is wrong.

    Raises:
        DataError: the source cannot be opened or holds no rows.
    """
    return _checked(source, input_reader(task), task.label, task_kind(task.kind, task.name).label_reader(task))


def check_inputs(task: TaskInfo, source: RowSource) -> Iterator[Row | DataError]:
    """Like `check_rows` for rows that need no label: only the input columns are looked at and returned."""
    return _checked(source, input_reader(task), None, None)


def _checked(
    source: RowSource, read_inputs: Inputs, label: str | None, read_label: LabelReader | None
) -> Iterator[Row | DataError]:
    empty = True
    for number, value in source.numbered():
        empty = False
        try:
            if isinstance(value, BadRow):
                raise ValueError(value.reason)
            if not isinstance(value, dict):
                raise ValueError(f"expected a JSON object, found {json_type(value)}; write one object per row")
            row = read_inputs(value)
            if label is not None and read_label is not None:
                row[label] = read_label(cell(value, label), row)
            yield row
        except ValueError as problem:
            yield DataError(f"{source.place(number)}: {problem}.")
    if empty:
        raise DataError(f"{source.name} holds no rows; write at least one.")
