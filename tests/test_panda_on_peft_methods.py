"""PanDa on top of adapter, prefix and prompt (the paper's Figure 6), from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_support import QUICK, Done, make_work, run

from panda_fusion.prompt_file import load_prompt

MODEL = "--model tiny --device cpu --precision fp32 --max-length 32 --batch-size 8 --json -q"
METHODS = {
    "adapter": "adapter:reduction=16,placement=both,activation=gelu",
    "prefix": "prefix:length=20,projection=0,init=normal",
    "prompt": "prompt:length=20,init=normal,text=none",
}


def go(folder: Path, line: str) -> Done:
    done = run(*line.split(), cwd=folder)
    assert done.code == 0, done.err
    return done


@pytest.fixture(scope="module", params=list(METHODS))
def sources(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A PEFT method and a folder with two sources of it and a prompt of the target."""
    folder = tmp_path_factory.mktemp(request.param)
    for task, seed in (("sentiment", 1), ("grammar", 2), ("contradiction", 3)):
        rate = "--lr 0.02" if seed < 3 else ""
        go(
            folder,
            f"train --task tiny/{task} --method {request.param} --max-steps 3 --seed {seed} {rate} {MODEL} "
            f"--out {task}.safetensors",
        )
    return request.param, folder


@pytest.mark.parametrize(
    ("fusion", "teacher", "similarity"),
    [
        ("single", "source", "panda"),
        ("late", "target-like:until=steps,steps=3", "panda"),
        ("early", "source", "eavg"),
        ("late", "random:trained=true,until=steps,steps=3", "constant"),
    ],
)
def test_transfer_from_source_to_score(sources: tuple[str, Path], fusion: str, teacher: str, similarity: str) -> None:
    name, folder = sources
    given = ["sentiment.safetensors", "grammar.safetensors"][: 1 if fusion == "single" else 2]
    before = {path: (folder / path).read_bytes() for path in given}
    out = f"{fusion}-{similarity}.safetensors"
    result = go(
        folder,
        f"transfer --task tiny/contradiction --fusion {fusion} --teacher {teacher} --similarity {similarity} "
        f"--target-prompt contradiction.safetensors --max-steps 3 {MODEL} --out {out} "
        + " ".join(f"--source {path}" for path in given),
    ).json
    assert (result["method"], result["steps"]) == (METHODS[name], 3)
    assert result["fusion"].startswith(fusion)
    assert result["teacher_forward_passes"] == (2 if fusion == "late" else 1)
    assert [source["path"] for source in result["sources"]] == given
    assert all(-1 <= source["similarity"] <= 1 + 1e-6 for source in result["sources"])
    if similarity == "panda":
        target = load_prompt(folder / "contradiction.safetensors").embedding
        for source in result["sources"]:
            own = load_prompt(folder / source["path"]).embedding
            assert own is not None
            assert target is not None
            cosine = float(own @ target / (own.norm() * target.norm()))
            assert source["similarity"] == pytest.approx(cosine, abs=1e-4)
    assert {path: (folder / path).read_bytes() for path in given} == before
    prompt = load_prompt(folder / out)
    rate = prompt.training["recipe"]["learning_rate"]  # type: ignore[index]
    assert rate == (1e-3 if name == "adapter" else 1e-2)
    assert prompt.lineage.fusion == result["fusion"]
    scored = go(
        folder, f"evaluate {out} --task tiny/contradiction --model tiny --device cpu --precision fp32 --json -q"
    )
    assert scored.json["score"] == result["best"]


def test_early_fusion_averages_the_adapters_tensors(sources: tuple[str, Path]) -> None:
    """Eq. 5 on every tensor of the method: what the teacher's prompt is made of."""
    from panda_fusion.plugin_manager import fusions
    from panda_fusion.sources import stack_sources
    from panda_fusion.testing.samples import tiny_backbone

    _, folder = sources
    prompts = [load_prompt(folder / f"{task}.safetensors") for task in ("sentiment", "grammar")]
    _, stacked = stack_sources(prompts, tiny_backbone("bert").shape)
    fused = fusions().create("early").fuse(stacked, torch.tensor([0.8, 0.4]))  # type: ignore[attr-defined]
    assert set(fused) == set(prompts[0].tensors)
    for tensor_name, tensor in fused.items():
        expected = (0.8 * prompts[0].tensors[tensor_name] + 0.4 * prompts[1].tensors[tensor_name]) / 2
        torch.testing.assert_close(tensor, expected)


def test_vanilla_transfer_starts_from_the_source(sources: tuple[str, Path]) -> None:
    name, folder = sources
    go(
        folder,
        f"train --task tiny/contradiction --init sentiment.safetensors --max-steps 1 --lr 1e-6 {MODEL} "
        "--out vanilla.safetensors",
    )
    source, started = load_prompt(folder / "sentiment.safetensors"), load_prompt(folder / "vanilla.safetensors")
    assert started.method == METHODS[name]
    for tensor_name, tensor in source.tensors.items():
        gap = float((tensor - started.tensors[tensor_name]).abs().max())
        assert gap <= 2e-6


@pytest.mark.parametrize(("fusion", "teacher"), [("late", "target-like"), ("late", "source"), ("early", "source")])
def test_fully_tuned_teachers_take_turns(
    fusion: str,
    teacher: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_folder: Callable[[str], Path],
) -> None:
    """They cannot share a forward pass: two of them give what each gives alone."""
    work = make_work(tmp_path_factory.getbasetemp() / "panda-work", tiny_folder("bert"))
    common = f"--model {{model}} {QUICK} --json -q --lr 0.003"
    for seed in (1, 2):
        line = f"train --task {{w}}/mood --method full --max-steps 3 --seed {seed} --out {seed}.safetensors {common}"
        assert run(*work.words(line), cwd=tmp_path).code == 0
    transfer = (
        f"transfer --task {{w}}/topic --teacher {teacher} --fusion {fusion} --similarity constant --max-steps 2 {common} "
        "--source 1.safetensors --source {second}.safetensors --out both.safetensors"
    )
    done = run(*work.words(transfer, second=2), cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.json["teacher_forward_passes"] == (2 if fusion == "late" else 1)
    assert done.json["method"] == "full"
    # The same source twice is the source once: fused with weights of 1 its predictions are its own.
    assert run(*work.words(transfer, second=1), cwd=tmp_path).code == 0
    twice = load_prompt(tmp_path / "both.safetensors").tensors
    once = transfer.replace("--source {second}.safetensors", "").replace(f"--fusion {fusion}", "--fusion single")
    assert run(*work.words(once), cwd=tmp_path).code == 0
    for tensor_name, tensor in load_prompt(tmp_path / "both.safetensors").tensors.items():
        # Adam makes whole steps (0.003) of gradients that are rounding noise; of the others it makes equal ones.
        apart = (tensor - twice[tensor_name]).abs() > 1e-4
        assert float(apart.float().mean()) < 0.2, tensor_name
