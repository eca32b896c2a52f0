"""Every bad input: one line that names it, exit code 1 or 2, no traceback, nothing left behind, found early."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_support import QUICK, Done, Work, finish, make_work, poison, run, snapshot, start, write_task
from prompt_samples import change_json, contents, rewrite
from safetensors.torch import load_file, save_file

import panda_fusion.backbone

TRAIN = "train --model {model} --max-length 32 --out out.safetensors"
TRANSFER = "transfer --model {model} --max-length 32 --out out.safetensors --source {w}/mood.safetensors"
ROW = '{"text": "a", "label": "bad"}\n'
TOML = 'kind = "classification"\ninputs = ["text"]\nlabels = ["bad", "good"]\n'


@pytest.fixture(scope="module")
def work(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Work:
    return make_work(tmp_path_factory.getbasetemp() / "cli-work", tiny_folder("bert"))


@pytest.fixture
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Done]:
    """The program in a process of its own that cannot import torch or transformers."""
    path = poison(tmp_path_factory.getbasetemp())

    def launch(*words: str, cwd: Path) -> Done:
        return finish(start(*words, cwd=cwd, PYTHONPATH=path))

    return launch


def check_refused(done: Done, code: int, *named: str) -> None:
    """One line on stderr (or click's usage with code 2), nothing on stdout, everything named."""
    assert done.code == code, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    assert "unexpected" not in done.err
    assert "\x1b" not in done.err
    lines = done.err.splitlines()
    errors = [line for line in lines if line.startswith("Error: ")]
    assert len(errors) == 1
    assert len(errors[0]) < 600
    if code == 1:
        assert [line for line in lines if not line.startswith("Warning: ")] == errors
    else:
        assert lines[0].startswith("Usage: panda-fusion ")
    for text in named:
        assert text in errors[0]


USAGE = {
    "unknown command": ("trian --task x", 2, ["trian", "train"]),
    "unknown option": (TRAIN + " --task {w}/mood --epoch 3", 2, ["--epoch"]),
    "option value of another type": (TRAIN + " --task {w}/mood --epochs many", 2, ["--epochs", "many"]),
    "no epochs": (TRAIN + " --task {w}/mood --epochs 0", 2, ["--epochs", "0"]),
    "no rows in a batch": (TRAIN + " --task {w}/mood --batch-size 0", 2, ["--batch-size"]),
    "learning rate NaN": (TRAIN + " --task {w}/mood --lr nan", 2, ["--lr", "nan"]),
    "learning rate infinite": (TRAIN + " --task {w}/mood --lr inf", 2, ["--lr", "inf"]),
    "learning rate 0": (TRAIN + " --task {w}/mood --lr 0", 2, ["--lr"]),
    "dropout 1": (TRAIN + " --task {w}/mood --dropout 1", 2, ["--dropout"]),
    "seed below 0": (TRAIN + " --task {w}/mood --seed -1", 2, ["--seed"]),
    "max length beyond reason": (TRAIN + " --task {w}/mood --max-length 99999999999999999999", 2, ["--max-length"]),
    "lambda below 0": (TRANSFER + " --task {w}/mood --lambda -1", 2, ["--lambda", "-1"]),
    "lambda NaN": (TRANSFER + " --task {w}/mood --lambda nan", 2, ["--lambda", "nan"]),
    "no source": ("transfer --model {model} --task {w}/mood --out o.safetensors", 2, ["--source"]),
    "nothing to rank": ("rank --model {model} --task {w}/mood", 2, ["PROMPT"]),
    "no model": ("train --task {w}/mood --out o.safetensors", 2, ["--model"]),
    "no output": ("train --task {w}/mood --model {model}", 2, ["--out"]),
    "unknown device": (TRAIN + " --task {w}/mood --device tpu", 2, ["tpu", "cuda"]),
    "unknown selection": (TRAIN + " --task {w}/mood --select-on test", 2, ["test", "train-split"]),
}
METHODS = {
    "unknown PEFT method": (TRAIN + " --task {w}/mood --method prefx", 1, ["prefx", "prefix"]),
    "unknown method option": (TRAIN + " --task {w}/mood --method prefix:lenght=3", 1, ["lenght", "length"]),
    "method option of another type": (TRAIN + " --task {w}/mood --method prefix:length=x", 1, ["length", "'x'"]),
    "method option out of range": (TRAIN + " --task {w}/mood --method prefix:length=0", 1, ["length", "'0'"]),
    "no method string": (TRAIN + " --task {w}/mood --method prefix:3", 1, ["prefix:3", "option=value"]),
    "unknown teacher": (TRANSFER + " --task {w}/mood --teacher targetlike", 1, ["targetlike", "target-like"]),
    "unknown fusion": (TRANSFER + " --task {w}/mood --fusion lat", 1, ["'lat'", "late"]),
    "unknown KD loss": (TRANSFER + " --task {w}/mood --kd kll", 1, ["kll", "kl"]),
    "unknown similarity": (TRANSFER + " --task {w}/mood --similarity pand", 1, ["pand", "panda"]),
    "unknown similarity to rank by": (
        "rank {w}/mood.safetensors --model {model} --task {w}/mood --similarity onn",
        1,
        ["onn"],
    ),
    "KL on a regression": (TRANSFER + " --task {w}/likeness --kd kl", 1, ["kl", "regression"]),
    "fusion single of two": (
        TRANSFER + " --task {w}/mood --fusion single --source {w}/topic.safetensors",
        1,
        ["single", "2"],
    ),
    "early fusion of two methods": (
        TRANSFER + " --task {w}/mood --fusion early --source {w}/soft.safetensors",
        1,
        ["mood.safetensors", "prefix", "soft.safetensors", "prompt:length=4"],
    ),
    "target prompt of another task": (
        TRANSFER + " --task {w}/mood --target-prompt {w}/topic.safetensors",
        1,
        ["--target-prompt", "topic", "bad, good"],
    ),
}
TASKS = {
    "unknown task": (TRAIN + " --task sst3", 1, ["sst3", "sst2"]),
    "task folder that is not there": (TRAIN + " --task ./nowhere", 1, ["./nowhere"]),
    "folder without task.toml": (TRAIN + " --task {w}", 1, ["task.toml"]),
    "data folder that is not there": (TRAIN + " --task sst2 --data nowhere", 1, ["nowhere"]),
    "data folder without the task": (TRAIN + " --task sst2 --data {w}", 1, ["sst2"]),
    "labels of another task": (
        "evaluate {w}/mood.safetensors --model {model} --task {w}/topic",
        1,
        ["topic", "who, what, yes", "mood", "bad, good"],
    ),
    "regression for a classification": (
        "evaluate {w}/mood.safetensors --model {model} --task {w}/likeness",
        1,
        ["regression", "classification"],
    ),
}
MODELS = {
    "model folder that is not there": (
        "train --task {w}/mood --model ./nowhere --out o.safetensors",
        1,
        ["./nowhere", "no such folder"],
    ),
    "model folder without a model": (
        "evaluate {w}/mood.safetensors --task {w}/mood --model {w}",
        1,
        ["config.json"],
    ),
    "model that is a file": (
        "rank {w}/mood.safetensors --task {w}/mood --model {w}/mood.safetensors",
        1,
        ["mood.safetensors", "file"],
    ),
    "model that can be no name": (
        "transfer --source {w}/mood.safetensors --task {w}/mood --model a:b --out o.safetensors",
        1,
        ["a:b"],
    ),
}
OUTPUTS = {
    "output below a file": (TRAIN.replace("out.safetensors", "{w}/mood/task.toml/o.st"), 1, ["o.st"]),
    "output that is a folder": (TRAIN.replace("out.safetensors", "{w}"), 1, ["is a folder"]),
    "output that is a device": (TRAIN.replace("out.safetensors", "/dev/null"), 1, ["/dev/null"]),
    "output with too long a name": (TRAIN.replace("out.safetensors", "n" * 300), 1, ["too long"]),
    "output that is the prompt of --init": (
        TRAIN.replace("out.safetensors", "{w}/mood.safetensors") + " --init {w}/mood.safetensors",
        1,
        ["overwrite", "--init"],
    ),
    "output that is a source": (
        TRANSFER.replace("out.safetensors", "{w}/mood.safetensors"),
        1,
        ["overwrite", "source"],
    ),
    "predictions below a file": (
        "predict {w}/mood.safetensors --model {model} --input {w}/mood/train.jsonl --out {w}/mood/task.toml/o",
        1,
        ["task.toml"],
    ),
    "predictions over their input": (
        "predict {w}/mood.safetensors --model {model} --input {w}/mood/train.jsonl --out {w}/mood/train.jsonl",
        1,
        ["overwrite", "input"],
    ),
}
OUTPUTS = {
    name: (line + " --task {w}/mood" * ("predict" not in line), code, named)
    for name, (line, code, named) in OUTPUTS.items()
}


@pytest.mark.parametrize(("line", "code", "named"), [pytest.param(*case, id=name) for name, case in USAGE.items()])
def test_wrong_usage(work, tmp_path, line, code, named):
    check_refused(run(*work.words(line), cwd=tmp_path), code, *named)
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    ("line", "code", "named"),
    [pytest.param(*case, id=name) for group in (METHODS, TASKS, MODELS, OUTPUTS) for name, case in group.items()],
)
def test_refused_before_torch_is_imported(work, tmp_path, without_torch, line, code, named):
    before = snapshot(work.folder)
    check_refused(without_torch(*work.words(line), cwd=tmp_path), code, *named)
    assert snapshot(tmp_path) == {}
    assert snapshot(work.folder) == before


