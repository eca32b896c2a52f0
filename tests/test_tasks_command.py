"""`panda-fusion tasks`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from task_folders import ROWS, write_task

from panda_fusion.plugin_manager import tasks
from panda_fusion_cli.main import main


def run(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    code = main(["tasks", *map(str, args)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("args", [(), ("list",)])
def test_list(capsys: pytest.CaptureFixture[str], args: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *args)
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert set(tasks().names()) <= set(rows)
    for words in (
        "classification",
        "premise, hypothesis",
        "entailment, contradiction, neutral",
        "aps/super_glue (cb)",
    ):
        assert words in rows["cb"]
    assert "inside the package" in rows["tiny/nli"]


@pytest.mark.parametrize("args", [("--json",), ("list", "--json")])
def test_list_as_json(capsys: pytest.CaptureFixture[str], args: tuple[str, ...]) -> None:
    code, out, _ = run(capsys, *args)
    assert code == 0
    listed = {task["task"]: task for task in json.loads(out)["tasks"]}
    assert list(listed) == tasks().names()
    assert listed["rte"] == {
        "task": "rte",
        "kind": "classification",
        "inputs": ["premise", "hypothesis"],
        "label": "label",
        "labels": ["entailment", "not_entailment"],
        "metric": "accuracy",
        "rows_from": "aps/super_glue (rte)",
        "description": "Does the hypothesis follow from the premise? (SuperGLUE)",
    }


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from panda_fusion_cli.main import main; main(['tasks']); "
        "print('heavy:', [m for m in ('torch', 'transformers', 'datasets', 'sklearn', 'scipy') if m in "
        "sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: []\n")


TRAIN = [
    {"premise": "one two three", "hypothesis": "", "label": 0},
    {"premise": "one", "hypothesis": "one two", "label": "entailment"},
    {"premise": "one two", "hypothesis": "x", "label": 2},
    {"premise": "one two three four", "hypothesis": "x", "label": 2},
]
VALIDATION = [{"premise": "one", "hypothesis": "one two", "label": 1}, *ROWS[1:]]


def test_show_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_task(tmp_path / "mine", train=TRAIN, validation=VALIDATION)
    code, out, err = run(capsys, "show", folder, "--json")
    assert code == 0
    shown = json.loads(out)
    summary = shown["summary"]
    assert (shown["task"], shown["rows_from"], shown["metric"]) == ("mine", str(folder), "accuracy")
    assert summary["train"]["rows"] == 4
    assert summary["train"]["classes"] == {"entailment": 2, "neutral": 0, "contradiction": 2}
    assert summary["validation"]["classes"] == {"entailment": 0, "neutral": 2, "contradiction": 1}
    assert summary["train"]["words"] == {
        "premise": {"median": 2, "percentile_95": 4, "longest": 4, "empty": 0},
        "hypothesis": {"median": 1, "percentile_95": 2, "longest": 2, "empty": 1},
    }
    assert summary["train"]["values"] is None
    assert summary["shared"] == 1
    assert summary["examples"][1] == {"premise": "one", "hypothesis": "one two", "label": "entailment"}
    assert len(summary["examples"]) == 3
    assert shown["warnings"] == ["No training row has the label 'neutral'."]
    assert "Warning: No training row has the label 'neutral'." in err


def test_show_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = [*TRAIN[:2], {"premise": "\x1b[2J" + "long " * 100, "hypothesis": "y", "label": 1}]
    code, out, err = run(capsys, "show", write_task(tmp_path / "mine", train=train))
    assert code == 0
    for words in (
        "mine: no description",
        "kind classification, metric accuracy",
        "contradiction",
        "First rows",
    ):
        assert words in out
    assert "\x1b" not in out
    assert "\\x1b[2Jlong long" in out
    assert "..." in out
    assert "Warning: No training row has the label 'contradiction'." in err


def test_show_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 4}]
    folder = write_task(tmp_path / "mine", 'kind = "regression"\ninputs = ["text"]\n', rows, rows)
    code, out, _ = run(capsys, "show", folder, "--json")
    assert code == 0
    assert json.loads(out)["summary"]["train"]["values"] == {"least": 1.0, "mean": 2.5, "greatest": 4.0}
    assert run(capsys, "show", folder)[1].count("2.5") == 2


def test_show_registered_task_with_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_task(tmp_path / "cb")
    code, out, _ = run(capsys, "show", "cb", "--data", tmp_path, "--json")
    assert code == 0
    # cb counts neutral and contradiction the other way round than the folder's own task.toml
    assert json.loads(out)["labels"] == ["entailment", "contradiction", "neutral"]
    assert json.loads(out)["summary"]["train"]["rows"] == 3


def test_show_bad_row_and_unknown_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_task(tmp_path / "mine", train=[ROWS[0], "{"])
    code, out, err = run(capsys, "show", folder)
    assert (code, out) == (1, "")
    assert err.startswith(f"Error: {folder / 'train.jsonl'} line 2: the line is not JSON")
    assert err.count("\n") == 1
    code, _, err = run(capsys, "show", "mnlii")
    assert (code, err) == (
        1,
        "Error: Unknown task 'mnlii' (nearest: mnli, qnli, multirc); `panda-fusion tasks` lists them all.\n",
    )


def test_check_of_good_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_task(tmp_path / "mine")
    assert run(capsys, "check", folder) == (
        0,
        "mine: no problem found (rows: train 3, validation 3).\n",
        "",
    )
    code, out, _ = run(capsys, "check", folder, "--json")
    assert code == 0
    assert json.loads(out) == {
        "task": "mine",
        "ok": True,
        "rows": {"train": 3, "validation": 3},
        "problems": [],
        "problem_count": 0,
        "warnings": [],
    }


def test_check_of_a_tiny_task(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", "tiny/review")
    assert code == 0
    assert out.startswith("tiny/review: ")


def test_check_lists_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [ROWS[0], "{", {"premise": None, "hypothesis": "", "label": 0}]
    folder = write_task(tmp_path / "mine", train=bad, validation=[{**ROWS[0], "label": "maybe"}])
    code, out, err = run(capsys, "check", folder)
    assert code == 1
    assert err == ("Error: Task 'mine' has 3 problems (rows: train 3, validation 1); correct its files.\n")
    assert f"{folder / 'train.jsonl'} line 2: the line is not JSON" in out
    assert "line 3: column 'premise' must be a string, found null" in out
    assert f"{folder / 'validation.jsonl'} line 1: label 'maybe' is none of" in out


def test_check_lists_twenty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_task(tmp_path / "mine", train=["{"] * 25)
    code, out, err = run(capsys, "check", folder, "--json")
    assert code == 1
    found = json.loads(out)
    assert (found["ok"], len(found["problems"]), found["problem_count"]) == (False, 20, 25)
    assert "line 20: " in found["problems"][-1]
    assert "Error: Task 'mine' has 25 problems" in err
    assert "the first 20 are listed" in err


def test_check_of_bad_task_toml_and_missing_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_task(tmp_path / "mine", 'kind = "classification"\n')
    code, _, err = run(capsys, "check", folder)
    assert code == 1
    assert err.startswith(f"Error: {folder / 'task.toml'}: key `inputs` is missing")
    folder = write_task(tmp_path / "other")
    (folder / "validation.jsonl").unlink()
    code, out, err = run(capsys, "check", folder)
    assert code == 1
    assert "validation.jsonl does not exist" in out
    assert "has 1 problem (rows: train 3)" in err


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "show")[0] == 2
    assert run(capsys, "sow")[0] == 2
