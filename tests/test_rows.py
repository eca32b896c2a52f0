"""Reading and checking rows, wherever they come from."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from task_folders import ROWS, write_lines, write_task

from panda_fusion.errors import DataError, PluginError
from panda_fusion.plugin_manager import tasks
from panda_fusion.prompt import TaskInfo
from panda_fusion.row_source import describe_source
from panda_fusion.rows import Split, check_task_data, load_inputs, load_rows, load_split, load_task_data
from panda_fusion.subsets import balanced_sample, carve_selection
from panda_fusion.task import HubSource, Task

NLI = Task(
    name="mynli",
    kind="classification",
    inputs=("premise", "hypothesis"),
    labels=("entailment", "neutral", "contradiction"),
)
SCORES = Task(name="scores", kind="regression", inputs=("text",), metric="pearson_spearman")


def write_nli(data_dir: Path, train: list, validation: list | None = None) -> Path:
    write_lines(data_dir / "mynli" / "train.jsonl", train)
    write_lines(data_dir / "mynli" / "validation.jsonl", ROWS if validation is None else validation)
    return data_dir


def error_of(task: Task, data_dir: Path | None) -> str:
    with pytest.raises(DataError) as caught:
        load_task_data(task, data_dir)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


# ---- what good rows become


def test_columns_and_labels(tmp_path: Path) -> None:
    rows = [
        {"hypothesis": "B", "premise": "A", "label": "neutral", "idx": 7},
        {"premise": "", "hypothesis": "ü\u2028x", "label": 2},
    ]
    data = load_task_data(NLI, write_nli(tmp_path, rows))
    assert data.task == NLI
    assert data.train == Split(texts=(["A", ""], ["B", "ü\u2028x"]), labels=[1, 2])
    assert data.validation.labels == [0, 1, 2]
    assert len(data.train) == 2
    assert load_rows(NLI, "train", tmp_path)[0] == {"premise": "A", "hypothesis": "B", "label": 1}
    assert load_split(NLI, "train", tmp_path) == data.train


def test_windows_lines_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    write_nli(tmp_path, [])
    first, second = (json.dumps(row).encode() for row in ROWS[:2])
    file = tmp_path / "mynli" / "train.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + first + b"\r\n\r\n  \n" + second)
    assert load_split(NLI, "train", tmp_path).labels == [0, 1]
    file.write_bytes(b"\xef\xbb\xbf" + first + b"\r\n\r\n  \n{")
    assert "train.jsonl line 4: " in error_of(NLI, tmp_path)


def test_regression_labels_become_floats(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_lines(tmp_path / "scores" / f"{split}.jsonl", [{"text": "x", "label": 3}, {"text": "y", "label": 0.5}])
    labels = load_task_data(SCORES, tmp_path).train.labels
    assert labels == [3.0, 0.5]
    assert all(type(label) is float for label in labels)


def test_select() -> None:
    split = Split(texts=(["a", "b", "c"],), labels=[0, 1, 2])
    assert split.select([2, 0]) == Split(texts=(["c", "a"],), labels=[2, 0])


# ---- bad rows: every message names file and line


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"premise": "a", "hypothesis": "b", "label": 0', "the line is not JSON (Expecting ',' delimiter"),
        ('{"premise": "a"} {"premise": "b"}', "the line is not JSON (Extra data"),
        ("[1, 2]", "expected a JSON object, found a list"),
        ('"text"', "expected a JSON object, found a string"),
        ("null", "expected a JSON object, found null"),
        ({"premise": "a", "label": 0}, "column 'hypothesis' is missing (columns found: premise, label)"),
        ({}, "column 'premise' is missing (columns found: none)"),
        ({"premise": "a", "hypothesis": "b"}, "column 'label' is missing"),
        (
            {"premise": "a", "hypothesis": 3, "label": 0},
            "column 'hypothesis' must be a string, found the number 3",
        ),
        (
            {"premise": ["a"], "hypothesis": "b", "label": 0},
            "column 'premise' must be a string, found a list",
        ),
        (
            {"premise": {}, "hypothesis": "b", "label": 0},
            "column 'premise' must be a string, found an object",
        ),
        ({"premise": None, "hypothesis": "b", "label": 0}, 'found null; write "" for an empty text'),
        ('{"premise": "x\\ud800 y", "hypothesis": "b", "label": 0}', "half of a surrogate pair (\\ud800)"),
        (
            {"premise": "a", "hypothesis": "b", "label": 3},
            "label 3 is not a class index from 0 to 2 (0 entailment,",
        ),
        ({"premise": "a", "hypothesis": "b", "label": -1}, "label -1 is not a class index from 0 to 2"),
        (
            {"premise": "a", "hypothesis": "b", "label": "neutrl"},
            "label 'neutrl' is none of the task's labels (0 entailment, 1 neutral, 2 contradiction, nearest 'neutral')",
        ),
        ({"premise": "a", "hypothesis": "b", "label": "0"}, "label '0' is none of the task's labels"),
        ({"premise": "a", "hypothesis": "b", "label": True}, "found true"),
        ({"premise": "a", "hypothesis": "b", "label": None}, "found null"),
        ({"premise": "a", "hypothesis": "b", "label": 1.0}, "found the number 1.0"),
        ({"premise": "a", "hypothesis": "b", "label": [1]}, "found a list"),
        ('{"premise": "a", "hypothesis": "b", "label": NaN}', "label is NaN"),
    ],
)
def test_bad_row_of_a_classification(tmp_path: Path, line: object, words: str) -> None:
    write_nli(tmp_path, [ROWS[0], "", line])
    message = error_of(NLI, tmp_path)
    assert message.startswith(f"{tmp_path / 'mynli' / 'train.jsonl'} line 3: ")
    assert words in message


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("NaN", "label is NaN"),
        ("Infinity", "label is infinite"),
        ("1e999", "label is infinite"),
        ("9" * 400, "label is infinite"),
        ("true", "label must be a number, found true"),
        ("null", "label must be a number, found null"),
        ('"3.5"', "label must be a number, found a string"),
    ],
)
def test_bad_row_of_a_regression(tmp_path: Path, label: str, words: str) -> None:
    write_lines(tmp_path / "scores" / "train.jsonl", [{"text": "x", "label": 1}, f'{{"text": "y", "label": {label}}}'])
    message = error_of(SCORES, tmp_path)
    assert "train.jsonl line 2: " in message
    assert words in message


def test_invalid_utf8(tmp_path: Path) -> None:
    write_nli(tmp_path, [])
    (tmp_path / "mynli" / "train.jsonl").write_bytes(b'{"premise": "\xe9t\xe9", "hypothesis": "", "label": 0}\n')
    assert "train.jsonl line 1: byte 14 of the line (0xe9) is not UTF-8" in error_of(NLI, tmp_path)


@pytest.mark.parametrize("lines", [[], ["", "   "]])
def test_empty_file(tmp_path: Path, lines: list[str]) -> None:
    assert "train.jsonl holds no rows" in error_of(NLI, write_nli(tmp_path, lines))


def test_very_deep_json_is_an_ordinary_error(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert "line 1: the line cannot be read" in error_of(NLI, write_nli(tmp_path, [deep]))


def test_control_characters_of_a_row_do_not_reach_the_terminal(tmp_path: Path) -> None:
    row = {"premise": "a", "hypothesis": "b", "label": "\x1b[2Jred"}
    assert "'\\x1b[2Jred'" in error_of(NLI, write_nli(tmp_path, [row])).replace("\\\\", "\\")


def test_integer_labels_that_are_also_other_class_names_are_refused(tmp_path: Path) -> None:
    stars = Task(name="mynli", kind="classification", inputs=("premise",), labels=("1", "2", "3"))
    message = error_of(stars, write_nli(tmp_path, [{"premise": "x", "label": 1}]))
    assert "label 1 is ambiguous" in message
    good = [{"premise": "x", "label": "1"}, {"premise": "y", "label": "3"}]
    assert load_split(stars, "train", write_nli(tmp_path, good)).labels == [0, 2]


# ---- where rows come from


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert "Data folder" in error_of(NLI, tmp_path / "nowhere")
    message = error_of(NLI, tmp_path)
    assert f"{tmp_path / 'mynli' / 'train.jsonl'} does not exist" in message
    write_lines(tmp_path / "mynli" / "train.jsonl", ROWS)
    assert f"{tmp_path / 'mynli' / 'validation.jsonl'} does not exist" in error_of(NLI, tmp_path)
    assert "pass the folder above it" in error_of(NLI, tmp_path / "mynli")


def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nli(tmp_path, ROWS)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert re.search(r"^Cannot read .*train\.jsonl: permission denied\.$", error_of(NLI, tmp_path))


def test_order_of_sources(tmp_path: Path) -> None:
    """The task's own folder, then --data, then the package."""

    def labels(task: Task, data_dir: Path | None) -> list[int] | list[float]:
        return load_split(task, "train", data_dir).labels

    own = write_task(tmp_path / "own" / "mynli", train=[ROWS[0]])
    data = write_nli(tmp_path / "data", [ROWS[1]])
    with_folder = msgspec.structs.replace(NLI, folder=str(own))
    assert labels(with_folder, None) == [0]
    assert labels(with_folder, data) == [0]
    for split in ("train", "validation"):
        (own / f"{split}.jsonl").unlink()
    assert labels(with_folder, data) == [1]
    assert str(own / "train.jsonl") in error_of(with_folder, None)
    packaged = msgspec.structs.replace(NLI, rows=f"{__name__}:rows_of_a_package")
    assert labels(packaged, data) == [1]
    assert labels(packaged, None) == [2, 2]
    (tmp_path / "empty").mkdir()
    assert labels(packaged, tmp_path / "empty") == [2, 2]
    assert "Data folder" in error_of(packaged, tmp_path / "nowhere")


