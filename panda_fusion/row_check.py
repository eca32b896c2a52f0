"""Checking rows against a task: every problem names the place and says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from panda_fusion.errors import DataError
from panda_fusion.json_lines import BadRow
from panda_fusion.printable import printable
from panda_fusion.row_source import RowSource
from panda_fusion.task import Row, Task
from panda_fusion.task_kind import LabelReader, json_type, task_kind


def check_rows(task: Task, source: RowSource) -> Iterator[Row | DataError]:
    """Check one split.

    Args:
        task: the task; a classification has its `labels`.
        source: the split's rows.

    Returns:
        For every row, in order: its input columns and its label (a class index or a float, under the task's
        label column), or the DataError that says what is wrong with it.

    Raises:
        DataError: the source cannot be opened or holds no rows.
    """
    return _checked(source, task.inputs, task.label, task_kind(task.kind, task.name).label_reader(task))


def check_inputs(columns: Sequence[str], source: RowSource) -> Iterator[Row | DataError]:
    """Like `check_rows` for rows that need no label: only the input columns are looked at and returned."""
    return _checked(source, columns, None, None)


def _checked(
    source: RowSource, columns: Sequence[str], label: str | None, read_label: LabelReader | None
) -> Iterator[Row | DataError]:
    empty = True
    for number, value in source.numbered():
        empty = False
        try:
            if isinstance(value, BadRow):
                raise ValueError(value.reason)
            if not isinstance(value, dict):
                raise ValueError(f"expected a JSON object, found {json_type(value)}; write one object per row")
            row: Row = {column: _text(value, column) for column in columns}
            if label is not None and read_label is not None:
                row[label] = read_label(_cell(value, label))
            yield row
        except ValueError as problem:
            yield DataError(f"{source.place(number)}: {problem}.")
    if empty:
        raise DataError(f"{source.name} holds no rows; write at least one.")


def _cell(row: Row, column: str) -> object:
    try:
        return row[column]
    except KeyError:
        found = ", ".join(printable(str(name), 40) for name in list(row)[:12]) or "none"
        raise ValueError(
            f"column {column!r} is missing (columns found: {found}); rename a column of the data or of the task"
        ) from None


def _text(row: Row, column: str) -> str:
    value = _cell(row, column)
    if not isinstance(value, str):
        advice = 'write "" for an empty text' if value is None else "write it as a JSON string"
        raise ValueError(f"column {column!r} must be a string, found {json_type(value)}; {advice}")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            raise ValueError(
                f"column {column!r} holds half of a surrogate pair (\\u{code:04x}); write the whole character"
            ) from None
    return value
