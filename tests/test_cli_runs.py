"""The commands from end to end on small tasks and a tiny random backbone."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli_support import PROGRAM, QUICK, Work, environment, finish, make_work, run, snapshot, start
from sklearn.metrics import accuracy_score

from panda_fusion import hookimpl
from panda_fusion.plugin_manager import temporary_plugin
from panda_fusion.prompt_file import load_prompt, save_prompt

TRAIN = "train --task {w}/mood --model {model} " + QUICK
TRANSFER = "transfer --task {w}/mood --model {model} " + QUICK + " --max-steps 4 --probe-steps 2"
RUN_KEYS = {
    "task",
    "model",
    "method",
    "metric",
    "score",
    "best",
    "last",
    "steps",
    "samples_per_second",
    "wall_seconds",
    "device",
    "precision",
    "seed",
    "prompt",
}
ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def work(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Work:
    return make_work(tmp_path_factory.getbasetemp() / "cli-work", tiny_folder("bert"))


@pytest.fixture(scope="module")
def chain(work: Work, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """train, rank, transfer, evaluate and predict, each in a process of its own."""
    folder = tmp_path_factory.mktemp("chain")
    train = TRAIN + " --method prefix:length=4 --epochs 2 --seed 3 --lr 0.02 --out {out}"
    first = start(*work.words(train, out="own.safetensors"), "--json", cwd=folder)
    second = start(*work.words(train, out="again.safetensors"), cwd=folder)
    done: dict[str, object] = {"folder": folder, "train": finish(first), "again": finish(second)}
    # --max-length is left out on purpose: the prompt file knows it.
    with_model = "--model {model} --precision fp32 --device cpu --json"
    for name, line in {
        "evaluate": "evaluate own.safetensors --task {w}/mood " + with_model,
        "predict": "predict own.safetensors --input {w}/mood/validation.jsonl --out own.jsonl " + with_model,
        "rank": "rank {w}/likeness.safetensors own.safetensors {w}/topic.safetensors --task {w}/mood"
        " --target-prompt own.safetensors --max-length 32 " + with_model,
        "transfer": TRANSFER + " --source {w}/topic.safetensors --source own.safetensors"
        " --out sub/both.safetensors --json",
    }.items():
        done[name] = start(*work.words(line), cwd=folder)
        if name in ("predict", "transfer"):  # two at a time
            for key, process in done.items():
                if isinstance(process, subprocess.Popen):
                    done[key] = finish(process)
    return done


def test_train_gives_one_json_object_with_every_key(chain):
    result = chain["train"].json
    assert set(result) >= RUN_KEYS
    assert result["task"] == "mood"
    assert result["method"] == "prefix:length=4,projection=0,init=normal"
    assert (result["metric"], result["steps"], result["seed"]) == ("accuracy", 4, 3)
    assert (result["device"], result["precision"], result["prompt"]) == ("cpu", "fp32", "own.safetensors")
    assert 0 <= result["last"] <= result["best"] <= 1
    assert result["score"] == result["best"]
    assert result["samples_per_second"] > 0
    assert load_prompt(chain["folder"] / "own.safetensors").scores["best"] == {"accuracy": result["best"]}


def test_the_same_seed_gives_the_same_bytes(chain):
    folder = chain["folder"]
    assert (folder / "own.safetensors").read_bytes() == (folder / "again.safetensors").read_bytes()


def test_a_log_gets_plain_lines(chain):
    """No terminal: no bar, no escape codes, one line per evaluation on stderr, the final table on stdout."""
    again = chain["again"]
    assert again.code == 0
    assert ESCAPE not in again.out + again.err
    assert "\r" not in again.out + again.err
    lines = again.err.splitlines()
    assert lines[0] == "training: mood, 4 steps, cpu fp32"
    assert [line.split(":")[0] for line in lines[1:]] == ["  epoch 1, step 2", "  epoch 2, step 4"]
    best = chain["train"].json["best"]
    rows = [line.split() for line in again.out.splitlines()]
    assert rows[5][:3] == ["accuracy,", "best", f"{best:.4f}"]
    assert rows[-1] == ["prompt", "again.safetensors"]


def test_evaluate_gives_the_best_score_of_the_training(chain):
    trained, evaluated = chain["train"].json, chain["evaluate"].json
    assert set(evaluated) >= RUN_KEYS
    assert evaluated["score"] == trained["best"]
    assert (evaluated["seed"], evaluated["steps"], evaluated["examples"]) == (3, 4, 20)


def test_predictions_have_the_accuracy_that_evaluate_reports(chain, work):
    assert chain["predict"].json["rows"] == 20
    predicted = [json.loads(line) for line in (chain["folder"] / "own.jsonl").read_text().splitlines()]
    truth = [json.loads(line) for line in Path(work["mood/validation.jsonl"]).read_text().splitlines()]
    accuracy = accuracy_score([row["label"] for row in truth], [row["label"] for row in predicted])
    assert accuracy == pytest.approx(chain["evaluate"].json["score"], abs=1e-12)
    for row in predicted:
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert row["label"] == ("bad", "good")[max((0, 1), key=row["probabilities"].__getitem__)]


def test_rank_orders_by_similarity_and_puts_the_target_itself_first(chain):
    result = chain["rank"].json
    assert set(result) >= {"similarity", "target", "ranking"}
    assert result["target"] == {
        "task": "mood",
        "prompt": "own.safetensors",
        "probe_steps": 0,
        "probe_seconds": 0.0,
    }
    values = [entry["similarity"] for entry in result["ranking"]]
    assert values == sorted(values, reverse=True)
    assert result["ranking"][0]["prompt"] == "own.safetensors"
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert {entry["task"] for entry in result["ranking"]} == {"mood", "topic", "likeness"}


def test_transfer_reports_its_sources_and_what_they_cost(chain, work):
    result = chain["transfer"].json
    assert set(result) >= RUN_KEYS | {"sources", "teacher", "fusion", "kd", "lambda", "teacher_forward_passes"}
    assert [source["path"] for source in result["sources"]] == [work["topic.safetensors"], "own.safetensors"]
    assert all(-1 <= source["similarity"] <= 1 for source in result["sources"])
    assert result["fusion"].startswith("late")
    assert result["teacher_forward_passes"] == 2
    assert result["lambda"] == 0.05
    lineage = load_prompt(chain["folder"] / "sub/both.safetensors").lineage
    assert [source.task for source in lineage.sources] == ["topic", "mood"]
    assert [source.similarity for source in lineage.sources] == [s["similarity"] for s in result["sources"]]


def test_nothing_but_the_results_is_left_in_the_folder(chain):
    """Neither temporary files nor caches."""
    assert set(snapshot(chain["folder"])) == {
        "own.safetensors",
        "again.safetensors",
        "own.jsonl",
        "sub",
        "sub/both.safetensors",
    }


@pytest.mark.parametrize(
    ("options", "fusion", "kd", "passes"),
    [
        ("", "single", "mse:space=probs", 1),
        ("--kd kl:temperature=2 --teacher source", "single", "kl:temperature=2.0", 1),
        ("--kd ce --teacher random", "single", "ce:temperature=1.0", 1),
        ("--kd mse:space=logits --similarity eavg --lambda 0", "single", "mse:space=logits", 1),
        ("--source {w}/topic.safetensors --fusion early", "early:normalize=false", "mse:space=probs", 1),
        (
            "--source {w}/topic.safetensors --fusion late:normalize=true --similarity constant",
            "late:normalize=true",
            "mse:space=probs",
            2,
        ),
    ],
)
def test_transfer_with_other_methods(work, tmp_path, options, fusion, kd, passes):
    line = TRANSFER + " --source {w}/mood.safetensors --out out.safetensors --json -q "
    result = run(*work.words(line + options), cwd=tmp_path).json
    assert (result["fusion"], result["kd"]) == (fusion, kd)
    assert result["teacher_forward_passes"] == passes
    assert result["probe_steps"] == (0 if "constant" in options else 2)
    assert load_prompt(tmp_path / "out.safetensors").lineage.kd == kd


def test_a_second_transfer_finds_the_teachers_predictions(work, tmp_path, monkeypatch):
    monkeypatch.setenv("PANDA_FUSION_CACHE", str(tmp_path / "cache"))
    line = TRANSFER + " --source {w}/mood.safetensors --json -q --out "
    passes = [
        run(*work.words(line + name), cwd=tmp_path).json["teacher_forward_passes"]
        for name in ("first.safetensors", "again.safetensors", "anew.safetensors --no-cache")
    ]
    assert passes == [1, 0, 1]
    first, again, anew = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("first", "again", "anew"))
    assert first == again == anew


def test_training_is_the_same_with_kept_tokens(work, tmp_path, monkeypatch):
    line = TRAIN + " --select-on train-split --max-steps 3 --json -q --out "
    for name, folder in (("none", ""), ("first", str(tmp_path / "cache")), ("second", str(tmp_path / "cache"))):
        monkeypatch.setenv("PANDA_FUSION_CACHE", folder)
        if name == "second":
            assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 3  # training, selection, validation set
            monkeypatch.setattr("panda_fusion.token_cache.encode_split", None)  # cannot be called
        assert run(*work.words(line + f"{name}.safetensors"), cwd=tmp_path).code == 0
    none, first, second = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("none", "first", "second"))
    assert none == first == second
    scoring = "evaluate second.safetensors --task {w}/mood --model {model} --precision fp32 --device cpu --json"
    assert run(*work.words(scoring), cwd=tmp_path).code == 0  # with the validation set's tokens


def test_transfer_to_a_regression_and_prediction_of_values(work, tmp_path):
    line = TRANSFER.replace("mood", "likeness") + " --source {w}/mood.safetensors --out out.safetensors --json -q"
    result = run(*work.words(line), cwd=tmp_path).json
    assert result["metric"] == "pearson_spearman"
    tail = "--model {model} --precision fp32 --device cpu --json"
    scored = run(*work.words("evaluate out.safetensors --task {w}/likeness " + tail), cwd=tmp_path).json
    assert scored["score"] == result["best"]
    rows = "predict out.safetensors --input {w}/likeness/validation.jsonl --out values.jsonl "
    assert run(*work.words(rows + tail), cwd=tmp_path).json["rows"] == 20
    values = [json.loads(one) for one in (tmp_path / "values.jsonl").read_text().splitlines()]
    assert all(set(value) == {"value"} and isinstance(value["value"], float) for value in values)


def test_predictions_are_for_the_rows_alone(work, tmp_path):
    """Labels are not read, columns that are not needed may be there, and the order is that of the file."""
    rows = ["ann is good, yes", "who can it be", "", "bob is not good, no"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": r, "label": 9, "x": 1}) + "\n" for r in rows))
    (tmp_path / "turned.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows[::-1]))
    for name in ("rows", "turned"):
        line = (
            f"predict {{w}}/mood.safetensors --model {{model}} --input {name}.jsonl --out {name}.out --precision fp32"
        )
        assert run(*work.words(line), cwd=tmp_path).code == 0
    forward, turned = ((tmp_path / f"{name}.out").read_text().splitlines() for name in ("rows", "turned"))
    shares = [[json.loads(line)["probabilities"] for line in lines] for lines in (forward, turned[::-1])]
    for one, other in zip(*shares, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_init_starts_from_the_other_prompts_tensors(work, tmp_path):
    """With a learning rate of next to nothing the result still is the source, and only the head is new."""
    line = TRAIN.replace("mood", "topic") + " --init {w}/mood.safetensors --max-steps 1 --lr 1e-12 --json -q --out o.st"
    result = run(*work.words(line), cwd=tmp_path).json
    assert result["init"] == work["mood.safetensors"]
    assert result["method"] == "prefix:length=4,projection=0,init=normal"
    source, started = load_prompt(work["mood.safetensors"]), load_prompt(tmp_path / "o.st")
    for name, tensor in source.tensors.items():
        assert (started.tensors[name] - tensor).abs().max() < 1e-9
    assert started.head["classifier.weight"].shape == (3, 32)
    assert [one.sha256 for one in started.lineage.sources] == [source.sha256]


def test_a_tenth_of_the_training_set_can_choose(work, tmp_path):
    line = TRAIN + " --select-on train-split --epochs 3 --batch-size 12 --json -q --out o.st"
    result = run(*work.words(line), cwd=tmp_path).json
    assert result["steps"] == 9  # 36 of the 40 rows are left to train on
    stored = load_prompt(tmp_path / "o.st").scores
    assert stored["selected_on"] == "train-split"
    tail = " --task {w}/mood --model {model} --precision fp32 --json"
    # What is reported still is the score on the validation set.
    assert run(*work.words("evaluate o.st" + tail), cwd=tmp_path).json["score"] == result["best"]


def test_quiet_prints_the_table_and_nothing_else(work, tmp_path):
    done = run(*work.words(TRAIN + " --max-steps 1 -q --out o.st"), cwd=tmp_path)
    assert done.code == 0
    assert done.err == ""
    assert done.out.split()[:2] == ["field", "value"]
    both = run(*work.words(TRAIN + " --max-steps 1 -q --json --out o.st"), cwd=tmp_path)
    assert both.err == ""
    assert both.json["steps"] == 1


def test_rank_trains_a_probe_where_no_target_prompt_is_given(work, tmp_path):
    line = "rank {w}/topic.safetensors {w}/soft.safetensors --task {w}/mood --model {model} --probe-steps 3 " + QUICK
    done = run(*work.words(line), cwd=tmp_path)
    assert done.code == 0
    assert "probe: mood, 3 steps" in done.err
    assert re.search(r"^ +1 +\S+/(topic|soft)\.safetensors +(topic|mood) +-?[01]\.\d{4}$", done.out, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def test_prompt_commands_on_what_train_wrote(work, tmp_path):
    shown = run("prompt", "show", work["mood.safetensors"], "--json", cwd=tmp_path).json
    assert shown["method"] == "prefix:length=4,projection=0,init=normal"
    verify = work.words("prompt verify {w}/mood.safetensors {w}/soft.safetensors --model {model} --json")
    assert run(*verify, cwd=tmp_path).json["ok"] is True
    assert run(*work.words("prompt export {w}/mood.safetensors --out peft --json"), cwd=tmp_path).code == 0
    back = "prompt import peft --model {model} --task {w}/mood --max-length 32 --out back.safetensors --json"
    assert run(*work.words(back), cwd=tmp_path).json["task_embedding"] is True
    tail = " --task {w}/mood --model {model} --max-length 32 --precision fp32 --json"
    scores = [
        run(*work.words(f"evaluate {file}" + tail), cwd=tmp_path).json["score"]
        for file in ("{w}/mood.safetensors", "back.safetensors")
    ]
    assert scores[0] == scores[1]


def test_interrupt_keeps_the_best_so_far(work, tmp_path):
    line = TRAIN + " --method prefix:length=4 --epochs 100000 --json --out kept.safetensors"
    process = start(*work.words(line), cwd=tmp_path)
    assert process.stderr is not None
    for text in process.stderr:
        if text.startswith("  epoch 2,"):
            break
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 130
    assert "Warning: interrupted at step " in done.err
    assert "Traceback" not in done.err
    result = json.loads(done.out)
    assert result["interrupted"] is True
    assert 4 <= result["steps"] < result["steps_planned"] == 200000
    assert load_prompt(tmp_path / "kept.safetensors").scores["best"] == {"accuracy": result["best"]}
    assert [path.name for path in tmp_path.iterdir()] == ["kept.safetensors"]


@pytest.mark.parametrize(
    ("options", "stage"),
    [("--probe-steps 100000", "probe"), ("--teacher target-like:epochs=100000 --similarity constant", "teacher")],
)
def test_interrupt_before_the_student_stops_and_writes_nothing(work, tmp_path, options, stage):
    """Half a probe or half a teacher is no basis to go on from."""

    class Impatient:
        @hookimpl
        def step_ended(self, step: int) -> None:
            if step == 3:
                signal.raise_signal(signal.SIGINT)

    line = TRANSFER.replace("--probe-steps 2", "") + " --source {w}/mood.safetensors --out out.safetensors "
    with temporary_plugin(Impatient(), "impatient"):
        done = run(*work.words(line + options), cwd=tmp_path)
    assert done.code == 130
    assert done.err.splitlines()[-1] == "Interrupted."
    assert [text.split(":")[0] for text in done.err.splitlines()[:-1] if text] == [stage]
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_shows_a_bar_and_then_the_whole_table(work, tmp_path):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *work.words(TRAIN + " --epochs 200 --out o.st")],
        cwd=tmp_path,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment(TERM="xterm", COLUMNS="100", LINES="40"),
        close_fds=True,
    )
    os.close(slave)
    seen = b""
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        ready, _, _ = select.select([master], [], [], 1)
        if ready:
            try:
                piece = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            seen += piece
    os.close(master)
    assert process.wait(timeout=30) == 0
    text = seen.decode()
    assert re.search(r"training: mood .*━.*\d+/400", text), text
    assert re.search(r"accuracy [01]\.\d{4}", text)
    table = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text[text.rindex("field") :]).splitlines()
    assert [row.split()[0] for row in table if row.strip() and not row.startswith("─")] == [
        "field",
        "task",
        "model",
        "method",
        "accuracy,",
        "accuracy,",
        "samples",
        "seconds",
        "device",
        "prompt",
    ]
    assert table[-1].split() == ["prompt", "o.st"]


def test_a_negative_similarity_is_told(chain, work, tmp_path):
    """The opposite of the target's own task embedding has cosine -1; every equation then pushes away."""
    own = chain["folder"] / "own.safetensors"
    prompt = load_prompt(own)
    save_prompt(replace(prompt, embedding=-prompt.embedding), tmp_path / "opposite.safetensors")
    for sources in ("--source opposite.safetensors", "--source opposite.safetensors --source {own}"):
        line = TRANSFER + " --target-prompt {own} --out out.safetensors " + sources
        done = run(*work.words(line, own=own), cwd=tmp_path)
        assert done.code == 0, done.err
        assert "Warning: the similarity of opposite.safetensors is negative (-1)" in done.err
