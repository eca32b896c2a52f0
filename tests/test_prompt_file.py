"""Prompt files: what is written is read back, and nothing but a sound prompt passes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from prompt_samples import BACKBONE, TASK, change_json, contents, make_prompt, rewrite

from panda_fusion import atomic_write, hookimpl
from panda_fusion.errors import OutputError, PromptFileError
from panda_fusion.plugin_manager import temporary_plugin
from panda_fusion.prompt import Prompt
from panda_fusion.prompt_file import (
    check_backbone,
    check_head,
    file_sha256,
    load_prompt,
    read_metadata,
    save_prompt,
)
from panda_fusion.safetensors_header import MAX_HEADER_BYTES, read_header


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound prompt file."""
    save_prompt(make_prompt(), tmp_path / "p.safetensors")
    return tmp_path / "p.safetensors"


def refused(path: Path, *words: str) -> str:
    """The file must be refused in one sentence that names it and holds the words."""
    with pytest.raises(PromptFileError) as caught:
        load_prompt(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 1000
    assert message.endswith(".")
    for word in words:
        assert word in message
    return message


def with_header(path: Path, change: Callable[[dict], object]) -> None:
    """Change the raw JSON header of a file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


# Writing and reading back


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_round_trip(tmp_path: Path, method: str) -> None:
    prompt = make_prompt(method)
    path = tmp_path / "new" / "p.safetensors"
    digest = save_prompt(prompt, path)
    read = load_prompt(path)
    assert digest == read.sha256 == file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read.path == str(path)
    for field in ("method", "backbone", "task", "training", "scores", "lineage"):
        assert getattr(read, field) == getattr(prompt, field)
        assert getattr(read_metadata(path), field) == getattr(prompt, field)
    for mine, theirs in ((prompt.tensors, read.tensors), (prompt.head, read.head)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert torch.equal(prompt.embedding, read.embedding)
    assert os.listdir(path.parent) == ["p.safetensors"]


def test_layout_is_the_documented_one(path: Path) -> None:
    tensors, metadata = contents(path)
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        "peft.key": [2, 3, 4, 4],
        "peft.value": [2, 3, 4, 4],
        "head.classifier.weight": [3, 16],
        "head.classifier.bias": [3],
        "task.embedding": [16],
    }
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert metadata["format"] == "panda-fusion"
    assert metadata["format_version"] == "1"
    assert json.loads(metadata["method"]) == "prefix:length=3,projection=0,init=normal"
    assert json.loads(metadata["backbone"])["kv_heads"] == 4
    assert json.loads(metadata["task"])["labels"] == ["yes", "maybe", "no"]
    assert json.loads(metadata["lineage"])["lambda"] == 0.05
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_same_prompt_same_bytes_in_every_process(path: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from prompt_samples import make_prompt; from panda_fusion.prompt_file import"
        " save_prompt;print(save_prompt(make_prompt(), sys.argv[1]))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "q.safetensors")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == file_sha256(path)


def test_prompt_without_embedding(tmp_path: Path) -> None:
    save_prompt(make_prompt(embedding=None), tmp_path / "p.safetensors")
    assert load_prompt(tmp_path / "p.safetensors").embedding is None


def test_tensors_with_gradients_views_and_shared_memory(tmp_path: Path) -> None:
    both = torch.randn(2, 2, 3, 4, 4)
    weight = torch.randn(16, 3, requires_grad=True)
    prompt = make_prompt(
        tensors={"key": both[0], "value": both[0]},
        head={"classifier.weight": weight.t(), "classifier.bias": weight[0]},
    )
    save_prompt(prompt, tmp_path / "p.safetensors")
    read = load_prompt(tmp_path / "p.safetensors")
    assert torch.equal(read.tensors["value"], both[0])
    assert torch.equal(read.head["classifier.weight"], weight.detach().t())


def test_reading_metadata_needs_no_torch(path: Path) -> None:
    program = (
        "import sys; from panda_fusion.prompt_file import read_metadata;"
        " print(read_metadata(sys.argv[1]).method);assert 'torch' not in sys.modules and 'transformers' not"
        " in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "prefix:length=3,projection=0,init=normal"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"head": {}}, "no head"),
        ({"embedding": torch.zeros(15)}, "hidden size"),
        ({"method": "nosuch:length=3"}, "no installed plugin"),
        ({"task": msgspec.structs.replace(TASK, labels=("yes", "no"))}, "2 labels"),
        ({"tensors": {"key": torch.zeros(2, 3, 4, 4)}}, "lacks the tensor peft.value"),
        (
            {"tensors": {name: torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16) for name in ("key", "value")}},
            "bfloat16",
        ),
        (
            {"tensors": {name: torch.full((2, 3, 4, 4), float("nan")) for name in ("key", "value")}},
            "not finite",
        ),
        ({"training": {"recipe": object()}}, "JSON"),
        ({"training": {"notes": "x" * (2**20 + 1)}}, "at most 1048576"),
        ({"head": {"classifier weight": torch.zeros(3, 16)}}, "unexpected"),
    ],
)
def test_what_would_not_load_is_not_written(tmp_path: Path, changes: dict, word: str) -> None:
    with pytest.raises(PromptFileError, match=word):
        save_prompt(make_prompt(**changes), tmp_path / "p.safetensors")
    assert os.listdir(tmp_path) == []


def test_failure_while_writing_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(atomic_write.os, name, fail)
            with pytest.raises(OutputError, match="input/output error"):
                save_prompt(make_prompt("prompt"), path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]


def test_killed_while_writing_leaves_the_old_file(path: Path) -> None:
    # The process dies after half of the bytes: no Python code can clean up, the old file must still be whole.
    before = path.read_bytes()
    program = (
        "import os, sys; from panda_fusion.atomic_write import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_bytes(b'half'); os._exit(9)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program, str(path)], env=environment).returncode == 9
    assert path.read_bytes() == before
    load_prompt(path)


# Files that are no prompt files


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"\x80", "pickle"),
        (b"hello, this is a text file\n" * 9, "not a safetensors file"),
        (b"\x1f\x8b\x08" + bytes(50), "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        (bytes(100), "not a safetensors file"),
        (random.Random(0).randbytes(5000), "not a safetensors file"),
    ],
)
def test_no_safetensors(tmp_path: Path, data: bytes, word: str) -> None:
    (tmp_path / "p.safetensors").write_bytes(data)
    refused(tmp_path / "p.safetensors", word)


@pytest.mark.parametrize("new_format", [True, False])
def test_torch_save_is_named_and_not_opened(tmp_path: Path, new_format: bool) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    buffer = io.BytesIO()
    torch.save({"peft.key": Bomb()}, buffer, _use_new_zipfile_serialization=new_format)
    (tmp_path / "p.safetensors").write_bytes(buffer.getvalue())
    refused(tmp_path / "p.safetensors", "pickle", "never opened")
    assert not (tmp_path / "exploded").exists()


def test_missing_folder_and_pipe(tmp_path: Path) -> None:
    refused(tmp_path / "nosuch.safetensors", "no such file")
    refused(tmp_path, "is a folder")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    refused(tmp_path / "pipe", "no regular file")
    for function in (read_metadata, file_sha256):
        with pytest.raises(PromptFileError):
            function(tmp_path / "pipe")


def test_name_with_control_characters(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError) as caught:
        load_prompt(tmp_path / "a\x1b[2J\n.safetensors")
    assert str(caught.value).isprintable()


def test_safetensors_of_others(path: Path) -> None:
    tensors, _ = contents(path)
    rewrite(path, tensors, {"format": "pt"})
    refused(path, "'pt'", "prompt import")
    from safetensors.torch import save_file

    save_file(tensors, path)
    refused(path, "no format")


# Truncated and damaged files


def test_every_truncation_is_refused(path: Path) -> None:
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    for length in [*range(0, 40), *range(40, len(data), 37), header + 7, header + 8, len(data) - 1]:
        path.write_bytes(data[:length])
        refused(path)
    path.write_bytes(data[: len(data) - 4])
    refused(path, "truncated")
    path.write_bytes(data + b"\0")
    refused(path, "bytes behind its tensors")


def test_header_longer_than_allowed_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "p.safetensors"
    for length in (MAX_HEADER_BYTES + 1, 2**40, 2**64 - 1):
        file.write_bytes(length.to_bytes(8, "little") + b'{"a"')
        os.truncate(file, 2**33)  # sparse: reading it all would take 8 GiB
        refused(file, "at most 4194304 are read")


def test_flipped_bits_give_an_error_or_a_sound_prompt(path: Path) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    generator = random.Random(11)
    messages, sound = [], 0
    for _ in range(1500):
        changed = bytearray(data)
        for _ in range(generator.choice((1, 1, 1, 2, 5))):
            place = generator.randrange(8 + length)
            changed[place] = generator.choice(
                (changed[place] ^ 1 << generator.randrange(8), generator.randrange(256), *b'"{}[]\\,:0')
            )
        path.write_bytes(changed)
        try:
            prompt = load_prompt(path)
        except PromptFileError as error:
            messages.append(str(error))
        else:
            sound += 1
            assert isinstance(prompt, Prompt)
            # A parameter of another name is found out where the prompt meets its backbone (`check_head`).
            assert (len(prompt.task.labels), 16) in {tuple(tensor.shape) for tensor in prompt.head.values()}
            assert all(bool(torch.isfinite(t).all()) for t in [*prompt.tensors.values(), *prompt.head.values()])
    # Both must occur, or the test would show nothing: a flipped bit in a text value leaves a sound prompt.
    assert len(messages) > 100
    assert sound > 100
    assert all(message.isprintable() and str(path) in message for message in messages)


def test_replaced_slices_give_an_error_or_a_sound_prompt(path: Path) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    generator = random.Random(5)
    messages = []
    for _ in range(300):
        start = generator.randrange(8, 8 + length)
        stop = min(8 + length, start + generator.randrange(1, 60))
        slice_ = generator.choice((b"", generator.randbytes(stop - start), data[8 : 8 + stop - start], b"[" * 40))
        header = data[8:start] + slice_ + data[stop : 8 + length]
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
        try:
            load_prompt(path)
        except PromptFileError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(message.isprintable() for message in messages)


def test_places_that_overlap_or_leave_gaps(path: Path) -> None:
    data = path.read_bytes()

    def overlap(header: dict) -> None:
        header["peft.value"]["data_offsets"] = header["peft.key"]["data_offsets"]

    def huge(header: dict) -> None:
        header["peft.value"]["shape"] = [2**40, 2**40]

    def negative(header: dict) -> None:
        header["peft.value"]["shape"] = [-2, -3, 4, 4]

    for change, word in ((overlap, "should take bytes"), (huge, "should take bytes"), (negative, "damaged")):
        path.write_bytes(data)
        with_header(path, change)
        refused(path, word)


def test_more_data_than_allowed_is_not_read(tmp_path: Path) -> None:
    size = 2**33
    header = json.dumps({"peft.key": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    file = tmp_path / "p.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(file, 8 + len(header) + size)
    refused(file, "at most 4294967296 are read")


# Versions


def test_newer_version(path: Path) -> None:
    tensors, metadata = contents(path)
    rewrite(path, tensors, metadata | {"format_version": "2"})
    refused(path, "format version 2", "reads up to 1", "pip install --upgrade panda-fusion")


@pytest.mark.parametrize("version", ["", "0", "-1", "1.0", "one", "\u0661", "9" * 5000, "1 "])
def test_no_version(path: Path, version: str) -> None:
    tensors, metadata = contents(path)
    rewrite(path, tensors, metadata | {"format_version": version})
    refused(path, "format version")


def test_unknown_metadata_is_ignored(path: Path) -> None:
    tensors, metadata = contents(path)
    rewrite(path, tensors, metadata | {"licence": "MIT"})
    change_json(path, "task", hint="from a later 1.x")
    assert load_prompt(path).task == TASK


# Tensors


def test_tensors_that_do_not_fit(path: Path) -> None:
    tensors, metadata = contents(path)
    key = tensors["peft.key"]
    nan = key.clone()
    nan[1, 2, 3, 3] = float("nan")
    infinite = tensors["head.classifier.bias"].clone()
    infinite[0] = float("-inf")
    cases: list[tuple[dict, str, list[str]]] = [
        ({"peft.key": key[:, :2].contiguous()}, "", ["peft.key", "[2, 2, 4, 4]", "[2, 3, 4, 4]"]),
        ({"peft.key": key.reshape(2, 3, 16)}, "", ["peft.key", "shape"]),
        ({"peft.key": key.double()}, "", ["F64", "float32"]),
        ({"peft.key": key.half()}, "", ["F16", "float32"]),
        ({"peft.key": key.to(torch.int32)}, "", ["I32", "float32"]),
        ({"peft.key": nan}, "", ["peft.key", "not finite"]),
        ({"head.classifier.bias": infinite}, "", ["head.classifier.bias", "not finite"]),
        ({"peft.extra": torch.zeros(3)}, "", ["unexpected", "peft.extra"]),
        ({"extra": torch.zeros(3)}, "", ["unexpected", "extra"]),
        ({"task.embedding.more": torch.zeros(3)}, "", ["unexpected"]),
        ({"task.embedding": torch.zeros(32)}, "", ["task.embedding", "[32]", "[16]"]),
        (
            {"head.classifier.weight": torch.zeros(2, 16), "head.classifier.bias": torch.zeros(2)},
            "",
            ["2 outputs", "3"],
        ),
        ({"head.classifier.bias": torch.zeros(2)}, "", ["head.classifier.bias", "[2]"]),
        ({"head.classifier.bias": torch.zeros(0)}, "", ["is empty"]),
        ({"head.../../evil": torch.zeros(3)}, "", ["damaged"]),
        ({"head.\x1b[31m": torch.zeros(3)}, "", ["damaged"]),
        ({"head." + "x" * 999: torch.zeros(3)}, "", ["damaged"]),
        ({}, "peft.value", ["lacks the tensor peft.value"]),
        ({}, "head.", ["no head"]),
    ]
    for changes, without, words in cases:
        kept = {name: tensor for name, tensor in tensors.items() if not without or not name.startswith(without)}
        rewrite(path, kept | changes, metadata)
        refused(path, *words)


def test_head_of_several_layers(tmp_path: Path) -> None:
    head = {
        "classifier.dense.weight": torch.zeros(16, 16),
        "classifier.dense.bias": torch.zeros(16),
        "classifier.out_proj.weight": torch.zeros(3, 16),
        "classifier.out_proj.bias": torch.zeros(3),
    }
    path = tmp_path / "p.safetensors"
    save_prompt(make_prompt(head=head), path)
    sixteen = msgspec.structs.replace(TASK, labels=tuple(f"label {number}" for number in range(16)))
    with pytest.raises(PromptFileError, match="3 outputs"):  # the 16 of the dense layer are no outputs
        save_prompt(make_prompt(head=head, task=sixteen), path)
    head["classifier.out_proj.weight"] = torch.zeros(1, 16)
    head["classifier.out_proj.bias"] = torch.zeros(1)
    regression = msgspec.structs.replace(TASK, kind="regression", labels=(), metric="pearson_spearman")
    save_prompt(make_prompt(head=head, task=regression), path)
    assert load_prompt(path).task.kind == "regression"


# Malicious metadata


def nest(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize("field", ["training", "scores", "lineage", "backbone", "task", "method"])
def test_deep_nesting(path: Path, field: str) -> None:
    tensors, metadata = contents(path)
    for value in (nest(33), nest(100_000), "[" * 500_000, '{"a":' * 100_000):
        rewrite(path, tensors, metadata | {field: value})
        refused(path, field)
    rewrite(path, tensors, metadata | {"training": '{"text": "' + "[" * 1000 + '"}'})  # brackets in text are none
    assert load_prompt(path).training == {"text": "[" * 1000}


def test_deep_nesting_of_the_header_itself(path: Path) -> None:
    for header in (b'{"a":' * 500_000, b'{"a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"):
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        refused(path, "damaged")


def test_checking_nesting_takes_linear_time(path: Path) -> None:
    # Text of quotes and backslashes makes a careless pattern take quadratic time: hours for a megabyte.
    tensors, metadata = contents(path)
    for value in ('"' + '\\"' * 500_000, '"' * 1_000_000, "\\" * 1_000_000, '"\\' * 500_000):
        rewrite(path, tensors, metadata | {"training": value})
        refused(path, "training")


def test_huge_metadata(path: Path) -> None:
    tensors, metadata = contents(path)
    rewrite(path, tensors, metadata | {"training": json.dumps({"notes": "x" * 2**20})})
    refused(path, "'training'", "at most 1048576")
    rewrite(path, tensors, metadata | {"unknown": "x" * (2**20 + 1)})
    refused(path, "'unknown'")
    rewrite(path, tensors, metadata | {f"field{number}": "x" * 2**20 for number in range(4)})
    refused(path, "header", "at most 4194304")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "3"),
        ("method", "prefix:length=3"),
        ("method", '"prefix:length=99999999999"'),
        ("method", '"prefix:length=3,colour=red"'),
        ("method", '"os:system"'),
        ("method", '"../../prefix"'),
        ("method", '"\\u001b[2Jprefix"'),
        ("backbone", "[]"),
        ("backbone", "{}"),
        ("task", '"nli"'),
        ("training", "[1]"),
        ("scores", "null"),
        ("scores", '{"best": NaN}'),
        ("lineage", '{"sources": {"path": 1}}'),
        ("lineage", '{"sources": "abc"}'),
        ("lineage", ""),
        ("lineage", '{"teacher": "\\ud800"}'),
    ],
)
def test_metadata_of_wrong_types(path: Path, field: str, value: str) -> None:
    tensors, metadata = contents(path)
    rewrite(path, tensors, metadata | {field: value})
    refused(path)


def test_metadata_that_is_missing(path: Path) -> None:
    tensors, metadata = contents(path)
    for field in ("method", "backbone", "task"):
        rewrite(path, tensors, {key: value for key, value in metadata.items() if key != field})
        refused(path, f"{field!r}")


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": "16"},
        {"hidden": 16.5},
        {"hidden": None},
        {"hidden": -16},
        {"layers": 0},
        {"layers": 10**12},
        {"layers": 10**30},
        {"kv_heads": 2**40},
        {"embedding_size": 0},
    ],
)
def test_impossible_backbones(path: Path, changes: dict) -> None:
    change_json(path, "backbone", **changes)
    refused(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../../etc/passwd"},
        {"name": "/etc/passwd"},
        {"name": "..\\evil"},
        {"name": "C:\\evil"},
        {"name": "a\0b"},
        {"name": ""},
        {"kind": "telepathy"},
        {"kind": ["classification"]},
        {"labels": []},
        {"labels": ["yes", "yes", "no"]},
        {"labels": ["yes", "no"]},
        {"labels": [f"{number}" for number in range(100_000)]},
        {"labels": "abc"},
        {"inputs": None},
    ],
)
def test_impossible_tasks(path: Path, changes: dict) -> None:
    change_json(path, "task", **changes)
    refused(path)


@pytest.mark.parametrize("name", ["nli", "tiny/nli", "my task", "größe"])
def test_possible_task_names(path: Path, name: str) -> None:
    change_json(path, "task", name=name)
    assert load_prompt(path).task.name == name


def test_control_characters_stay_out_of_messages(path: Path) -> None:
    change_json(path, "task", name="\x1b]0;owned\x07nli", labels=["\x1b[31mred", "b"])
    refused(path, "\\x1b]0;owned")
    change_json(path, "task", kind="\x1b[2J")
    refused(path, "\\x1b[2J")
    tensors, metadata = contents(path)
    rewrite(path, tensors, metadata | {"format_version": "\x1b[2J"})
    refused(path, "\\x1b[2J")


# Plugins


def test_unknown_method_says_what_to_install(path: Path) -> None:
    tensors, metadata = contents(path)
    rewrite(path, tensors, metadata | {"method": '"hyper-prompt:rank=4"'})
    refused(path, "hyper-prompt:rank=4", "install the plugin")
    assert read_metadata(path).method == "hyper-prompt:rank=4"


def test_method_of_a_plugin(tmp_path: Path) -> None:
    class Plugin:
        @hookimpl
        def register_peft_methods(self, register: Callable) -> None:
            register("shift", "prompt_shift_method:Shift", help="one vector")

    module = tmp_path / "prompt_shift_method.py"
    module.write_text(
        "from panda_fusion.peft_method import PEFTMethod\n"
        "class Shift(PEFTMethod):\n"
        "    def virtual_tokens(self): return 0\n"
        "    def create(self, shape, generator): raise NotImplementedError\n"
        "    def inject(self, tensors, shape): raise NotImplementedError\n"
        "    def stored_shapes(self, shape): return {'shift': (shape.hidden,)}\n"
    )
    path = tmp_path / "p.safetensors"
    prompt = make_prompt("shift", tensors={"shift": torch.ones(16)})
    sys.path.insert(0, str(tmp_path))
    try:
        with temporary_plugin(Plugin()):
            save_prompt(prompt, path)
            assert torch.equal(load_prompt(path).tensors["shift"], torch.ones(16))
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("prompt_shift_method", None)
    refused(path, "install the plugin")


# The backbone


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "roberta", "fingerprint": "00"}, ["bert", "roberta", "--model some/bert"]),
        ({"hidden": 32, "fingerprint": "00"}, ["hidden size 16", "32"]),
        ({"layers": 12}, ["layers 2", "12"]),
        ({"kv_heads": 2}, ["key/value heads 4", "2"]),
        ({"embedding_size": 8}, ["embedding size", "8"]),
        ({"fingerprint": "00" * 32}, ["other weights", "abababababab", "000000000000"]),
    ],
)
def test_another_backbone(path: Path, changes: dict, words: list[str]) -> None:
    prompt = load_prompt(path)
    check_backbone(prompt, BACKBONE)
    check_backbone(prompt, msgspec.structs.replace(BACKBONE, name="a/copy"))
    with pytest.raises(PromptFileError) as caught:
        check_backbone(prompt, msgspec.structs.replace(BACKBONE, name="other/model", **changes))
    for word in [*words, str(path), "other/model"]:
        assert word in str(caught.value)


def test_another_head() -> None:
    prompt = make_prompt()
    shapes = {"classifier.weight": (3, 16), "classifier.bias": (3,)}
    check_head("p", prompt.head, shapes)
    for wrong in (
        shapes | {"classifier.weight": (3, 32)},
        shapes | {"dense.weight": (16, 16)},
        {"classifier.weight": (3, 16)},
    ):
        with pytest.raises(PromptFileError, match="head parameter"):
            check_head("p", prompt.head, wrong)


def test_header_of_a_sound_file(path: Path) -> None:
    header = read_header(path)
    assert header.file_bytes == path.stat().st_size
    assert header.tensors["peft.key"].shape == (2, 3, 4, 4)
