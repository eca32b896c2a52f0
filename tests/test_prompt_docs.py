"""docs/prompt-format.md tells the truth: its reader runs, and its fields and limits are the program's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from prompt_samples import BACKBONE, make_prompt

from panda_fusion.plugin_manager import peft_methods
from panda_fusion.prompt import BackboneInfo, Lineage, SourceInfo, TaskInfo
from panda_fusion.prompt_file import save_prompt, shape_of
from panda_fusion.prompt_metadata import FORMAT_VERSION, MAX_VALUE_BYTES, PromptMetadata
from panda_fusion.safetensors_header import MAX_DATA_BYTES, MAX_HEADER_BYTES, MAX_NESTING
from panda_fusion.task import Kind

DOCUMENT = Path(__file__).parent.parent / "docs" / "prompt-format.md"


@pytest.fixture(scope="module")
def text() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reader(text: str) -> str:
    found = re.findall(r"<!-- reader: .*? -->\n```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(found) == 1
    return found[0]


def run(reader: str, path: Path) -> subprocess.CompletedProcess[str]:
    # -I: no PYTHONPATH, so that nothing of panda-fusion is at hand by accident.
    return subprocess.run([sys.executable, "-I", "-c", reader, str(path)], capture_output=True, text=True)


def test_reader_is_short(reader: str) -> None:
    assert sum(bool(line.strip()) for line in reader.splitlines()) <= 20
    assert "panda_fusion" not in reader


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (
            "prefix",
            ["'prefix:length=3,projection=0,init=normal' on 'some/bert' for 'nli'", "key 2 3 4 4", "value 2 3 4 4"],
        ),
        ("prompt", ["'prompt:length=3,init=normal,text=none' on 'some/bert' for 'nli'", "embedding 3 16"]),
    ],
)
def test_reader_reads_what_is_written(reader: str, tmp_path: Path, method: str, expected: list[str]) -> None:
    save_prompt(make_prompt(method), tmp_path / "p.safetensors")
    done = run(reader, tmp_path / "p.safetensors")
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {
        *expected,
        "classifier.weight 3 16",
        "classifier.bias 3",
        "sources 1",
    }


def test_reader_refuses_other_files(reader: str, tmp_path: Path) -> None:
    import numpy
    from safetensors.numpy import save_file

    save_file({"x": numpy.zeros(2)}, tmp_path / "p.safetensors")
    done = run(reader, tmp_path / "p.safetensors")
    assert done.returncode == 1
    assert "no prompt file" in done.stderr


def test_every_field_is_documented(text: str) -> None:
    def names(struct: type[msgspec.Struct]) -> set[str]:
        return {field.encode_name for field in msgspec.structs.fields(struct)}

    for heading, struct in (("backbone", BackboneInfo), ("task", TaskInfo), ("lineage", Lineage)):
        section = text.split(f"\n**{heading}**", 1)[1].split("\n\n", 2)[1]
        assert set(re.findall(r"^\| `(\w+)`", section, flags=re.MULTILINE)) == names(struct)
    sources = next(line for line in text.splitlines() if line.startswith("| `sources`"))
    assert set(re.findall(r"`(\w+)`", sources)) == names(SourceInfo) | {"sources"}
    keys = text.split("## Metadata", 1)[1].split("**backbone**", 1)[0]
    documented = set(re.findall(r"^\| `(\w+)`", keys, flags=re.MULTILINE))
    assert documented == names(PromptMetadata) | {"format", "format_version"}
    assert all(f"`{kind}`" in text for kind in get_args(Kind))


def test_limits_and_version_are_documented(text: str) -> None:
    text = " ".join(text.split())
    assert f"header of at most {MAX_HEADER_BYTES} bytes" in text
    assert f"metadata value of at most {MAX_VALUE_BYTES} bytes" in text
    assert f"nested at most {MAX_NESTING} levels" in text
    assert f"at most {MAX_DATA_BYTES} bytes of tensors" in text
    assert f"This is version {FORMAT_VERSION}." in text


def test_layout_of_every_built_in_method_is_documented(text: str) -> None:
    registry = peft_methods()
    rows = {match[1]: match[0] for match in re.finditer(r"^\| `([a-z-]+)` \| `peft\..*$", text, flags=re.MULTILINE)}
    built_in = {name for name in registry.names() if registry.entry(name).plugin.distribution == "panda-fusion"}
    assert rows.keys() == built_in
    for name in built_in:
        # None: tensors are the backbone's own, whatever they are called.
        stored = registry.create(name).stored().stored_shapes(shape_of(BACKBONE)) or {}
        assert set(re.findall(r"`peft\.(\w+)`", rows[name])) == stored.keys()
