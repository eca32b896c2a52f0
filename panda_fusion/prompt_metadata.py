"""The metadata strings of a prompt file: typed in memory, JSON in the file, checked both ways."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, TypeVar, get_args

import msgspec

from panda_fusion import __version__
from panda_fusion.errors import PromptFileError
from panda_fusion.printable import printable
from panda_fusion.prompt import BackboneInfo, Lineage, TaskInfo
from panda_fusion.safetensors_header import check_nesting
from panda_fusion.task import Kind

FORMAT = "panda-fusion"
FORMAT_VERSION = 1
"""The version that is written, and the newest that is read."""
MAX_VALUE_BYTES = 2**20
"""The longest metadata value, in bytes of UTF-8."""
MAX_SIZE = 2**20
"""The largest size (of a layer, of the number of layers, ...) that a backbone's description may claim."""
MAX_LAYERS = 4096

_JSON_FIELDS = ("method", "backbone", "task", "training", "scores", "lineage")
_OPTIONAL_FIELDS = ("training", "scores", "lineage")
_WITH_LABELS = ("classification", "token-classification")

T = TypeVar("T")


class PromptMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Everything in a prompt file but its tensors; the attributes are those of `Prompt`."""

    method: str
    backbone: BackboneInfo
    task: TaskInfo
    training: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    lineage: Lineage = Lineage()


def encode_metadata(where: str, metadata: PromptMetadata) -> dict[str, str]:
    """The metadata strings of a file, in the current format version.

    Args:
        where: what to call the file in an error.
        metadata: what to write. Numbers that JSON lacks (NaN, infinities) become null.

    Raises:
        PromptFileError: it would not pass `decode_metadata`.
    """
    strings = {"format": FORMAT, "format_version": str(FORMAT_VERSION)}
    for name in _JSON_FIELDS:
        try:
            strings[name] = msgspec.json.encode(getattr(metadata, name), order="sorted").decode()
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise PromptFileError(
                f"{where}: {name} cannot be written as JSON ({printable(str(error), 200)}); keep to text,"
                " numbers, lists and dicts."
            ) from error
    decode_metadata(where, strings)
    return strings


def decode_metadata(where: str, strings: dict[str, str]) -> PromptMetadata:
    """Check the metadata strings of a file and decode them. Keys and fields that are not known are ignored.

    Args:
        where: what to call the file in an error.
        strings: the `__metadata__` of the file.

    Raises:
        PromptFileError: another format, a version that is not known, a value too long, nested too deep, of
            the wrong type or out of range.
    """
    _check_format(where, strings)
    for key, value in strings.items():
        if (size := len(value.encode())) > MAX_VALUE_BYTES:
            raise PromptFileError(
                f"{where}: metadata field {printable(key, 40)!r} has {size} bytes and at most"
                f" {MAX_VALUE_BYTES} are read; the file is damaged or was made to do harm."
            )
    missing = [name for name in _JSON_FIELDS if name not in strings and name not in _OPTIONAL_FIELDS]
    if missing:
        raise PromptFileError(f"{where} lacks the metadata field {missing[0]!r}; ask its author for a whole file.")
    metadata = PromptMetadata(
        method=_decode(where, strings, "method", str, ""),
        backbone=_decode(where, strings, "backbone", BackboneInfo, None),
        task=_decode(where, strings, "task", TaskInfo, None),
        training=_decode(where, strings, "training", dict[str, Any], {}),
        scores=_decode(where, strings, "scores", dict[str, Any], {}),
        lineage=_decode(where, strings, "lineage", Lineage, Lineage()),
    )
    _check_sizes(where, metadata.backbone)
    _check_task(where, metadata.task)
    return metadata


def _check_format(where: str, strings: dict[str, str]) -> None:
    found = strings.get("format")
    if found != FORMAT:
        says = "its metadata name no format" if found is None else f"its format is {printable(found, 40)!r}"
        raise PromptFileError(
            f"{where} is a safetensors file but no prompt of panda-fusion ({says}); a folder of PEFT comes in"
            " with `panda-fusion prompt import`."
        )
    version = strings.get("format_version", "")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise PromptFileError(
            f"{where} has the format version {printable(version, 40)!r} instead of a whole number; ask its"
            " author for a whole file."
        )
    if int(version) > FORMAT_VERSION:
        raise PromptFileError(
            f"{where} has format version {version} and panda-fusion {__version__} reads up to"
            f" {FORMAT_VERSION}; upgrade with `pip install --upgrade panda-fusion`."
        )


def _decode(where: str, strings: dict[str, str], name: str, kind: type[T], default: Any) -> T:
    if name not in strings:
        return default
    raw = strings[name].encode()
    try:
        check_nesting(raw)
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PromptFileError(
            f"{where}: metadata field {name!r} is not what it should be ({printable(str(error), 200)}); ask"
            " its author for a whole file."
        ) from error


def _check_sizes(where: str, info: BackboneInfo) -> None:
    # Sizes from a stranger decide how much is computed and allocated, so they are bounded first.
    bounds = {"layers": MAX_LAYERS}
    for name in ("hidden", "layers", "heads", "kv_heads", "head_dim", "embedding_size"):
        value = getattr(info, name)
        most = bounds.get(name, MAX_SIZE)
        if value is not None and not 1 <= value <= most:
            raise PromptFileError(f"{where} describes a backbone with {name} = {value}; 1 to {most} is possible.")


def _check_task(where: str, task: TaskInfo) -> None:
    if task.kind not in get_args(Kind):
        raise PromptFileError(
            f"{where} is for a task of kind {printable(task.kind, 40)!r}; this version knows"
            f" {', '.join(get_args(Kind))}."
        )
    if task.kind in _WITH_LABELS and not task.labels:
        raise PromptFileError(f"{where} is for a {task.kind} task and names no labels.")
    if len(set(task.labels)) != len(task.labels):
        raise PromptFileError(f"{where} names a label of its task twice.")
    # Task names find data folders and name output files; one from a stranger must not lead out of a folder.
    for path in (PurePosixPath(task.name), PureWindowsPath(task.name)):
        if not task.name or path.is_absolute() or path.drive or ".." in path.parts or "\0" in task.name:
            raise PromptFileError(
                f"{where} has the task name {printable(task.name, 60)!r}, which is not a plain name; ask its"
                " author for another file."
            )
