"""The records of a matrix: one line of JSON per finished cell, appended by any number of processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from filelock import FileLock

from panda_fusion.errors import OutputError
from panda_fusion.matrix_record import CellRecord
from panda_fusion.printable import printable

FILE = "records.jsonl"


@dataclass(frozen=True)
class Records:
    """What a records file holds.

    Attributes:
        done: the last finished record of every cell, by cell.
        failed: the last failed record of every cell that has not been finished.
        damaged: numbers of lines that are no records.
    """

    done: dict[str, CellRecord]
    failed: dict[str, CellRecord]
    damaged: tuple[int, ...]


def read_records(folder: Path) -> Records:
    """Read the records of a results folder; no file yet is no records.

    Raises:
        OutputError: the file cannot be read.
    """
    path = folder / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Records({}, {}, ())
    except OSError as error:
        raise OutputError(f"Cannot read {printable(str(path))}: {(error.strerror or str(error)).lower()}.") from error
    done: dict[str, CellRecord] = {}
    failed: dict[str, CellRecord] = {}
    damaged = []
    decoder = msgspec.json.Decoder(CellRecord)
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            damaged.append(number)
            continue
        (done if record.status == "done" else failed)[record.cell] = record
    return Records(done, {cell: record for cell, record in failed.items() if cell not in done}, tuple(damaged))


def append_records(folder: Path, records: Sequence[CellRecord]) -> None:
    """Append records, whole: after this call they are on the disk.

    A line that a killed process left half written is ended first, so that it spoils no other.

    Raises:
        OutputError: they cannot be written (a full disk, say); the file is as it was before.
    """
    path = folder / FILE
    lines = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
    try:
        # Unbuffered: what a full disk did not take must not be written again when the file is closed.
        with FileLock(folder / f"{FILE}.lock"), path.open("ab", buffering=0) as file:
            before = file.tell()
            rest = memoryview(lines if not before or _ends_a_line(path) else b"\n" + lines)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, before)
                raise
    except OSError as error:
        raise OutputError(
            f"Cannot write {printable(str(path))}: {(error.strerror or str(error)).lower()}; the records that it "
            "holds are kept, so make room and run the same command again."
        ) from error


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
