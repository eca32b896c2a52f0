"""Class names of a task that does not list them, taken from its data."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import msgspec

from panda_fusion.errors import DataError
from panda_fusion.hub_rows import hub_labels
from panda_fusion.printable import printable
from panda_fusion.row_source import find_rows
from panda_fusion.task import SplitName, Task


def with_labels(task: Task, data_dir: Path | None) -> Task:
    """Fill in the `labels` of a classification that has none; other tasks come back as they are.

    Both splits count, so that evaluation alone and training see the same classes. Strings are sorted (code
    point order), so that the order of the rows does not matter. Integers must be 0 to n - 1 without a gap and
    become the names "0" to "n-1"; a gap is an error, because only `labels` can tell whether it is a class or
    a mistake. Rows that do not hold a label are passed over here: reading the rows reports them.

    Raises:
        DataError: neither split is there, or the labels are of both types, have a gap, or are fewer than two.
    """
    if task.kind == "token-classification" and not task.labels:
        return msgspec.structs.replace(task, labels=_tags(task, data_dir))
    if task.kind != "classification" or task.labels:
        return task
    numbers: set[int] = set()
    names: set[str] = set()
    missing: list[DataError] = []
    for split in get_args(SplitName):
        try:
            for _, row in find_rows(task, split, data_dir).numbered():
                label = row.get(task.label) if isinstance(row, dict) else None
                if type(label) is int:
                    numbers.add(label)
                elif isinstance(label, str):
                    names.add(label)
        except DataError as error:
            missing.append(error)
    if len(missing) == len(get_args(SplitName)):
        raise missing[0]
    if numbers and names:
        raise DataError(
            f"Task {task.name!r} has labels of two types, such as {min(numbers)} and "
            f"{printable(min(names), 40)!r}; write them all as integers or all as strings, or list the class "
            "names with `labels` in task.toml."
        )
    if numbers and numbers != set(range(len(numbers))):
        found = ", ".join(str(number) for number in sorted(numbers)[:12])
        raise DataError(
            f"Task {task.name!r} has the integer labels {found}, expected 0 to n - 1 without a gap; list the "
            "class names with `labels` in task.toml or number the classes from 0."
        )
    found_names = tuple(str(number) for number in sorted(numbers)) or tuple(sorted(names))
    if len(found_names) < 2:
        raise DataError(
            f"Task {task.name!r} lists no `labels` and its rows hold {len(found_names)} different ones in "
            f"column {task.label!r}; list the class names with `labels` in task.toml or correct the data."
        )
    return msgspec.structs.replace(task, labels=found_names)


LABELS_FILE = "labels.json"
"""A list of tag names in integer order, beside the rows of a task whose rows hold integers."""


def _tags(task: Task, data_dir: Path | None) -> tuple[str, ...]:
    """Tag names: of labels.json beside the rows, of the Hub's features, or those that the rows hold as strings.

    Raises:
        DataError: there are none, or the file is no list of different names.
    """
    folders = [Path(task.folder)] if task.folder is not None else []
    if data_dir is not None:
        folders.append(data_dir / task.name)
    for folder in folders:
        path = folder / LABELS_FILE
        if path.is_file():
            try:
                names = msgspec.json.decode(path.read_bytes(), type=tuple[str, ...])
            except (msgspec.MsgspecError, OSError) as error:
                raise DataError(
                    f"{printable(str(path))} is not a JSON list of tag names ({printable(str(error), 100)}); "
                    "correct it."
                ) from error
            if len(names) < 2 or len(set(names)) < len(names):
                raise DataError(f"{printable(str(path))} must list two different tag names or more; correct it.")
            return names
    if not folders and task.hub is not None:
        return hub_labels(task.name, task.hub, task.label)
    found: set[str] = set()
    for split in get_args(SplitName):
        for _, row in find_rows(task, split, data_dir).numbered():
            tags = row.get(task.label) if isinstance(row, dict) else None
            found.update(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else None
    if len(found) < 2:
        raise DataError(
            f"Task {task.name!r} says nowhere what its tags are called; put a {LABELS_FILE} with their names in "
            "integer order beside the rows, or list them with `labels` in task.toml."
        )
    return tuple(sorted(found, key=lambda tag: (tag != "O", tag)))
