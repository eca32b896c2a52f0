"""The C library's heap, kept from one training step to the next.

Every step allocates and frees the same hundreds of megabytes. By default glibc gives large blocks back to the
system as soon as they are freed, which then maps them, fills them with zeros and takes a page fault for every four
kilobytes: a tenth of a step on four cores.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of mallopt(3)."""
_KEPT = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
_USUAL = ((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, 32 * 2**20), (_TRIM_THRESHOLD, 64 * 2**20))
"""Where glibc's own adjustment of both thresholds ends in a program with large blocks."""

_lock = threading.Lock()
_holders = 0


@contextmanager
def kept_heap() -> Iterator[None]:
    """Keep freed memory in the process for the length of the block; it goes back to the system at its end.

    Does nothing without glibc, or where the user has set its parameters in the environment.
    """
    global _holders
    libc = _glibc()
    if libc is None:
        yield
        return
    with _lock:
        _holders += 1
        if _holders == 1:
            _set(libc, _KEPT)
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if not _holders:
                _set(libc, _USUAL)
                libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc and left to its defaults."""
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return None
    try:
        libc = ctypes.CDLL(None)
        found = hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")
    except OSError:
        return None
    return libc if found else None


def _set(libc: ctypes.CDLL, values: tuple[tuple[int, int], ...]) -> None:
    for parameter, value in values:
        libc.mallopt(parameter, value)