DATA = {
    "no rows": ("train.jsonl", "", ["train.jsonl", "no rows"]),
    "empty validation set": ("validation.jsonl", "\n\n", ["validation.jsonl", "no rows"]),
    "missing file": ("validation.jsonl", None, ["validation.jsonl"]),
    "no JSON": ("train.jsonl", ROW + "{text: 1}\n", ["train.jsonl line 2", "not JSON"]),
    "cut off": ("train.jsonl", ROW * 2 + ROW[:9], ["train.jsonl line 3"]),
    "no object": ("train.jsonl", ROW + "[1]\n", ["train.jsonl line 2", "object", "a list"]),
    "missing column": ("train.jsonl", '{"txt": "a", "label": "bad"}\n', ["train.jsonl line 1", "'text'", "txt"]),
    "missing label": ("validation.jsonl", ROW + '{"text": "a"}\n', ["validation.jsonl line 2", "'label'"]),
    "number for a text": ("train.jsonl", ROW + '{"text": 3, "label": "bad"}\n', ["train.jsonl line 2", "'text'"]),
    "unknown label": ("train.jsonl", ROW + '{"text": "a", "label": "ugly"}\n', ["train.jsonl line 2", "ugly"]),
    "label out of range": ("train.jsonl", '{"text": "a", "label": 2}\n', ["train.jsonl line 1", "2"]),
    "no UTF-8": ("train.jsonl", b'{"text": "\xff", "label": 0}\n', ["train.jsonl line 1", "UTF-8"]),
    "broken task.toml": ("task.toml", "kind = \n", ["task.toml"]),
    "unknown kind": ("task.toml", TOML.replace("classification", "clasification"), ["task.toml", "kind"]),
    "unknown key": ("task.toml", TOML + "metrics = 1\n", ["task.toml", "metrics", "metric"]),
    "metric of another kind": ("task.toml", TOML + 'metric = "pearson_spearman"\n', ["task.toml", "pearson"]),
}


