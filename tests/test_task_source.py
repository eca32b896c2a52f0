"""From a name or a folder to a task; the registered tasks."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from task_folders import TASK_TOML, write_lines, write_task

from panda_fusion import hookimpl
from panda_fusion.errors import DataError, UnknownNameError
from panda_fusion.paper_presets import PRESETS
from panda_fusion.plugin_manager import BUILT_IN, broken_plugins, tasks, temporary_plugin
from panda_fusion.rows import load_task_data
from panda_fusion.task import HubSource, Task
from panda_fusion.task_kind import check_task
from panda_fusion.task_source import TaskFile, find_task, resolve_task
from panda_fusion.tiny.tasks import TASKS as TINY_TASKS

BUILT_IN_TASKS = [entry.task for entry in tasks().entries() if entry.plugin.distribution == BUILT_IN]


def error_of(name: str | Path, data_dir: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        resolve_task(name, data_dir)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


# ---- the registered tasks


def test_registered_tasks_load_without_problems() -> None:
    assert [
        str(plugin) for plugin in broken_plugins() if plugin.plugin.name in ("glue", "superglue", "tiny-tasks")
    ] == []


@pytest.mark.parametrize("task", BUILT_IN_TASKS, ids=lambda task: task.name)
def test_registered_tasks_are_well_formed(task: Task) -> None:
    assert check_task(task) is task
    assert task.description
    assert task.type or task.name.startswith("tiny/")
    if task.kind != "token-classification":  # most of those sets are not on the Hub as rows of words and tags
        assert (task.hub is None) != (task.rows is None)
    assert task.outputs >= 1 or (task.kind == "token-classification" and not task.labels)


def test_registered_names_hub_and_metrics() -> None:
    assert len(BUILT_IN_TASKS) == 25 + len(TINY_TASKS)
    assert set(PRESETS) <= {task.name for task in BUILT_IN_TASKS}
    assert len(PRESETS) == 21
    expected = {
        "cola": ("nyu-mll/glue", "matthews", 2),
        "sst2": ("nyu-mll/glue", "accuracy", 2),
        "mrpc": ("nyu-mll/glue", "accuracy", 2),
        "stsb": ("nyu-mll/glue", "pearson_spearman", 1),
        "qnli": ("nyu-mll/glue", "accuracy", 2),
        "qqp": ("nyu-mll/glue", "accuracy", 2),
        "mnli": ("nyu-mll/glue", "accuracy", 3),
        "rte": ("aps/super_glue", "accuracy", 2),
        "cb": ("aps/super_glue", "accuracy", 3),
        "boolq": ("aps/super_glue", "accuracy", 2),
        "wic": ("aps/super_glue", "accuracy", 2),
    }
    for name, (path, metric, outputs) in expected.items():
        task = tasks().get(name)
        assert task.hub is not None
        validation = "validation_matched" if name == "mnli" else "validation"
        assert task.hub == HubSource(path=path, config=name, validation=validation)
        assert (task.metric, task.outputs, task.label) == (metric, outputs, "label")
    assert tasks().get("cb").labels == ("entailment", "contradiction", "neutral")
    assert tasks().get("mnli").labels == ("entailment", "neutral", "contradiction")


@pytest.mark.parametrize("name", TINY_TASKS)
def test_tiny_tasks_have_rows(name: str) -> None:
    tiny = TINY_TASKS[name]
    task = resolve_task(f"tiny/{name}", None)
    assert (task.kind, task.inputs, task.labels, task.metric) == (
        tiny.kind,
        tiny.inputs,
        tiny.labels,
        tiny.metric,
    )
    data = load_task_data(task, None)
    assert len(data.train) > 0
    assert len(data.validation) > 0
    assert data.warnings == ()


def test_a_third_party_task_is_found_by_name(tmp_path: Path) -> None:
    class Plugin:
        @hookimpl
        def register_tasks(self, register: object) -> None:
            register(Task(name="theirs", kind="classification", inputs=("text",), labels=("a", "b")))  # type: ignore[operator]
            register(Task(name="choices", kind="multiple-choice", inputs=("text",)))  # type: ignore[operator]

    with temporary_plugin(Plugin(), "third-party"):
        assert resolve_task("theirs", None).labels == ("a", "b")
        assert "is a multiple-choice task without choices" in error_of("choices")


# ---- names and folders


def test_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown task 'rtee' \(nearest: rte\)"):
        resolve_task("rtee", None)
    with pytest.raises(UnknownNameError):
        resolve_task("", None)


def test_folder(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "my-nli")
    assert resolve_task(folder, None) == Task(
        name="my-nli",
        kind="classification",
        inputs=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        metric="accuracy",
        folder=str(folder),
    )
    assert resolve_task(str(folder), None) == resolve_task(folder, None)
    assert load_task_data(resolve_task(folder, None), None).train.labels == [0, 1, 2]


def test_every_key(tmp_path: Path) -> None:
    toml = """
    kind = "classification"
    inputs = ["premise"]
    label = "verdict"
    labels = ["no", "yes"]
    metric = "f1"
    description = "Yes or no?"
    """
    rows = [{"premise": "x", "verdict": "yes"}, {"premise": "y", "verdict": 0}]
    task = resolve_task(write_task(tmp_path / "t", toml, rows, rows), None)
    assert (task.label, task.metric, task.description) == ("verdict", "f1", "Yes or no?")
    assert load_task_data(task, None).train.labels == [1, 0]


def test_folder_of_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path / "rte")
    monkeypatch.chdir(tmp_path)
    assert resolve_task("rte", None).hub is not None  # the registered task comes first
    assert resolve_task("./rte", None).folder is not None
    monkeypatch.chdir(tmp_path / "rte")
    assert resolve_task(".", None).name == "rte"


def test_task_toml_inside_the_data_folder(tmp_path: Path) -> None:
    write_task(tmp_path / "ours")
    task = resolve_task("ours", tmp_path)
    assert task.folder == str(tmp_path / "ours")
    assert load_task_data(task, tmp_path).validation.labels == [0, 1, 2]


def test_missing_folder_and_missing_task_toml(tmp_path: Path) -> None:
    assert "does not exist; pass a folder that holds task.toml" in error_of(tmp_path / "absent")
    assert "holds no task.toml" in error_of(tmp_path)


def test_default_metric_of_a_regression(tmp_path: Path) -> None:
    toml = 'kind = "regression"\ninputs = ["premise"]\n'
    task = resolve_task(write_task(tmp_path / "t", toml), None)
    assert (task.metric, task.labels, task.outputs) == ("pearson_spearman", (), 1)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("kind = ", "is not TOML: "),
        ('inputs = ["a"]', "key `kind` is missing; set it to one of classification, regression, "),
        ('kind = "classification"', "key `inputs` is missing; set it to a list of one or two column names"),
        (
            'kind = "clasification"\ninputs = ["a"]',
            "key `kind` is 'clasification'; set it to one of classification,",
        ),
        ('kind = 3\ninputs = ["a"]', "key `kind` is 3"),
        ('kind = "classification"\ninputs = "a"', "key `inputs` is 'a'; set it to a list of one or two"),
        ('kind = "classification"\ninputs = []', "key `inputs` is []"),
        ('kind = "classification"\ninputs = ["a", "b", "c"]', "key `inputs` is ['a', 'b', 'c']"),
        ('kind = "classification"\ninputs = [1]', "key `inputs` is [1]"),
        (
            'kind = "classification"\ninputs = ["a"]\nlabels = [0, 1]',
            "key `labels` is [0, 1]; set it to a list of",
        ),
        ('kind = "classification"\ninputs = ["a"]\nlabel = 1', "key `label` is 1; set it to a column name"),
        (
            'kind = "classification"\ninputs = ["a"]\nmetric = "acc"',
            "key `metric` is 'acc'; set it to one of accuracy,",
        ),
        (
            'kind = "classification"\ninputs = ["a"]\nlable = "x"',
            "key `lable` is unknown; did you mean `label`",
        ),
        (
            'kind = "classification"\ninputs = ["a"]\nzzz = "x"',
            "key `zzz` is unknown; the keys are kind, inputs, label",
        ),
        ('kind = "classification"\ninputs = ["a"]\nlabels = []', "Key `labels` is an empty list"),
        ('kind = "classification"\ninputs = ["a"]\nlabels = ["x"]', "at least two different class names"),
        (
            'kind = "classification"\ninputs = ["a"]\nlabels = ["x", "x"]',
            "at least two different class names",
        ),
        ('kind = "classification"\ninputs = ["a"]\nlabels = ["x", ""]', "at least two different class names"),
        ('kind = "classification"\ninputs = ["a", "a"]', "names a column twice"),
        ('kind = "classification"\ninputs = ["label"]', "names a column twice"),
        ('kind = "classification"\ninputs = [""]', "a column without a name"),
        ('kind = "regression"\ninputs = ["a"]\nlabels = ["x", "y"]', "remove its `labels`"),
        (
            'kind = "regression"\ninputs = ["a"]\nmetric = "accuracy"',
            "Metric 'accuracy' of task 't' does not fit",
        ),
        (
            'kind = "classification"\ninputs = ["a"]\nmetric = "squad"',
            "set `metric` to accuracy or f1 or macro_f1",
        ),
        (
            'kind = "classification"\ninputs = ["a"]\nlabels = ["x", "y", "z"]\nmetric = "f1"',
            "set `metric` to macro_f1",
        ),
        ('kind = "extractive-qa"\ninputs = ["a"]', "`inputs` must name two columns: question and context"),
        ('kind = "multiple-choice"\ninputs = ["a"]', "without choices"),
        ('kind = "token-classification"\ninputs = ["a", "b"]', "must name their column and no other"),
        ('kind = "token-classification"\ninputs = ["a"]\nlabels = ["NOUN", "VERB"]', "needs tags like B-PER"),
        ('kind = "extractive-qa"\ninputs = ["a", "b"]\nlabels = ["x", "y"]', "has no class names"),
    ],
)
def test_bad_task_toml(tmp_path: Path, toml: str, words: str) -> None:
    folder = write_task(tmp_path / "t", toml)
    message = error_of(folder)
    assert words in message
    if "not supported" not in words:
        assert str(folder / "task.toml") in message


def test_task_toml_that_is_not_utf8(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "t")
    (folder / "task.toml").write_bytes(b'description = "\xe9"')
    assert "is not UTF-8 (byte 16)" in error_of(folder)


# ---- labels from the data

NO_LABELS = TASK_TOML.replace("labels =", "# labels =")


def labelled(*labels: object) -> list[dict[str, object]]:
    return [{"premise": "a", "hypothesis": "b", "label": label} for label in labels]


def test_string_labels_are_sorted(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "t", NO_LABELS, labelled("no", "yes", "maybe", "no"), labelled("yes"))
    task = resolve_task(folder, None)
    assert task.labels == ("maybe", "no", "yes")
    assert load_task_data(task, None).train.labels == [1, 2, 0, 1]
    assert find_task(folder, None).labels == ()
    assert load_task_data(find_task(folder, None), None).task.labels == ("maybe", "no", "yes")


def test_integer_labels_become_their_own_names(tmp_path: Path) -> None:
    task = resolve_task(write_task(tmp_path / "t", NO_LABELS, labelled(2, 0, 1), labelled(1)), None)
    assert task.labels == ("0", "1", "2")
    assert load_task_data(task, None).train.labels == [2, 0, 1]


def test_a_label_of_the_validation_set_alone_counts(tmp_path: Path) -> None:
    task = resolve_task(write_task(tmp_path / "t", NO_LABELS, labelled("x", "y"), labelled("z")), None)
    assert task.labels == ("x", "y", "z")
    assert load_task_data(task, None).warnings == ("No training row has the label 'z'.",)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ((0, 2), "the integer labels 0, 2, expected 0 to n - 1 without a gap"),
        ((1, 2), "the integer labels 1, 2, expected"),
        ((0, "yes"), "labels of two types, such as 0 and 'yes'"),
        (("yes", "yes"), "its rows hold 1 different ones in column 'label'"),
        ((True, False), "its rows hold 0 different ones in column 'label'"),
    ],
)
def test_labels_that_cannot_be_taken_from_the_data(tmp_path: Path, labels: tuple[object, ...], words: str) -> None:
    folder = write_task(tmp_path / "t", NO_LABELS, labelled(*labels), labelled(labels[0]))
    assert words in error_of(folder)


def test_f1_needs_two_classes_also_when_they_come_from_the_data(tmp_path: Path) -> None:
    toml = NO_LABELS + 'metric = "f1"\n'
    assert resolve_task(write_task(tmp_path / "t", toml, labelled(0, 1), labelled(0)), None).metric == "f1"
    assert "set `metric` to macro_f1" in error_of(write_task(tmp_path / "t", toml, labelled(0, 1, 2), labelled(0)))


def test_labels_need_a_file_to_come_from(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "t", NO_LABELS, labelled("x", "y"), labelled("x"))
    (folder / "train.jsonl").unlink()
    write_lines(folder / "validation.jsonl", labelled("x", "y"))
    assert resolve_task(folder, None).labels == ("x", "y")
    (folder / "validation.jsonl").unlink()
    assert "train.jsonl does not exist" in error_of(folder)


def test_definition_in_one_folder_and_rows_in_the_data_folder(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "defs" / "ours", NO_LABELS)
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").unlink()
        write_lines(tmp_path / "data" / "ours" / f"{split}.jsonl", labelled("x", "y"))
    task = resolve_task(folder, tmp_path / "data")
    assert task.labels == ("x", "y")
    assert len(load_task_data(task, tmp_path / "data").train) == 2


# ---- the documentation


WITHOUT_NAMES = {
    "regression": "a number from 0 to 5",
    "multiple-choice": "the choices",
    "token-classification": "tags of labels.json",
    "extractive-qa": "a span",
}


def test_docs_list_the_registered_tasks() -> None:
    """Every built-in task has a row in docs/tasks.md with its inputs, labels, metric and place on the Hub."""
    text = (Path(__file__).parent.parent / "docs" / "tasks.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    for task in BUILT_IN_TASKS:
        row = rows[task.name]
        assert f"| {', '.join(task.inputs)} |" in row
        assert f"| `{task.metric}` |" in row
        if task.hub is not None:
            config = "" if task.hub.config is None else f" (`{task.hub.config}`"
            assert f"| `{task.hub.path}`{config}" in row
        names = ", ".join(task.labels)
        if task.rows is None:
            names = ", ".join(f"{index} {name}" for index, name in enumerate(task.labels))
        assert f"| {names or WITHOUT_NAMES[task.kind]} |" in row


def test_the_task_toml_of_the_docs(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "tasks.md").read_text(encoding="utf-8")
    toml = text.split("```toml\n")[1].split("```")[0]
    task = resolve_task(write_task(tmp_path / "t", toml), None)
    assert task.labels == ("entailment", "neutral", "contradiction")
    assert task.description.startswith("Does the second sentence")
    for key in (field.name for field in msgspec.structs.fields(TaskFile)):
        assert f"| `{key}` |" in text
        assert f"{key} = " in toml or f"[{key}]" in toml
