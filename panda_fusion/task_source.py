"""From what a user types after --task to a task: a registered name, or a folder with task.toml."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta

from panda_fusion.errors import DataError
from panda_fusion.nearest import nearest_names
from panda_fusion.plugin_manager import tasks
from panda_fusion.printable import printable
from panda_fusion.row_reader import CHOICES
from panda_fusion.task import Columns, Kind, MetricName, Task
from panda_fusion.task_kind import check_task, task_kind
from panda_fusion.task_labels import with_labels

TASK_FILE = "task.toml"


class TaskFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What task.toml may hold.

    Attributes:
        kind: what is predicted.
        inputs: one or two text columns.
        label: the column with the label.
        labels: class names in integer order; without them, they are taken from the data.
        metric: how predictions are scored; without it, the kind's default.
        description: one line about the task.
        columns: further columns, as a table of its own.
    """

    kind: Kind
    inputs: Annotated[tuple[str, ...], Meta(min_length=1, max_length=2)]
    label: str = "label"
    labels: tuple[str, ...] = ()
    metric: MetricName | None = None
    description: str = ""
    columns: Columns = Columns()


_EXPECTED = {
    "kind": f"one of {', '.join(get_args(Kind))}",
    "inputs": "a list of one or two column names",
    "label": "a column name",
    "labels": "a list of class names (strings)",
    "metric": f"one of {', '.join(get_args(MetricName))}",
    "description": "a string",
    "columns": f"a table of {', '.join(Columns.__struct_fields__)}",
}


def resolve_task(name_or_folder: str | os.PathLike[str], data_dir: Path | None) -> Task:
    """Find a task.

    A registered name comes first (a folder of the same name is meant by `./name`), then a folder with
    task.toml, then `DIR/<name>/task.toml` inside the data folder.

    Args:
        name_or_folder: what the user typed after --task.
        data_dir: the folder given with --data, or None.

    Returns:
        The task, checked; a classification always has its `labels`.

    Raises:
        UnknownNameError: neither a registered name nor a folder; the message lists the nearest names.
        DataError: task.toml is missing or wrong, the kind is not supported yet, or labels cannot be taken
            from the data.
    """
    return check_task(with_labels(find_task(name_or_folder, data_dir), data_dir))


def find_task(name_or_folder: str | os.PathLike[str], data_dir: Path | None) -> Task:
    """Like `resolve_task`, but reads no rows: `labels` that task.toml leaves out stay empty."""
    name = os.fspath(name_or_folder)
    registry = tasks()
    if name in registry.names():
        return check_task(registry.get(name))
    for folder in (Path(name), *([data_dir / name] if data_dir is not None else [])):
        if name and (folder / TASK_FILE).is_file():
            return read_task_folder(folder)
    if name and Path(name).is_dir():
        raise DataError(
            f"Folder {printable(name)} holds no {TASK_FILE}; write one, or use a registered task "
            "(`panda-fusion tasks` lists them)."
        )
    if Path(name).is_absolute() or name.startswith(".") or name.endswith(("/", os.sep)):
        raise DataError(f"Task folder {printable(name)} does not exist; pass a folder that holds {TASK_FILE}.")
    return registry.get(name)  # raises, with the nearest names


def read_task_folder(folder: Path) -> Task:
    """Read `folder/task.toml`; the task is called what the folder is called.

    Returns:
        The task, checked; `labels` are empty where the file leaves them out.

    Raises:
        DataError: the file is missing or wrong; the message names the file and the key.
    """
    path = folder / TASK_FILE
    where = printable(str(path))
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise DataError(f"Cannot read {where}: {(error.strerror or str(error)).lower()}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"File {where} is not UTF-8 (byte {error.start + 1}); save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"File {where} is not TOML: {printable(str(error), 200)}; correct it.") from error
    try:
        read = msgspec.convert(document, TaskFile)
    except msgspec.ValidationError as error:
        raise DataError(f"{where}: {_what_is_wrong(document)}.") from error
    name = folder.resolve().name
    metric = read.metric or task_kind(read.kind, name).metrics[0]
    inputs, columns = read.inputs, read.columns
    if read.kind == "multiple-choice" and inputs[-1] == CHOICES and len(inputs) > 1:
        inputs, columns = inputs[:-1], msgspec.structs.replace(columns, choices=(CHOICES,))
    task = Task(
        name=name,
        kind=read.kind,
        inputs=inputs,
        label=read.label,
        labels=read.labels,
        metric=metric,
        folder=str(folder),
        description=read.description,
        columns=columns,
    )
    try:
        if "labels" in document and read.kind == "classification" and not read.labels:
            raise DataError("Key `labels` is an empty list; list the class names or remove the key.")
        return check_task(task)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _what_is_wrong(document: dict[str, Any]) -> str:
    """The first thing that keeps a document from being a `TaskFile`, named by its key."""
    for key in document:
        if key not in _EXPECTED:
            near = nearest_names(key, _EXPECTED, 1)
            advice = f"did you mean `{near[0]}`" if near else f"the keys are {', '.join(_EXPECTED)}"
            return f"key `{printable(key, 40)}` is unknown; {advice}"
    for field in msgspec.structs.fields(TaskFile):
        if field.name not in document:
            if field.required:
                return f"key `{field.name}` is missing; set it to {_EXPECTED[field.name]}"
            continue
        try:
            msgspec.convert(document[field.name], field.type)
        except msgspec.ValidationError:
            found = printable(repr(document[field.name]), 80)
            return f"key `{field.name}` is {found}; set it to {_EXPECTED[field.name]}"
    raise AssertionError("the document is a TaskFile")
