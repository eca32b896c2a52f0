"""Jobs for executors: in a module of their own, which a new process imports quickly."""

from __future__ import annotations

import os
import time
from pathlib import Path


class Unreadable(Exception):
    """Can be pickled, and not read again: as the errors of some HTTP libraries."""

    def __init__(self, *, text: str) -> None:
        super().__init__()


def job(name: str) -> str:
    """Return the name, die, or raise what cannot be read again."""
    if name == "dies":
        os._exit(3)
    if name == "unreadable":
        raise Unreadable(text="no")
    return name


def stay(path: str) -> None:
    """Write the number of this process, and stay."""
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)
