"""PanDa on top of adapter, prefix and prompt (the paper's Figure 6), from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_support import Done, run
from engine_samples import CLASSES, encoded, method

from panda_fusion.backbone import Backbone
from panda_fusion.distillation import DistillationMethods, teacher_signal
from panda_fusion.plugin_manager import fusions, kd_losses, teachers
from panda_fusion.prompt import Prompt
from panda_fusion.prompt_file import load_prompt
from panda_fusion.trainer import TrainSettings

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


@pytest.mark.parametrize("teacher", ["target-like", "source", "random:trained=true"])
def test_fully_tuned_teachers_take_turns(teacher: str, tiny: Callable[[str], Backbone]) -> None:
    """They cannot share a forward pass: late fusion of two is the mean of what each gives alone."""
    from panda_fusion.testing.samples import sample_prompt

    backbone, peft = tiny("bert"), method("full")
    train = encoded(backbone, CLASSES, 12)
    sources = [sample_prompt(backbone, peft, seed) for seed in (1, 2)]

    def targets(some: list[Prompt]) -> torch.Tensor:
        methods = DistillationMethods(
            teachers().create(teacher), fusions().create("late"), kd_losses().create("mse"), 0.05
        )
        settings = TrainSettings(batch_size=6, dropout=0.0)
        weights = [1.0] * len(some)
        signal = teacher_signal(backbone, CLASSES, train, some, weights, methods, peft, settings, None, 0)
        assert signal.forward_passes == len(some)
        return signal.distillation.targets

    both = targets(sources)
    if teacher.startswith("random"):
        assert both.shape == (12, 3)
        return  # two random starts are one: the backbone's own weights
    one, two = targets(sources[:1]), targets(sources[1:])
    assert float((one - two).abs().max()) > 0.05
    torch.testing.assert_close(both, (one + two) / 2, rtol=0, atol=1e-5)
