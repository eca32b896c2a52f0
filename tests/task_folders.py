"""Task folders that the tests of tasks and rows write."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

TASK_TOML = """
kind = "classification"
inputs = ["premise", "hypothesis"]
labels = ["entailment", "neutral", "contradiction"]
"""

ROWS = [
    {"premise": "a", "hypothesis": "b", "label": 0},
    {"premise": "c", "hypothesis": "d", "label": 1},
    {"premise": "e", "hypothesis": "f", "label": 2},
]


def write_lines(path: Path, rows: Iterable[Mapping[str, object] | str]) -> Path:
    """Write a JSONL file; a string is written as it stands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_task(
    folder: Path,
    toml: str = TASK_TOML,
    train: Iterable[Mapping[str, object] | str] = ROWS,
    validation: Iterable[Mapping[str, object] | str] = ROWS,
) -> Path:
    """Write a task folder and give it back."""
    write_lines(folder / "train.jsonl", train)
    write_lines(folder / "validation.jsonl", validation)
    (folder / "task.toml").write_text(toml, encoding="utf-8")
    return folder
