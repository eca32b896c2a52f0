"""`panda-fusion rank` with every similarity, and the cache behind it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli_support import QUICK, Work, make_work, run

from panda_fusion.plugin_manager import similarities
from panda_fusion.prompt_file import load_prompt, save_prompt

SPECS = {
    "constant": "constant",
    "eavg": "eavg",
    "on": "on:layers=all",
    "on:layers=last1": "on:layers=last1",
    "panda": "panda:samples=own,count=100",
    "panda:samples=target": "panda:samples=target,count=100",
}
RANK = "rank {w}/likeness.safetensors {w}/mood.safetensors {w}/topic.safetensors --task {w}/mood --model {model} "
TARGET = "--target-prompt {w}/mood.safetensors "


@pytest.fixture(scope="module")
def work(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Work:
    return make_work(tmp_path_factory.getbasetemp() / "cli-work", tiny_folder("bert"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PANDA_FUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_every_similarity_is_here() -> None:
    built_in = {entry.name for entry in similarities().entries() if entry.plugin.distribution == "panda-fusion"}
    assert built_in == {spec.partition(":")[0] for spec in SPECS}


@pytest.mark.parametrize("spec", sorted(SPECS))
def test_rank_by(spec: str, work: Work, tmp_path: Path) -> None:
    line = work.words(RANK + TARGET + QUICK + " --similarity {spec}", spec=spec)
    table = run(*line, cwd=tmp_path)
    assert table.code == 0, table.err
    result = run(*line, "--json", cwd=tmp_path).json
    assert result["similarity"] == SPECS[spec]
    ranking = result["ranking"]
    values = [entry["similarity"] for entry in ranking]
    assert values == sorted(values, reverse=True)
    assert len(values) == 3
    if spec == "constant":
        assert values == [1.0] * 3
        assert [entry["task"] for entry in ranking] == ["likeness", "mood", "topic"]  # equal ones keep their order
    else:  # the target's own prompt is the most similar one, and only that one is the same
        assert ranking[0]["task"] == "mood"
        assert values[0] == pytest.approx(1, abs=1e-5)
        assert values[1] < 1 - 1e-4
    shown = re.findall(r"^ +([123]) +\S+/(\w+)\.safetensors +\w+ +(-?[01]\.\d{4})$", table.out, re.MULTILINE)
    assert shown == [
        (str(place), entry["task"], f"{entry['similarity']:.4f}") for place, entry in enumerate(ranking, 1)
    ]


def test_a_second_ranking_finds_what_the_first_computed(work: Work, tmp_path: Path, cache: Path) -> None:
    line = work.words(RANK + TARGET + QUICK + " --similarity panda:samples=target")
    unkept = run(*line, "--no-cache", "--json", cwd=tmp_path).json
    assert unkept["embeddings"] is None
    assert not cache.exists()
    first = run(*line, cwd=tmp_path)
    folder = cache / "task-embeddings"
    assert first.out.splitlines()[-1] == f"task embeddings: 4 computed, 0 found in {folder}"
    assert len(list(folder.iterdir())) == 3  # the target's prompt is one of the sources
    second = run(*line, "--json", cwd=tmp_path).json
    assert second["embeddings"] == {"computed": 0, "found": 4}
    assert [entry["similarity"] for entry in second["ranking"]] == pytest.approx(
        [entry["similarity"] for entry in unkept["ranking"]], abs=1e-6
    )


def test_ranking_by_what_is_in_the_files_keeps_tokens_alone(work: Work, tmp_path: Path, cache: Path) -> None:
    for spec in ("panda", "eavg", "on"):
        words = work.words(RANK + TARGET + QUICK + " --json --similarity " + spec)
        assert run(*words, cwd=tmp_path).json["embeddings"] == {"computed": 0, "found": 0}
    assert [folder.name for folder in cache.iterdir()] == ["tokens"]


def test_prompts_without_a_task_embedding(work: Work, tmp_path: Path) -> None:
    """As prompts are that were imported without their task: an error that says what to do, and that works."""
    prompt = load_prompt(work["topic.safetensors"])
    save_prompt(replace(prompt, embedding=None), tmp_path / "bare.safetensors")
    line = "rank bare.safetensors {w}/mood.safetensors --task {w}/mood --model {model} " + TARGET + QUICK
    refused = run(*work.words(line), cwd=tmp_path)
    assert refused.code == 1
    assert refused.err == (
        "Error: Prompt 'bare.safetensors' carries no task embedding, which similarity 'panda' compares; use "
        "--similarity panda:samples=target, or train the prompt with panda-fusion.\n"
    )
    result = run(*work.words(line), "--similarity", "panda:samples=target", "--json", cwd=tmp_path).json
    assert [entry["task"] for entry in result["ranking"]] == ["mood", "topic"]


@pytest.mark.parametrize("spec", ["eavg", "on", "panda", "panda:samples=target"])
def test_sources_of_different_methods(spec: str, work: Work, tmp_path: Path) -> None:
    """What compares activations takes them; token averages of keys and of embeddings cannot be compared."""
    line = "rank {w}/soft.safetensors {w}/topic.safetensors --task {w}/mood --model {model} " + TARGET + QUICK
    done = run(*work.words(line), "--similarity", spec, cwd=tmp_path)
    if spec == "eavg":
        assert done.code == 1
        assert re.fullmatch(r"Error: Prompt '\S+' \(prefix:\S+\) and .* cannot compare them; .*\.\n", done.err)
    else:
        assert done.code == 0
        assert "soft.safetensors" in done.out


def test_layers_that_the_backbone_lacks_are_told_before_a_probe_is_trained(work: Work, tmp_path: Path) -> None:
    done = run(*work.words(RANK + QUICK + " --similarity on:layers=0-2"), cwd=tmp_path)
    assert done.code == 1
    assert done.err.startswith("Error: Option 'layers' must name layers of the backbone, which has 2 (0 to 1)")
    assert "probe" not in done.err


def test_transfer_keeps_task_embeddings_too(work: Work, tmp_path: Path, cache: Path) -> None:
    line = (
        "transfer --source {w}/topic.safetensors --task {w}/mood --model {model} --max-steps 1 --teacher source"
        " --similarity panda:samples=target --out new.safetensors " + TARGET + QUICK
    )
    assert run(*work.words(line), "--no-cache", cwd=tmp_path).code == 0
    assert not cache.exists()
    assert run(*work.words(line), cwd=tmp_path).code == 0
    assert len(list((cache / "task-embeddings").iterdir())) == 2
