"""`panda-fusion prompt`: what it prints, what it writes, how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from prompt_samples import TASK, change_json, contents, make_prompt, rewrite

from panda_fusion.backbone import load_backbone
from panda_fusion.plugin_manager import peft_methods
from panda_fusion.prompt_file import file_sha256, load_prompt, save_prompt
from panda_fusion.testing.backbones import make_tiny_backbone
from panda_fusion_cli.main import main

ROWS = [
    {"text": "this is good", "label": "yes"},
    {"text": "no it is not", "label": "no"},
    {"text": "they can be", "label": "maybe"},
]
SHORT = ("--max-length", 32)
"""The tiny model has 128 positions, too few for the virtual tokens and the default of 128."""
TASK_FILE = 'kind = "classification"\ninputs = ["text"]\nlabels = ["yes", "maybe", "no"]\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_prompt(make_prompt(), tmp_path / "nli.safetensors")
    return tmp_path / "nli.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_backbone("roberta", tmp_path_factory.mktemp("roberta"), seed=3)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task folder with a few rows."""
    folder = tmp_path / "reviews"
    folder.mkdir()
    (folder / "task.toml").write_text(TASK_FILE)
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture
def fitting(tmp_path: Path, model: Path) -> Path:
    """A prompt file for the model."""
    backbone = load_backbone(str(model), device=torch.device("cpu"), dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    method = peft_methods().create("prefix:length=4")
    prompt = make_prompt(
        method.spec,
        tensors=method.create(backbone, generator),
        head=backbone.head(3).create(generator),
        embedding=torch.randn(backbone.shape.hidden, generator=generator),
        backbone=backbone.info,
        task=msgspec.structs.replace(TASK, name="reviews", inputs=("text",)),
    )
    save_prompt(prompt, tmp_path / "fitting.safetensors")
    return tmp_path / "fitting.safetensors"


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    capsys.readouterr()
    code = main(["prompt", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def result(capsys: pytest.CaptureFixture[str], *args: object, code: int = 0) -> dict:
    """The one JSON object that a command prints on stdout."""
    found, out, err = run(capsys, *args, "--json")
    assert found == code, err
    assert out.endswith("}\n")
    assert out.count("\n") == 1
    return json.loads(out)


# show


def test_show(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "show", path)
    assert code == 0
    for words in (
        "prefix:length=3,projection=0,init=normal",
        "some/bert",
        "nli",
        "0.75",
        "target-like",
        "mnli.safetensors",
        "peft.key",
        "2 x 3 x 4 x 4",
        f"{path.stat().st_size} bytes",
        file_sha256(path),
    ):
        assert words in out


def test_show_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = result(capsys, "show", path)
    assert shown["method"] == "prefix:length=3,projection=0,init=normal"
    assert shown["backbone"]["fingerprint"] == "ab" * 32
    assert shown["task"]["labels"] == ["yes", "maybe", "no"]
    assert shown["scores"] == {"best": 0.75, "last": 0.5, "metric": "accuracy"}
    assert shown["lineage"]["lambda"] == 0.05
    assert shown["lineage"]["sources"][0]["similarity"] == 0.5
    assert shown["tensors"]["peft.key"] == [2, 3, 4, 4]
    assert shown["parameters"] == 2 * 96 + 3 * 16 + 3 + 16
    assert shown["bytes"] == path.stat().st_size
    assert shown["sha256"] == file_sha256(path)
    assert shown["format_version"] == 1


def test_show_works_without_the_plugin_of_the_method(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, metadata = contents(path)
    rewrite(path, tensors, metadata | {"method": '"hyper:rank=4"'})
    assert result(capsys, "show", path)["method"] == "hyper:rank=4"
    assert run(capsys, "verify", path)[0] == 1


def test_show_does_not_let_a_file_steer_the_terminal(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e[bold red]x[/]"
    change_json(path, "task", name=evil, labels=[evil, "b", "c"])
    change_json(path, "backbone", name=evil, fingerprint=evil)
    change_json(path, "scores", **{evil: evil})
    change_json(path, "training", text=evil, nested={evil: [evil]})
    change_json(path, "lineage", teacher=evil)
    for arguments in (("show", path), ("show", path, "--json"), ("verify", path), ("verify", path, path)):
        code, out, err = run(capsys, *arguments)
        assert code == 0
        assert all(line.isprintable() for line in (out + err).splitlines())
    _, out, _ = run(capsys, "show", path)
    assert "[bold red]x[/]" in out


def test_show_cuts_what_is_long(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_json(path, "training", text="x" * 100_000, **{f"key{number}": number for number in range(1000)})
    _, out, _ = run(capsys, "show", path)
    assert "more" in out
    assert len(out) < 60_000
    assert len(result(capsys, "show", path)["training"]["text"]) == 100_000


def test_show_imports_no_torch(path: Path) -> None:
    program = (
        "import sys; from panda_fusion_cli.main import main; code = main(['prompt', 'show', sys.argv[1]]);"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; sys.exit(code)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, str(path)], env=environment, check=True, capture_output=True)


# verify


def test_verify_prints_one_line_per_file(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "verify", path, path)
    assert (code, out.count("\n")) == (0, 2)
    assert out.startswith(f"ok: {path}")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(path.read_bytes()[:-5])
    code, out, err = run(capsys, "verify", broken, path, tmp_path / "nosuch")
    lines = out.splitlines()
    assert (code, err) == (1, "")
    assert [line.split(":")[0] for line in lines] == ["failed", "ok", "failed"]
    assert "truncated" in lines[0]
    code, out, err = run(capsys, "verify", "-q", broken, path)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1


def test_verify_json(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert result(capsys, "verify", path) == {
        "ok": True,
        "files": [{"path": str(path), "ok": True, "error": None, "sha256": file_sha256(path)}],
    }
    failed = result(capsys, "verify", path, tmp_path, code=1)
    assert failed["ok"] is False
    assert [one["ok"] for one in failed["files"]] == [True, False]
    assert "is a folder" in failed["files"][1]["error"]


def test_verify_against_a_backbone(path: Path, fitting: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "verify", fitting, "--model", model)[0] == 0
    code, out, _ = run(capsys, "verify", fitting, path, "--model", model)
    assert code == 1
    assert "architecture bert" in out.splitlines()[1]
    change_json(fitting, "backbone", fingerprint="00" * 32)
    code, out, _ = run(capsys, "verify", fitting, "--model", model)
    assert code == 1
    assert "other weights" in out


def test_verify_finds_the_head_of_another_architecture(
    fitting: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, metadata = contents(fitting)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    rewrite(fitting, kept | {"head.classifier.weight": torch.zeros(3, 32)}, metadata)
    assert run(capsys, "verify", fitting)[0] == 0
    code, out, _ = run(capsys, "verify", fitting, "--model", model)
    assert code == 1
    assert "classifier.dense.weight is missing" in out


# export and import


def test_export_and_import(
    fitting: Path, model: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = result(capsys, "export", fitting, "--format", "peft", "--out", tmp_path / "peft")
    assert sorted(exported["files"]) == sorted(os.listdir(tmp_path / "peft"))
    assert exported["warnings"] == []
    out = tmp_path / "again" / "p.safetensors"
    imported = result(
        capsys,
        "import",
        tmp_path / "peft",
        "--format",
        "peft",
        "--model",
        model,
        "--task",
        task,
        *SHORT,
        "--out",
        out,
    )
    assert imported["sha256"] == file_sha256(out)
    assert imported["task_embedding"] is True
    before, after = load_prompt(fitting), load_prompt(out)
    assert (after.method, after.backbone) == (before.method, before.backbone)
    assert (after.task.name, after.task.labels) == ("reviews", ("yes", "maybe", "no"))
    for mine, theirs in ((before.tensors, after.tensors), (before.head, after.head)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_imported_task_embedding(
    fitting: Path, model: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Equation 2's embedding, computed once more row by row with transformers and PEFT alone."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run(capsys, "export", fitting, "--out", tmp_path / "peft")
    run(
        capsys,
        "import",
        tmp_path / "peft",
        "--model",
        model,
        "--task",
        task,
        *SHORT,
        "--out",
        tmp_path / "p.safetensors",
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    shifts = []
    for row in ROWS:
        tokens = tokenizer(row["text"], return_tensors="pt")
        vectors = []
        for prompted in (True, False):
            net = AutoModelForSequenceClassification.from_pretrained(
                model, num_labels=3, attn_implementation="eager"
            ).eval()
            base = net.roberta
            caught: list[torch.Tensor] = []
            base.encoder.register_forward_hook(lambda _, __, o, c=caught: c.append(o.last_hidden_state[:, 0]))
            used = peft.PeftModel.from_pretrained(net, tmp_path / "peft").eval() if prompted else net
            with torch.inference_mode():
                used(**tokens)
            vectors.append(caught[0][0])
        shifts.append(vectors[0] - vectors[1])
    expected = torch.stack(shifts).mean(0)
    assert expected.norm() > 0.01
    torch.testing.assert_close(load_prompt(tmp_path / "p.safetensors").embedding, expected, atol=1e-5, rtol=0)


def test_export_warns_of_other_predictions(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_prompt(make_prompt("prompt"), path)
    code, out, err = run(capsys, "export", path, "--out", tmp_path / "peft")
    assert code == 0
    assert err.startswith("Warning: PEFT gives the first virtual token")
    assert "wrote" in out
    assert len(result(capsys, "export", path, "--out", tmp_path / "peft")["warnings"]) == 1


def test_import_warns_of_another_base_model(
    fitting: Path, model: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "export", fitting, "--out", tmp_path / "peft")
    config = tmp_path / "peft" / "adapter_config.json"
    changed = json.loads(config.read_text()) | {"base_model_name_or_path": "evil\x1b[2J/model"}
    config.write_text(json.dumps(changed))
    code, _, err = run(
        capsys,
        "import",
        tmp_path / "peft",
        "--model",
        model,
        "--task",
        task,
        *SHORT,
        "--out",
        tmp_path / "p.safetensors",
    )
    assert code == 0
    assert "evil\\x1b[2J/model" in err


def test_errors_are_one_line(
    fitting: Path, model: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "export", fitting, "--out", tmp_path / "peft")
    before = sorted(os.listdir(tmp_path))
    cases = [
        (("show", tmp_path / "nosuch"), "no such file"),
        (("export", tmp_path / "nosuch", "--out", tmp_path / "x"), "no such file"),
        (("export", fitting, "--out", fitting), "wants a folder"),
        (
            ("import", tmp_path, "--model", model, "--task", task, *SHORT, "--out", tmp_path / "x"),
            "adapter_config.json",
        ),
        # The place is refused before the model is even looked for.
        (
            ("import", tmp_path / "peft", "--model", "nosuch", "--task", task, *SHORT, "--out", tmp_path),
            "is a folder",
        ),
        (
            ("import", tmp_path / "peft", "--model", model, "--task", "nosuch", "--out", tmp_path / "x"),
            "nosuch",
        ),
    ]
    for arguments, words in cases:
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (1, "")
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
        assert words in err
    assert sorted(os.listdir(tmp_path)) == before


def test_wrong_usage(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ("verify",),
        ("export", path),
        ("export", path, "--format", "onnx", "--out", "x"),
        ("nosuch",),
    ):
        assert run(capsys, *arguments)[0] == 2


def test_failed_writing_keeps_the_old_file(
    fitting: Path,
    model: Path,
    task: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(capsys, "export", fitting, "--out", tmp_path / "peft")
    before = fitting.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    code, _, err = run(capsys, "import", tmp_path / "peft", "--model", model, "--task", task, *SHORT, "--out", fitting)
    assert code == 1
    assert "no space left" in err
    assert fitting.read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