def rows_of_a_package(name: str, split: str) -> list[dict[str, object]]:
    assert (name, split) in {("mynli", "train"), ("mynli", "validation")}
    return [ROWS[2], ROWS[2]]


def bad_rows_of_a_package(name: str, split: str) -> list[dict[str, object]]:
    return [ROWS[0], {"premise": "a", "hypothesis": "b", "label": 9}]


def failing_rows_of_a_package(name: str, split: str) -> list[dict[str, object]]:
    raise RuntimeError("no such thing")


def test_rows_of_a_package_are_checked_too() -> None:
    bad = msgspec.structs.replace(NLI, rows=f"{__name__}:bad_rows_of_a_package")
    assert error_of(bad, None).startswith("mynli (train) row 2: label 9 is not")
    for target in (f"{__name__}:failing_rows_of_a_package", f"{__name__}:absent", "no_such_module:rows"):
        with pytest.raises(PluginError, match=f"cannot be made by {target}"):
            load_task_data(msgspec.structs.replace(NLI, rows=target), None)


def test_a_task_without_any_source() -> None:
    assert "pass --data DIR, where DIR/mynli holds" in error_of(NLI, None)
    assert describe_source(NLI) == "--data DIR"


# ---- the Hub

HUB = msgspec.structs.replace(
    NLI, name="hubnli", hub=HubSource(path="someone/nli", config="large", validation="validation_matched")
)


