"""Writing files so that a reader sees the old file or the whole new one, never half of one."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from panda_fusion.errors import OutputError
from panda_fusion.printable import printable


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; it becomes `path` when the block ends well.

    Missing folders are made. The data reach the disk before the name changes. If the block raises (also
    Ctrl-C), an existing file stays as it was, and neither the temporary file nor a new folder is left.
    A symbolic link is followed: the file that it points to is replaced, not the link.

    Args:
        path: the file to write.

    Yields:
        An empty file beside it, to be filled under that very name.

    Raises:
        OutputError: the place cannot be written.
    """
    target = _target(path)
    folders: list[Path] = []
    temporary: Path | None = None
    done = False
    try:
        folders = _make_folders(target.parent)
        temporary = _new_file(target)
        yield temporary
        _sync(temporary)
        if target.exists():
            os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
        done = True
        if os.name == "posix":
            _sync(target.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if not done:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            _remove_folders(folders)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically (see `atomic_path`). Raises OutputError where it cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically (see `atomic_path`), line ends as given.

    Raises:
        OutputError: it cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out now, by really writing, whether a file can be written to `path` later. Leaves nothing behind.

    Missing folders are made for the test and taken away again; `atomic_path` makes them when it writes.

    Raises:
        OutputError: `path` is a folder or a device, or a file cannot be made or replaced there.
    """
    target = _target(path)
    folders: list[Path] = []
    temporary: Path | None = None
    try:
        folders = _make_folders(target.parent)
        temporary = _new_file(target)
        temporary.write_bytes(b"\0" * 4096)
        _sync(temporary)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        _remove_folders(folders)


def _target(path: str | os.PathLike[str]) -> Path:
    """The real file behind `path`, after refusing what os.replace would fail on or should not touch."""
    shown = printable(os.fspath(path))
    if os.fspath(path) == "":
        raise OutputError("The output path is empty; name a file to write.")
    if os.fspath(path).endswith(("/", os.sep)):
        raise OutputError(f"Cannot write {shown}: it names a folder, not a file; add a file name.")
    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise OutputError(f"Cannot write {shown}: it is a folder, not a file; add a file name.")
        if target.exists() and not target.is_file():
            raise OutputError(f"Cannot write {shown}: it is not a regular file; name another place.")
        if target.exists() and not os.access(target, os.W_OK):
            raise OutputError(f"Cannot write {shown}: the file is write-protected; name another place.")
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from error
    return target


def _new_file(target: Path) -> Path:
    """An empty file in the folder of `target`, with the permissions that the user's umask gives.

    (`tempfile` would make it readable by its owner alone, and the prompt would keep that.)
    """
    temporary = target.parent / f".panda-fusion-{secrets.token_hex(8)}.tmp"
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        # A name that is too long for the file system shows only when it is used.
        target.lstat()
    except FileNotFoundError:
        pass
    except OSError:
        temporary.unlink()
        raise
    return temporary


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and its missing parents; return the new ones, innermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    made: list[Path] = []
    try:
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            made.insert(0, new)
    except OSError:
        _remove_folders(made)
        raise
    return made


def _remove_folders(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # someone else may have put a file there meanwhile
            folder.rmdir()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: str | os.PathLike[str], error: OSError | ValueError) -> OutputError:
    reason = (getattr(error, "strerror", None) or str(error)).lower()
    return OutputError(f"Cannot write {printable(os.fspath(path))}: {reason}; name another place.")
