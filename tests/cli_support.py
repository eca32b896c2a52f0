"""For the tests of the command line: a folder with tasks and trained prompts, and ways of running the program."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from panda_fusion_cli.main import main

PROGRAM = (sys.executable, "-m", "panda_fusion_cli.main")
QUICK = "--max-length 32 --precision fp32 --device cpu"
"""What keeps runs on the tiny random backbones short and, on one machine, exactly repeatable."""


@dataclass(frozen=True)
class Done:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        assert self.code == 0, self.err
        assert self.out.endswith("\n")
        assert self.out.count("\n") == 1, self.out
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


@dataclass(frozen=True)
class Work:
    """A folder that tests share and do not write to.

    Attributes:
        folder: the tasks `mood` (two classes, one text), `topic` (three classes), `likeness` (regression, two
            texts); the prompts `mood`, `topic`, `likeness` (prefix of 4) and `soft` (input prompt of 4, task
            mood), each `<name>.safetensors`.
        model: folder of the tiny random BERT that they were trained on.
    """

    folder: Path
    model: Path

    def __getitem__(self, name: str) -> str:
        """Path of a task or of a prompt file."""
        return str(self.folder / name)

    def words(self, text: str, **more: object) -> list[str]:
        """Split a command line at blanks and fill in `{w}` (the folder), `{model}` and `more`."""
        return [word.format(w=self.folder, model=self.model, **more) for word in text.split()]


def run(*words: str, cwd: Path) -> Done:
    """Run a command in this process, as the program does."""
    out, err = io.StringIO(), io.StringIO()
    with chdir(cwd), redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    return Done(code, out.getvalue(), err.getvalue())


def environment(**variables: str) -> dict[str, str]:
    """The environment of a subprocess: offline, one thread, no cache."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PANDA_FUSION")}
    own = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PANDA_FUSION_CACHE": ""}
    return inherited | own | variables


def start(*words: str, cwd: Path, **variables: str) -> subprocess.Popen[str]:
    """Start the program as a user does, in a process of its own."""
    return subprocess.Popen(
        [*PROGRAM, *words],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
    )


def finish(process: subprocess.Popen[str]) -> Done:
    """Wait for a program that was started."""
    out, err = process.communicate(timeout=120)
    return Done(process.returncode, out, err)


@cache
def poison(folder: Path) -> str:
    """A PYTHONPATH on which torch and transformers cannot be imported."""
    path = folder / "poison"
    path.mkdir()
    for name in ("torch", "transformers"):
        (path / f"{name}.py").write_text(f'raise ImportError("{name} was imported before the input was checked")\n')
    return os.pathsep.join([str(path), *filter(None, [os.environ.get("PYTHONPATH")])])


def snapshot(folder: Path) -> dict[str, str]:
    """Every file and folder below a folder; files with a digest of their bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def write_task(folder: Path, toml: str, rows: Mapping[str, list[dict[str, object]]]) -> Path:
    """Write a task folder; `rows` per split."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.toml").write_text(toml)
    for split, lines in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@cache
def make_work(folder: Path, model: Path) -> Work:
    """Write the tasks and train the prompts, once per process."""
    folder.mkdir()
    _tasks(folder)
    work = Work(folder, model)
    for name, task, method in (
        ("mood", "mood", "prefix:length=4"),
        ("topic", "topic", "prefix:length=4"),
        ("likeness", "likeness", "prefix:length=4"),
        ("soft", "mood", "prompt:length=4"),
    ):
        words = work.words(
            f"train --task {{w}}/{task} --model {{model}} {QUICK} --method {method} --max-steps 6 --lr 0.02"
            f" --out {name}.safetensors -q"
        )
        done = run(*words, cwd=folder)
        assert done.code == 0, done.err
    return work


def _tasks(folder: Path) -> None:
    names = ("ann", "bob", "cid", "dora", "eve", "finn")
    moods = {"bad": "{} is not good, no", "good": "{} is good, yes"}
    topics = {"who": "who is {}", "what": "what can {} be", "yes": "yes it was {}"}

    def texts(patterns: Mapping[str, str], count: int, offset: int) -> list[dict[str, object]]:
        labels = list(patterns)
        picks = [(labels[(i * 7 + i // 3) % len(labels)], names[(i + offset) % len(names)]) for i in range(count)]
        return [{"text": patterns[label].format(name), "label": label} for label, name in picks]

    for name, patterns in (("mood", moods), ("topic", topics)):
        write_task(
            folder / name,
            f'kind = "classification"\ninputs = ["text"]\nlabels = {json.dumps(list(patterns))}\n',
            {"train": texts(patterns, 40, 0), "validation": texts(patterns, 20, 3)},
        )

    def pairs(count: int, offset: int) -> list[dict[str, object]]:
        rows = [(names[(i + offset) % 6], names[(i * i + offset) % 6], i) for i in range(count)]
        return [{"one": f"{a} is good", "two": f"{b} is good", "label": 0.5 * (i % 5)} for a, b, i in rows]

    write_task(
        folder / "likeness",
        'kind = "regression"\ninputs = ["one", "two"]\n',
        {"train": pairs(40, 0), "validation": pairs(20, 2)},
    )
