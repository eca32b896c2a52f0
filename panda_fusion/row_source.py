"""Where the rows of a task come from: a folder, a package function, or the Hugging Face Hub."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from panda_fusion.errors import DataError, PluginError
from panda_fusion.hub_rows import hub_rows, hub_split
from panda_fusion.json_lines import read_json_lines
from panda_fusion.printable import printable
from panda_fusion.task import SplitName, Task


@dataclass(frozen=True)
class RowSource:
    """One split's rows before they are checked.

    Attributes:
        name: the file, or what else the rows come from.
        unit: what the numbers count: `line` of a file or `row`.
        numbered: opens the source and yields (number, value); a value may be a
            `panda_fusion.json_lines.BadRow`.
    """

    name: str
    unit: str
    numbered: Callable[[], Iterator[tuple[int, object]]]

    def place(self, number: int) -> str:
        """Where a row lies, for messages: `DIR/rte/train.jsonl line 3`."""
        return f"{self.name} {self.unit} {number}"


def file_source(path: Path) -> RowSource:
    """The rows of a JSONL file."""
    return RowSource(name=printable(str(path)), unit="line", numbered=lambda: read_json_lines(path))


def find_rows(task: Task, split: SplitName, data_dir: Path | None) -> RowSource:
    """Say where a task's rows come from. Nothing is read yet.

    In this order: the files beside task.toml, `DIR/<task>` of the data folder, the task's package function,
    the Hub. With a data folder the Hub is never asked: whoever passes --data wants no download.

    Args:
        task: the task.
        split: which split.
        data_dir: the folder given with --data, or None.

    Raises:
        DataError: no such folder or file, or the task says nowhere where its rows are.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise DataError(
            f"Data folder {printable(str(data_dir))} does not exist; pass a folder that holds "
            f"{task.name}/{_file_name(split)} with --data."
        )
    own = None if task.folder is None else Path(task.folder)
    given = None if data_dir is None else data_dir / task.name
    if own is not None and any((own / _file_name(name)).is_file() for name in get_args(SplitName)):
        return _split_file(own, split)
    if given is not None and (given.is_dir() or (own is None and task.rows is None)):
        return _split_file(given, split)
    if own is not None:
        return _split_file(own, split)
    if task.rows is not None:
        return _package_source(task, task.rows, split)
    return _hub_source(task, split)


def describe_source(task: Task) -> str:
    """Where a task's rows come from when no --data is given, in one short phrase."""
    if task.folder is not None:
        return task.folder
    if task.rows is not None:
        return "inside the package"
    if task.hub is not None:
        return task.hub.path if task.hub.config is None else f"{task.hub.path} ({task.hub.config})"
    return "--data DIR"


def _file_name(split: SplitName) -> str:
    return f"{split}.jsonl"


def _split_file(folder: Path, split: SplitName) -> RowSource:
    path = folder / _file_name(split)
    if path.is_file():
        return file_source(path)
    where, above = printable(str(path)), folder.parent / path.name
    if not folder.is_dir() and above.is_file():
        found = printable(str(above))
        raise DataError(f"File {where} does not exist but {found} does; pass the folder above it with --data.")
    raise DataError(f"File {where} does not exist; the folder of a task must hold train.jsonl and validation.jsonl.")


def _package_source(task: Task, target: str, split: SplitName) -> RowSource:
    def numbered() -> Iterator[tuple[int, object]]:
        try:
            function = pkgutil.resolve_name(target)
            rows = function(task.name, split)
        except Exception as error:  # a plugin's code: whatever it raises is its fault, not the user's
            raise PluginError(
                f"The rows of task {task.name!r} cannot be made by {target} ({type(error).__name__}: "
                f"{error}); report this to the author of the plugin."
            ) from error
        yield from enumerate(rows, start=1)

    return RowSource(name=f"{task.name} ({split})", unit="row", numbered=numbered)


def _hub_source(task: Task, split: SplitName) -> RowSource:
    hub = task.hub
    if hub is None:
        raise DataError(
            f"Task {task.name!r} does not say where its rows are; pass --data DIR, where DIR/{task.name} "
            "holds train.jsonl and validation.jsonl."
        )
    config = "" if hub.config is None else f" ({hub.config})"
    return RowSource(
        name=f"{hub.path}{config}, split {hub_split(hub, split)},",
        unit="row",
        numbered=lambda: hub_rows(task.name, hub, split),
    )