@pytest.mark.parametrize(("file", "content", "named"), [pytest.param(*case, id=name) for name, case in DATA.items()])
def test_bad_data_are_named_by_file_and_line(work, tmp_path, without_torch, file, content, named):
    rows = [{"text": "a", "label": "bad"}, {"text": "b", "label": "good"}]
    folder = write_task(tmp_path / "task", TOML, {"train": rows, "validation": rows})
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = snapshot(tmp_path)
    check_refused(without_torch(*work.words(TRAIN + " --task task"), cwd=tmp_path), 1, *named)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "named"),
    [
        pytest.param('{"text": "a"}\n{"sentence": "a"}\n', ["rows.jsonl line 2", "'text'", "sentence"], id="column"),
        pytest.param("", ["rows.jsonl", "no rows"], id="empty"),
        pytest.param(None, ["rows.jsonl"], id="missing"),
        pytest.param('{"text": null}\n', ["rows.jsonl line 1", "'text'", "null"], id="type"),
    ],
)
def test_bad_rows_to_predict(work, tmp_path, without_torch, content, named):
    if content is not None:
        (tmp_path / "rows.jsonl").write_text(content)
    before = snapshot(tmp_path)
    line = "predict {w}/mood.safetensors --model {model} --input rows.jsonl --out out.jsonl"
    check_refused(without_torch(*work.words(line), cwd=tmp_path), 1, *named)
    assert snapshot(tmp_path) == before


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _pickle(path: Path) -> None:
    torch.save({"key": torch.zeros(2)}, path)


