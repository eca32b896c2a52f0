"""Tensors that are too large for memory: in a file, of which a part at a time is read or written."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from panda_fusion.errors import OutputError
from panda_fusion.printable import printable

PART_BYTES = 2**24
"""What is read at a time where a whole tensor is gone through; more than a disk needs to be read at full speed."""

Place = slice | torch.Tensor | tuple[slice | torch.Tensor, ...]


class LargeTensor:
    """A float32 tensor in a memory-mapped file. Indexing it gives an ordinary tensor on the CPU, which is a copy.

    Pages that were touched go back after every access, so what is resident at any time is one part. A temporary file
    has no name: its space is free again once the last reference is gone, however the process ends.

    Attributes:
        shape: sizes of the axes.
        dtype: torch.float32.
    """

    dtype = torch.float32

    def __init__(self, mapping: mmap.mmap, tensor: torch.Tensor) -> None:
        self._mapping = mapping
        self._tensor = tensor
        self.shape = tuple(tensor.shape)

    @classmethod
    def temporary(cls, shape: Sequence[int], folder: Path | None = None) -> LargeTensor:
        """A new tensor of zeros.

        Args:
            shape: sizes of the axes, at least one element in all.
            folder: where its file lies, made if it is missing; None, or where that folder cannot be written: the
                system's folder for temporary files.

        Raises:
            OutputError: there is no room for it.
        """
        size = 4 * math.prod(shape)
        for place in (folder, None):
            try:
                if place is not None:
                    place.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=place) as file:
                    _reserve(file, size)
                    return cls._map(mmap.mmap(file.fileno(), size), shape, 0)
            except OSError as error:
                if place is None:
                    raise OutputError(
                        f"{size / 2**30:.1f} GiB are needed in a temporary file and {printable(tempfile.gettempdir())} "
                        f"does not take them ({(error.strerror or str(error)).lower()}); make room, or name another "
                        "folder in TMPDIR."
                    ) from error
        raise AssertionError("unreachable")

    @classmethod
    def of_file(cls, path: Path, shape: Sequence[int], offset: int) -> LargeTensor:
        """The tensor that lies in a file from byte `offset` on, little-endian; the file never changes.

        Raises:
            OSError: it cannot be read.
        """
        with open(path, "rb") as file:
            return cls._map(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), shape, offset)

    @classmethod
    def _map(cls, mapping: mmap.mmap, shape: Sequence[int], offset: int) -> LargeTensor:
        flat = torch.frombuffer(mapping, dtype=torch.float32, count=math.prod(shape), offset=offset)
        return cls(mapping, flat.view(*shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, place: Place) -> torch.Tensor:
        made = self._tensor[place].clone(memory_format=torch.contiguous_format)
        self._release()
        return made

    def __setitem__(self, place: Place, values: torch.Tensor) -> None:
        self._tensor[place] = values
        self._release()

    def part(self, place: slice) -> LargeTensor:
        """A slice of the first axis in the same file: what is written to it is written to this tensor."""
        return LargeTensor(self._mapping, self._tensor[place])

    def parts(self) -> Iterator[torch.Tensor]:
        """All elements in order, as flat tensors of up to PART_BYTES."""
        flat = self._tensor.view(-1)
        for first in range(0, len(flat), PART_BYTES // 4):
            yield flat[first : first + PART_BYTES // 4].clone()
            self._release()

    def _release(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):  # of a mapped file: the pages stay in the file, and in the system's cache
            self._mapping.madvise(mmap.MADV_DONTNEED)


def _reserve(file: BinaryIO, size: int) -> None:
    """Take the disk space now: a write to a mapping that finds none kills the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    zeros = bytes(PART_BYTES)
    for first in range(0, size, PART_BYTES):
        file.write(zeros[: size - first])
    file.flush()
