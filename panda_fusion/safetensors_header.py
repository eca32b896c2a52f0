"""Reading the header of a safetensors file from a stranger, within limits, before any tensor is read.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes, little-endian length N of the header; N
bytes of JSON, `{name: {dtype, shape, data_offsets}, ..., "__metadata__": {text: text}}`; the data.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from io import BufferedReader
from typing import Annotated

import msgspec
from msgspec import Meta

from panda_fusion.errors import PromptFileError
from panda_fusion.printable import printable

MAX_HEADER_BYTES = 4 * 2**20
"""The largest header that is read."""
MAX_DATA_BYTES = 2**32
"""The most tensor data that is read."""
MAX_NESTING = 32
"""How deep JSON from a file may nest."""

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_MAX_NAME = 256
_BRACKET_OR_STRING = re.compile(rb'"(?:[^"\\]|\\.?)*+(?:"|\Z)|[\[\]{}]', re.DOTALL)
_ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
_OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes it"),
    (b"\x80", "a pickle"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)

Dimension = Annotated[int, Meta(ge=0, le=2**40)]


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the header says about one tensor: safetensors dtype name, shape, and begin and end in the data."""

    dtype: str
    shape: tuple[Dimension, ...]
    data_offsets: tuple[Dimension, Dimension]


@dataclass(frozen=True)
class Header:
    """A header that passed every check.

    Attributes:
        tensors: name -> dtype, shape, place; the places cover the data without gap or overlap.
        metadata: the `__metadata__` strings.
        file_bytes: size of the whole file.
    """

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    file_bytes: int


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a file.

    Raises:
        PromptFileError: not there, no safetensors file, damaged, truncated, or beyond the limits.
    """
    where = printable(os.fspath(path))
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(32)
            length = int.from_bytes(start[:8], "little")
            if len(start) < 10 or start[8:9] != b"{":
                raise PromptFileError(f"{where} is not a safetensors file{_what_it_is(start)}.")
            if length > MAX_HEADER_BYTES:
                raise PromptFileError(
                    f"{where} announces a header of {length} bytes and at most {MAX_HEADER_BYTES} are read;"
                    " the file is damaged or was made to do harm."
                )
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise _cannot_read(path, error) from error
    if len(raw) < length:
        raise PromptFileError(
            f"{where} is truncated: its header has {length} bytes and only {len(raw)} are there; copy or"
            " download it again."
        )
    try:
        tensors, metadata = _decode_header(raw)
    except (msgspec.MsgspecError, ValueError) as error:
        raise PromptFileError(
            f"{where} has a damaged safetensors header ({printable(str(error), 200)}); copy or download it again."
        ) from error
    expected = 8 + length + _data_bytes(where, tensors)
    if size != expected:
        what = "is truncated" if size < expected else "has bytes behind its tensors"
        raise PromptFileError(
            f"{where} {what}: its header describes {expected} bytes and the file has {size}; copy or download it again."
        )
    return Header(tensors, metadata, size)


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a file for reading bytes; refuse folders, pipes and devices, which could block or never end.

    Raises:
        PromptFileError: it is no regular file, or cannot be read.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise PromptFileError(f"{printable(os.fspath(path))} is {kind}; name a file.")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        raise _cannot_read(path, error) from error


def is_plain_name(name: str) -> bool:
    """Whether a tensor name is like those of parameters: words of letters, digits, - and _ joined by dots."""
    return len(name) <= _MAX_NAME and _NAME.fullmatch(name) is not None


def check_nesting(raw: bytes) -> None:
    """Raise ValueError if JSON text nests deeper than MAX_NESTING. Linear in its length, no recursion."""
    depth = 0
    for match in _BRACKET_OR_STRING.finditer(raw):
        token = match[0]
        if token in (b"[", b"{"):
            depth += 1
            if depth > MAX_NESTING:
                raise ValueError(f"JSON nested deeper than {MAX_NESTING} levels")
        elif token in (b"]", b"}"):
            depth -= 1


def _decode_header(raw: bytes) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    check_nesting(raw)
    entries = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    metadata: dict[str, str] = {}
    if "__metadata__" in entries:
        metadata = msgspec.json.decode(entries.pop("__metadata__"), type=dict[str, str])
    for name in entries:
        if not is_plain_name(name):
            raise ValueError(f"tensor name {printable(name, 60)!r}")
    return {name: msgspec.json.decode(entry, type=TensorEntry) for name, entry in entries.items()}, metadata


def _data_bytes(where: str, tensors: dict[str, TensorEntry]) -> int:
    """Size of the data; raises PromptFileError where places overlap, leave gaps, or do not fit the shapes."""
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        item = _ITEM_BYTES.get(entry.dtype)
        if item is None:
            raise PromptFileError(
                f"{where}: tensor {name} has dtype {printable(entry.dtype, 20)}, which is not read; ask for float32."
            )
        size = item
        for dimension in entry.shape:
            size *= dimension
        if entry.data_offsets != (end, end + size):
            raise PromptFileError(
                f"{where} has a damaged safetensors header: tensor {name} should take bytes {end} to"
                f" {end + size} and is said to take {entry.data_offsets[0]} to {entry.data_offsets[1]}; copy"
                " or download it again."
            )
        end += size
    if end > MAX_DATA_BYTES:
        raise PromptFileError(f"{where} holds {end} bytes of tensors and at most {MAX_DATA_BYTES} are read.")
    return end


def _what_it_is(start: bytes) -> str:
    if not start:
        return ", it is empty"
    for magic, name in _OTHER_FORMATS:
        if start.startswith(magic):
            advice = "; pickles can run code and are never opened, ask for a .safetensors file"
            return f" but {name}" + (advice if name.startswith(("a zip", "a pickle")) else "")
    return ""


def _cannot_read(path: str | os.PathLike[str], error: OSError | ValueError) -> PromptFileError:
    reason = (getattr(error, "strerror", None) or str(error)).lower()
    return PromptFileError(f"Cannot read {printable(os.fspath(path))}: {reason}.")