def _text(path: Path) -> None:
    path.write_text("this is no prompt\n")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _missing(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _foreign(path: Path) -> None:
    rewrite(path, {"weight": torch.zeros(2)}, {"format": "pt"})


def _huge_header(path: Path) -> None:
    path.write_bytes((2**40).to_bytes(8, "little") + path.read_bytes()[8:])


def _long_metadata(path: Path) -> None:
    change_json(path, "training", notes="x" * 2**21)


def _nested_metadata(path: Path) -> None:
    tensors, metadata = contents(path)
    rewrite(path, tensors, metadata | {"training": "[" * 100_000})


def _giant_backbone(path: Path) -> None:
    change_json(path, "backbone", layers=10**12)


def _terminal_codes(path: Path) -> None:
    change_json(path, "task", kind="\x1b[2J\x1b]0;owned\x07")


def _leading_out(path: Path) -> None:
    change_json(path, "task", name="../../etc/passwd")


def _newer(path: Path) -> None:
    tensors, metadata = contents(path)
    rewrite(path, tensors, metadata | {"format_version": "2"})


def _wrong_shape(path: Path) -> None:
    tensors, metadata = contents(path)
    rewrite(path, tensors | {"peft.key": tensors["peft.key"][:, :3].clone()}, metadata)


def _no_head(path: Path) -> None:
    tensors, metadata = contents(path)
    rewrite(path, {name: t for name, t in tensors.items() if not name.startswith("head.")}, metadata)


def _narrow_head(path: Path) -> None:
    tensors, metadata = contents(path)
    narrow = {name: tensor[:1].clone() for name, tensor in tensors.items() if name.startswith("head.")}
    rewrite(path, tensors | narrow, metadata)


def _unknown_method(path: Path) -> None:
    tensors, metadata = contents(path)
    rewrite(path, tensors, metadata | {"method": '"telepathy:length=4"'})


def _nan(path: Path) -> None:
    tensors, metadata = contents(path)
    tensors["peft.value"][0, 0, 0, 0] = float("nan")
    rewrite(path, tensors, metadata)


HEADER: dict[Callable[[Path], None], str] = {
    _truncated: "truncated",
    _pickle: "zip archive",
    _text: "not a safetensors file",
    _empty: "empty",
    _missing: "no such file",
    _folder: "",
    _foreign: "no prompt of panda-fusion",
    _huge_header: "header",
    _long_metadata: "bytes",
    _nested_metadata: "nested",
    _giant_backbone: "layers",
    _terminal_codes: "kind",
    _leading_out: "plain name",
    _newer: "version 2",
}
"""What is wrong in the header itself."""
FITTING: dict[Callable[[Path], None], str] = {
    _wrong_shape: "peft.key",
    _no_head: "head",
    _narrow_head: "outputs",
    _unknown_method: "telepathy",
}
"""What does not fit together; `prompt show` reads a file nevertheless."""
VALUES = {_nan: "not finite"}
"""What shows only in the numbers; that takes torch."""
READERS = {
    "evaluate": "evaluate bad.safetensors --task {w}/mood --model {model}",
    "predict": "predict bad.safetensors --model {model} --input {w}/mood/train.jsonl --out out.jsonl",
    "rank": "rank {w}/topic.safetensors bad.safetensors --task {w}/mood --model {model}",
    "rank target": "rank {w}/topic.safetensors --target-prompt bad.safetensors --task {w}/mood --model {model}",
    "transfer": "transfer --source {w}/topic.safetensors --source bad.safetensors --task {w}/mood --model {model}"
    " --out out.safetensors",
    "transfer target": "transfer --source {w}/topic.safetensors --target-prompt bad.safetensors --task {w}/mood"
    " --model {model} --out out.safetensors",
    "init": "train --init bad.safetensors --task {w}/mood --model {model} --out out.safetensors",
    "export": "prompt export bad.safetensors --out folder",
}


def spoilt(work: Work, folder: Path, spoil: Callable[[Path], None]) -> dict[str, str]:
    """Put a spoilt copy of a good prompt into the folder; returns what the folder then holds."""
    shutil.copy(work["mood.safetensors"], folder / "bad.safetensors")
    spoil(folder / "bad.safetensors")
    return snapshot(folder)


@pytest.mark.parametrize("line", [pytest.param(line, id=name) for name, line in READERS.items()])
@pytest.mark.parametrize("spoil", [*HEADER, *FITTING, *VALUES])
def test_bad_prompts_are_refused_before_the_model_is_loaded(work, tmp_path, monkeypatch, spoil, line):
    def no_model(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    before = spoilt(work, tmp_path, spoil)
    monkeypatch.setattr(panda_fusion.backbone, "load_backbone", no_model)
    done = run(*work.words(line), cwd=tmp_path)
    check_refused(done, 1, "bad.safetensors", (HEADER | FITTING | VALUES)[spoil])
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("spoil", [*HEADER, *FITTING])
def test_what_a_header_tells_needs_no_torch(work, tmp_path, without_torch, spoil):
    before = spoilt(work, tmp_path, spoil)
    done = without_torch(*work.words(READERS["evaluate"]), cwd=tmp_path)
    check_refused(done, 1, "bad.safetensors", (HEADER | FITTING)[spoil])
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("spoil", HEADER)
def test_show_refuses_a_bad_header(work, tmp_path, spoil):
    before = spoilt(work, tmp_path, spoil)
    check_refused(run("prompt", "show", "bad.safetensors", cwd=tmp_path), 1, "bad.safetensors", HEADER[spoil])
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("spoil", [*HEADER, *FITTING, *VALUES])
def test_verify_fails_a_bad_prompt_and_goes_on(work, tmp_path, spoil):
    before = spoilt(work, tmp_path, spoil)
    done = run(*work.words("prompt verify bad.safetensors {w}/mood.safetensors"), cwd=tmp_path)
    assert done.code == 1
    failed, fine = done.out.splitlines()
    assert failed.startswith("failed: ")
    assert "bad.safetensors" in failed
    assert (HEADER | FITTING | VALUES)[spoil] in failed
    assert fine.startswith("ok: ")
    assert snapshot(tmp_path) == before


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from panda_fusion.testing import make_tiny_backbone

    return make_tiny_backbone("bert", tmp_path_factory.mktemp("other") / "bert", seed=1)


@pytest.mark.parametrize("line", [pytest.param(line, id=name) for name, line in READERS.items() if name != "export"])
def test_prompts_of_another_backbone(work, tiny_folder, other_weights, tmp_path, line):
    shutil.copy(work["mood.safetensors"], tmp_path / "bad.safetensors")
    before = snapshot(tmp_path)
    for model, named in ((other_weights, "other weights"), (tiny_folder("roberta"), "architecture bert")):
        words = work.words(line.replace("{model}", "{other}"), other=model)
        check_refused(run(*words, cwd=tmp_path), 1, named, str(model))
    assert snapshot(tmp_path) == before


LATE = {
    "texts too long for the position table": (
        "train --task {w}/mood --model {model} --max-length 4096 --out o.st",
        ["4096", "128", "--max-length"],
    ),
    "prompt too long for the position table": (
        TRAIN + " --task {w}/mood --method prefix:length=100",
        ["100 virtual tokens", "132", "128"],
    ),
    "source too long for the position table": (
        "transfer --source {w}/mood.safetensors --task {w}/mood --model {model} --max-length 128 --out o.st",
        ["4 virtual tokens", "128"],
    ),
    "ranking with texts too long": (
        "rank {w}/mood.safetensors --task {w}/mood --model {model} --max-length 128",
        ["128"],
    ),
    "evaluation with texts too long": (
        "evaluate {w}/mood.safetensors --task {w}/mood --model {model} --max-length 128",
        ["128"],
    ),
    "prediction with texts too long": (
        "predict {w}/mood.safetensors --input {w}/mood/train.jsonl --model {model} --max-length 128 --out o",
        ["128"],
    ),
    "model that the Hub does not give": (
        "train --task {w}/mood --model panda-fusion-tests/nowhere --out o.st",
        ["panda-fusion-tests/nowhere"],
    ),
    "learning rate that diverges": (
        TRAIN + " --task {w}/mood --lr 1e30 --method prefix:length=4 --precision fp32",
        ["not finite", "learning rate", "1e+30"],
    ),
    "another method than that of --init": (
        TRAIN + " --task {w}/mood --init {w}/mood.safetensors --method prompt",
        ["mood.safetensors", "--method"],
    ),
    "projection on top of --init": (
        TRAIN + " --task {w}/mood --init {w}/mood.safetensors --method prefix:length=4,projection=8",
        ["projection"],
    ),
}


@pytest.mark.parametrize(("line", "named"), [pytest.param(*case, id=name) for name, case in LATE.items()])
def test_refused_before_anything_is_trained(work, tmp_path, line, named):
    before = snapshot(work.folder)
    done = run(*work.words(line), "-q", cwd=tmp_path)
    check_refused(done, 1, *named)
    assert snapshot(tmp_path) == {}
    assert snapshot(work.folder) == before


def _broken_config(model: Path) -> None:
    (model / "config.json").write_text("{")


def _broken_weights(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"no weights")


def _weights_of_another_architecture(model: Path) -> None:
    """transformers draws what it does not find, and says so in a log only."""
    tensors = load_file(model / "model.safetensors")
    renamed = {f"other.{name}": tensor for name, tensor in tensors.items()}
    save_file(renamed, model / "model.safetensors", {"format": "pt"})


def _no_tokenizer(model: Path) -> None:
    """transformers makes an empty tokenizer, to which every text is unknown."""
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()


BROKEN_MODELS = {
    _broken_config: "config",
    _broken_weights: "header",
    _weights_of_another_architecture: "of its weights",
    _no_tokenizer: "no tokenizer",
}


@pytest.mark.parametrize("spoil", BROKEN_MODELS)
def test_broken_model_folders(work, tiny_folder, tmp_path, spoil):
    shutil.copytree(tiny_folder("bert"), tmp_path / "model")
    spoil(tmp_path / "model")
    before = snapshot(tmp_path)
    line = "train --task {w}/mood --model model --max-length 32 --out o.st"
    check_refused(run(*work.words(line), cwd=tmp_path), 1, "'model'", BROKEN_MODELS[spoil])
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(work, tmp_path):
    for line in (TRAIN + " --task {w}/mood", READERS["evaluate"].replace("bad", "{w}/mood")):
        check_refused(run(*work.words(line), "--device", "cuda", cwd=tmp_path), 1, "cuda", "--device cpu")
    assert snapshot(tmp_path) == {}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_write_protected_folder(work, tmp_path, without_torch):
    (tmp_path / "locked").mkdir(mode=0o555)
    line = TRAIN.replace("out.safetensors", "locked/out.safetensors") + " --task {w}/mood"
    check_refused(without_torch(*work.words(line), cwd=tmp_path), 1, "locked/out.safetensors", "permission")


def test_errors_with_json_are_the_same_one_line(work, tmp_path, without_torch):
    words = work.words(TRAIN + " --task sst3")
    plain, with_json = (without_torch(*words, *more, cwd=tmp_path) for more in ((), ("--json",)))
    check_refused(with_json, 1, "sst3")
    assert with_json.err == plain.err


def test_a_training_that_fails_leaves_the_old_file(work, tmp_path):
    """The output exists already; a run that diverges must not touch it."""
    shutil.copy(work["mood.safetensors"], tmp_path / "out.safetensors")
    before = snapshot(tmp_path)
    line = TRAIN + " --task {w}/mood --lr 1e30 -q " + QUICK.replace("--max-length 32", "")
    check_refused(run(*work.words(line), cwd=tmp_path), 1, "not finite")
    assert snapshot(tmp_path) == before


def test_malicious_training_notes_do_not_choose_the_length_of_texts(work, tmp_path):
    """`evaluate` takes --max-length from the prompt; nonsense there means the default, which is refused here."""
    for value in (10**30, -1, True, "32", None, {"a": 1}):
        shutil.copy(work["mood.safetensors"], tmp_path / "bad.safetensors")
        change_json(tmp_path / "bad.safetensors", "training", recipe={"max_length": value})
        done = run(*work.words(READERS["evaluate"]), cwd=tmp_path)
        check_refused(done, 1, "128 tokens")
    text = json.dumps({"text": "a"})
    (tmp_path / "rows.jsonl").write_text(text)
    change_json(tmp_path / "bad.safetensors", "training", recipe={"max_length": 16})
    line = "predict bad.safetensors --model {model} --input rows.jsonl --out out.jsonl"
    assert run(*work.words(line), cwd=tmp_path).code == 0