def test_hub_is_asked_for_the_right_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, name: str | None, *, split: str) -> list[dict[str, object]]:
        asked.append((path, name, split))
        return ROWS[:2] if split == "train" else ROWS

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = load_task_data(HUB, None)
    assert asked == [("someone/nli", "large", "train"), ("someone/nli", "large", "validation_matched")]
    assert (data.train.labels, data.validation.labels) == ([0, 1], [0, 1, 2])
    assert data.warnings == ("No training row has the label 'contradiction'.",)
    assert describe_source(HUB) == "someone/nli (large)"


def test_bad_row_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [ROWS[0], {"premise": "a", "hypothesis": "b", "label": -1}]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    assert error_of(HUB, None).startswith("someone/nli (large), split train, row 2: label -1 is not")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'someone/nli' on the Hub"),
        ValueError("Unknown split.\nmore"),
        KeyError(),
    ],
)
def test_hub_failure_says_to_pass_data(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    message = error_of(HUB, None)
    assert message.startswith("Split 'train' of someone/nli (large) cannot be loaded from the Hugging Face Hub (")
    assert "pass --data DIR, where DIR/hubnli holds train.jsonl and validation.jsonl." in message


def test_with_a_data_folder_the_hub_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert "hubnli/train.jsonl does not exist" in error_of(HUB, tmp_path)


def test_a_real_data_set_that_datasets_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    repository = tmp_path / "repository"
    repository.mkdir()
    features = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=list(NLI.labels)),
        }
    )
    for split in ("train", "validation"):
        datasets.Dataset.from_list(ROWS, features=features).to_parquet(repository / f"{split}.parquet")
    task = msgspec.structs.replace(NLI, hub=HubSource(path=str(repository)))
    data = load_task_data(task, None)
    assert data.train == data.validation == Split(texts=(["a", "c", "e"], ["b", "d", "f"]), labels=[0, 1, 2])
    absent = msgspec.structs.replace(NLI, hub=HubSource(path=str(repository), validation="tests"))
    assert "Split 'tests' of" in error_of(absent, None)


