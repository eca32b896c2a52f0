"""A file is replaced whole or not at all, and a place that cannot be written is refused before the work."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from panda_fusion.atomic_write import atomic_path, check_writable, write_bytes, write_text
from panda_fusion.errors import OutputError

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_writes_and_replaces(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "eins\n")
    write_bytes(tmp_path / "a.txt", b"zwei\n")
    assert (tmp_path / "a.txt").read_bytes() == b"zwei\n"
    assert listing(tmp_path) == {"a.txt"}


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "new", "")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "new").chmod(0o640)
    write_text(tmp_path / "new", "again")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_makes_missing_folders(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "x")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "x"


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt()])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    write_text(tmp_path / "a.txt", "old")

    def write_half(path: Path) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise failure

    for path in (tmp_path / "a.txt", tmp_path / "new" / "a.txt"):
        with pytest.raises(type(failure)):
            write_half(path)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert listing(tmp_path) == {"a.txt"}


def test_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"a\.txt: no space left on device"):
        write_text(tmp_path / "a.txt", "new")
    with pytest.raises(OutputError, match="no space left"):
        check_writable(tmp_path / "sub" / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert listing(tmp_path) == {"a.txt"}


def test_follows_links(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "real").read_text() == "new"


def test_check_writable_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("old")
    check_writable(tmp_path / "old.txt")
    check_writable(tmp_path / "a" / "b" / "new.txt")
    assert listing(tmp_path) == {"old.txt"}
    assert (tmp_path / "old.txt").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("folder", "is a folder"),
        ("new/", "names a folder"),
        ("file/under.txt", "not a directory|file exists"),
        ("x" * 300, "name too long"),
        ("", "is empty"),
        ("nul\0", "null"),
        ("pipe", "not a regular file"),
    ],
)
def test_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    before = listing(tmp_path)
    for function in (check_writable, lambda path: write_text(path, "x")):
        with pytest.raises(OutputError, match=words) as caught:
            function(name)
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith(".")
    assert listing(tmp_path) == before


@pytest.mark.skipif(ROOT, reason="root may write everywhere")
def test_refuses_protected_places(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("")
    (tmp_path / "mine.txt").chmod(0o444)
    with pytest.raises(OutputError, match="write-protected"):
        check_writable(tmp_path / "mine.txt")
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(OutputError, match="permission denied"):
            check_writable(tmp_path / "new.txt")
    finally:
        tmp_path.chmod(0o755)
