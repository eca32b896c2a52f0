"""Reading a JSONL file line by line: a bad line is reported with its number, and the rest is still read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from panda_fusion.errors import DataError
from panda_fusion.printable import printable

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read, and why: the rest of a sentence, without a full stop."""

    reason: str


def read_json_lines(path: Path) -> Iterator[tuple[int, object]]:
    """Read a UTF-8 JSONL file.

    Lines end at a line feed only (a text may hold other Unicode line separators); blank lines are skipped but
    counted; a byte order mark is ignored.

    Returns:
        Pairs of line number (from 1) and the line's JSON value, or a `BadRow` where the line is not JSON.

    Raises:
        DataError: the file cannot be opened or read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = line.removeprefix(_BOM) if number == 1 else line
                if not text.isspace() and text:
                    yield number, _parse(text)
    except OSError as error:
        raise DataError(f"Cannot read {printable(str(path))}: {(error.strerror or str(error)).lower()}.") from error


def _parse(line: bytes) -> object:
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    # The standard library says where a line breaks, and takes NaN, which a row's check then names properly.
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = line[error.start]
        return BadRow(f"byte {error.start + 1} of the line (0x{byte:02x}) is not UTF-8; save the file as UTF-8")
    except json.JSONDecodeError as error:
        return BadRow(f"the line is not JSON ({error.msg} at column {error.colno}); write one JSON object per line")
    except (ValueError, RecursionError) as error:
        return BadRow(f"the line cannot be read ({error}); write one JSON object per line")