def test_the_library_offline(tmp_path: Path) -> None:
    """The real `datasets`, told that there is no network."""
    code = """
from panda_fusion.plugin_manager import tasks
from panda_fusion.rows import load_task_data
from panda_fusion.errors import DataError
try:
    load_task_data(tasks().get("rte"), None)
except DataError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.startswith("Split 'train' of aps/super_glue (rte) cannot be loaded"), done.stderr
    assert "pass --data DIR" in done.stdout
    assert done.stdout.count("\n") == 1


# ---- warnings, kinds


def test_one_class_is_a_warning(tmp_path: Path) -> None:
    data = load_task_data(NLI, write_nli(tmp_path, [ROWS[1], ROWS[1]]))
    assert data.warnings == ("All 2 training rows have the label 'neutral'; there is nothing to learn.",)
    for split in ("train", "validation"):
        write_lines(tmp_path / "scores" / f"{split}.jsonl", [{"text": "x", "label": 3}, {"text": "y", "label": 3}])
    assert load_task_data(SCORES, tmp_path).warnings == (
        "All 2 training rows have the value 3.0; there is nothing to learn.",
    )


def test_no_warning_without_a_reason(tmp_path: Path) -> None:
    assert load_task_data(NLI, write_nli(tmp_path, ROWS)).warnings == ()


# ---- rows to predict on


def info(kind: str = "classification") -> TaskInfo:
    return TaskInfo(
        name="mynli",
        kind=kind,
        inputs=("premise", "hypothesis"),
        label="label",
        labels=("a", "b"),
        metric="accuracy",
    )


def test_inputs_without_labels(tmp_path: Path) -> None:
    rows = [{"hypothesis": "b", "premise": "a", "label": None, "idx": 1}, {"premise": "", "hypothesis": "d"}]
    assert load_inputs(info(), write_lines(tmp_path / "rows.jsonl", rows)).texts == (["a", ""], ["b", "d"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: the line is not JSON"),
        ("3", "line 2: expected a JSON object, found the number 3"),
        ({"premise": "a"}, "line 2: column 'hypothesis' is missing"),
        ({"premise": "a", "hypothesis": None}, "line 2: column 'hypothesis' must be a string, found null"),
    ],
)
def test_bad_inputs(tmp_path: Path, line: object, words: str) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [ROWS[0], line])  # type: ignore[list-item]
    with pytest.raises(DataError) as caught:
        load_inputs(info(), path)
    assert f"{path} {words}" in str(caught.value)


def test_inputs_from_no_file_an_empty_one_and_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Cannot read .*nothing\.jsonl: no such file"):
        load_inputs(info(), tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match=r"Cannot read .*: is a directory"):
        load_inputs(info(), tmp_path)
    with pytest.raises(DataError, match="holds no rows"):
        load_inputs(info(), write_lines(tmp_path / "empty.jsonl", []))
    with pytest.raises(DataError, match="not supported yet"):
        load_inputs(info("poetry"), tmp_path / "nothing.jsonl")


# ---- all problems at once


def test_check_collects_problems_of_both_splits(tmp_path: Path) -> None:
    write_nli(tmp_path, ["{", ROWS[0], {"premise": "a"}], [{**ROWS[0], "label": 5}])
    report = check_task_data(NLI, tmp_path)
    assert [re.search(r"(train|validation)\.jsonl line (\d)", problem).groups() for problem in report.problems] == [
        ("train", "1"),
        ("train", "3"),
        ("validation", "1"),
    ]
    assert (report.total, report.rows) == (3, {"train": 3, "validation": 1})


def test_check_counts_what_it_does_not_list(tmp_path: Path) -> None:
    report = check_task_data(NLI, write_nli(tmp_path, ["{"] * 30))
    assert (len(report.problems), report.total, report.rows["train"]) == (20, 30, 30)


def test_check_names_a_missing_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "mynli" / "train.jsonl", [ROWS[0], "[]"])
    report = check_task_data(NLI, tmp_path)
    assert report.total == 2
    assert "validation.jsonl does not exist" in report.problems[1]


def test_check_of_good_data(tmp_path: Path) -> None:
    report = check_task_data(NLI, write_nli(tmp_path, [ROWS[0], ROWS[2]]))
    assert (report.problems, report.total, report.rows) == ((), 0, {"train": 2, "validation": 3})
    assert report.warnings == ("No training row has the label 'neutral'.",)


# ---- subsets


def classes(*counts: int) -> Split:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    labels = labels[::2] + labels[1::2]
    return Split(texts=([f"t{index}" for index in range(len(labels))],), labels=labels)


def values(count: int) -> Split:
    return Split(
        texts=([str(index) for index in range(count)],),
        labels=[float(index * 7 % 100) for index in range(count)],
    )


def test_selection_keeps_the_balance() -> None:
    train = classes(700, 250, 50)
    rest, selection = carve_selection(train, 0.1, seed=1)
    assert Counter(selection.labels) == {0: 70, 1: 25, 2: 5}
    assert Counter(rest.labels) == {0: 630, 1: 225, 2: 45}
    assert not set(rest.texts[0]) & set(selection.texts[0])
    assert sorted(rest.texts[0] + selection.texts[0]) == sorted(train.texts[0])


def test_selection_is_drawn_by_the_seed() -> None:
    train = classes(100, 100)
    assert carve_selection(train, seed=3) == carve_selection(train, seed=3)
    assert carve_selection(train, seed=3) != carve_selection(train, seed=4)
    order = [int(text[1:]) for text in carve_selection(train)[0].texts[0]]
    assert order == sorted(order)


def test_selection_of_small_classes() -> None:
    rest, selection = carve_selection(classes(2, 1, 40, 2), 0.1)
    assert Counter(selection.labels) == {0: 1, 2: 4, 3: 1}
    assert Counter(rest.labels) == {0: 1, 1: 1, 2: 36, 3: 1}


def test_selection_of_the_whole_has_the_size_asked_for() -> None:
    assert len(carve_selection(classes(*[16] * 10), 0.1)[1]) == 16  # 1.6 of each class


def test_selection_of_a_regression_is_spread() -> None:
    rest, selection = carve_selection(values(100), 0.2)
    assert len(selection) == 20
    assert sorted(int(label) // 10 for label in selection.labels) == [tenth for tenth in range(10) for _ in range(2)]
    assert len(rest) == 80


@pytest.mark.parametrize("count", [2, 5, 19])
def test_selection_of_a_small_regression(count: int) -> None:
    rest, selection = carve_selection(values(count), 0.1)
    assert len(selection) == max(round(count * 0.1), 1)
    assert len(rest) + len(selection) == count


def test_selection_that_cannot_be() -> None:
    with pytest.raises(DataError, match="no class has two"):
        carve_selection(classes(1, 1, 1))
    with pytest.raises(ValueError, match="between 0 and 1"):
        carve_selection(classes(5, 5), 1.0)


@pytest.mark.parametrize(
    ("counts", "count", "expected"),
    [
        ((500, 500), 100, (50, 50)),  # the paper's example
        ((900, 60), 100, (50, 50)),
        ((900, 10), 100, (90, 10)),
        ((23, 28, 5), 100, (23, 28, 5)),
        ((200, 200, 200), 100, (34, 33, 33)),
        ((300, 1, 40), 100, (59, 1, 40)),
        ((300, 300, 300), 2, (1, 1, 0)),
    ],
)
def test_balanced_sample(counts: tuple[int, ...], count: int, expected: tuple[int, ...]) -> None:
    split = classes(*counts)
    indices = balanced_sample(split, count, seed=5)
    assert indices == sorted(set(indices))
    found = Counter(split.labels[index] for index in indices)
    assert tuple(found[label] for label in range(len(counts))) == expected
    assert indices == balanced_sample(split, count, seed=5)


def test_balanced_sample_is_drawn_by_the_seed() -> None:
    split = classes(500, 500)
    assert balanced_sample(split, seed=0) != balanced_sample(split, seed=1)
    with pytest.raises(ValueError, match="less than 1"):
        balanced_sample(split, 0)


def test_balanced_sample_of_a_regression_is_spread() -> None:
    split = values(1000)
    chosen = [split.labels[index] for index in balanced_sample(split, 10)]
    assert sorted(int(label) // 10 for label in chosen) == list(range(10))


# ---- the real sets

REAL = {
    "cola": (8551, 1043, {0: 322, 1: 721}),
    "sst2": (12000, 872, {0: 428, 1: 444}),
    "mrpc": (3668, 408, {0: 129, 1: 279}),
    "stsb": (5749, 1500, None),
    "qnli": (2000, 2000, {0: 986, 1: 1014}),
    "qqp": (12000, 2000, {0: 1271, 1: 729}),
    "mnli": (9888, 2000, {0: 713, 1: 628, 2: 659}),
    "rte": (2490, 277, {0: 146, 1: 131}),
    "cb": (250, 56, {0: 23, 1: 28, 2: 5}),
    "boolq": (2331, 1000, {0: 391, 1: 609}),
    "wic": (5428, 638, {0: 319, 1: 319}),
}
"""Rows of train and validation and the validation set's class balance, from the README of the shared data."""


@pytest.mark.parametrize("name", REAL)
def test_real_sets(name: str) -> None:
    shared = os.environ.get("PANDA_FUSION_SHARED")
    if not shared:
        pytest.skip("PANDA_FUSION_SHARED is not set: no folder with the real data sets")
    data = load_task_data(tasks().get(name), Path(shared) / "data")
    train, validation, balance = REAL[name]
    assert (len(data.train), len(data.validation), data.warnings) == (train, validation, ())
    assert len(data.train.texts) == len(data.task.inputs)
    if balance is None:
        assert sum(data.train.labels) / train == pytest.approx(2.70, abs=0.005)
        assert sum(data.validation.labels) / validation == pytest.approx(2.36, abs=0.005)
    else:
        assert Counter(data.validation.labels) == balance
