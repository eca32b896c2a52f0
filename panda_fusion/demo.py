"""The demonstration: sources, ranking and a comparison in the embedded world, with the embedded backbone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from panda_fusion import plugin_manager as plugins
from panda_fusion.backbone import TINY, load_backbone
from panda_fusion.comparison import Comparison, Spread, System, compare
from panda_fusion.distillation import DistillationMethods, named_methods
from panda_fusion.prompt_file import file_sha256, save_prompt
from panda_fusion.ranking import Ranked, ranked, score_sources, train_probe
from panda_fusion.rows import load_task_data
from panda_fusion.run import RunSettings, finished_prompts, prepare, train_students
from panda_fusion.students import new_students
from panda_fusion.trainer import TrainSettings

if TYPE_CHECKING:
    import torch

    from panda_fusion.prompt import Prompt

SOURCES = ("nli", "paraphrase", "sentiment", "quantity", "grammar", "similarity")
TARGET = "contradiction"
RELATED, UNRELATED = "nli", "grammar"
METHOD = "prefix:length=8"
# Chosen on the sources' own validation scores: at 1e-2 a model this small learns them badly in so few epochs.
LEARNING_RATE = 3e-2
SOURCE_SETTINGS = RunSettings(TrainSettings(epochs=6, batch_size=32), learning_rate=LEARNING_RATE, max_length=64)
TARGET_SETTINGS = RunSettings(TrainSettings(epochs=20, batch_size=16), learning_rate=LEARNING_RATE, max_length=64)
PROBE_STEPS = 200


@dataclass(frozen=True)
class Demo:
    """Everything that the demonstration found out.

    Attributes:
        sources: trained source prompts, best first by the metric.
        comparison: systems beside each other on the target.
        seeds: seeds of every system.
        metric: the target's metric.
        seconds: wall-clock seconds by stage.
        prompts: the prompt files written.
    """

    sources: tuple[Ranked, ...]
    comparison: Comparison
    seeds: tuple[int, ...]
    metric: str
    seconds: dict[str, float]
    prompts: tuple[Path, ...]


def run_demo(
    folder: Path,
    seeds: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    stage: Callable[[str], None],
) -> Demo:
    """Train six sources, rank them for a target, and compare scratch, vanilla transfer and PanDa.

    Args:
        folder: where prompts are written.
        seeds: seeds of every compared system; the sources use the first.
        device: where to run.
        dtype: precision of the backbone.
        stage: called with the name of every stage that begins.
    """
    seconds: dict[str, float] = {}
    mark = time.perf_counter()
    stage("loading")
    backbone = load_backbone(TINY, device=device, dtype=dtype)
    method = plugins.peft_methods().create(METHOD)
    seconds["loading"] = time.perf_counter() - mark

    mark = time.perf_counter()
    written = []
    sources: dict[str, Prompt] = {}
    for name in SOURCES:
        stage(f"source {name}")
        data = load_task_data(plugins.tasks().get(f"tiny/{name}"), None)
        encoded = prepare(backbone, method, data, SOURCE_SETTINGS)
        students = new_students(backbone, data.task, method, seeds[:1], SOURCE_SETTINGS.learning_rate)
        pack = train_students(backbone, method, students, encoded, SOURCE_SETTINGS)
        if pack.interrupted:
            raise KeyboardInterrupt
        (prompt,) = finished_prompts(backbone, encoded, pack, students, SOURCE_SETTINGS)
        path = folder / f"{name}.safetensors"
        save_prompt(prompt, path)
        sources[name] = replace(prompt, path=str(path), sha256=file_sha256(path))
        written.append(path)
    seconds["sources"] = time.perf_counter() - mark

    mark = time.perf_counter()
    stage("probe")
    target = prepare(backbone, method, load_task_data(plugins.tasks().get(f"tiny/{TARGET}"), None), TARGET_SETTINGS)
    similarity = plugins.similarities().create("panda")
    probe = train_probe(backbone, method, target, TARGET_SETTINGS, PROBE_STEPS, seeds[0])
    values = score_sources(backbone, similarity, list(sources.values()), probe, target)
    order = ranked(list(sources.values()), values)
    seconds["ranking"] = time.perf_counter() - mark

    mark = time.perf_counter()
    stage("comparison")
    systems = _systems(sources, order)
    comparison = compare(backbone, method, target, systems, similarity, seeds, TARGET_SETTINGS)
    seconds["comparison"] = time.perf_counter() - mark
    for result in comparison.results:
        for seed, prompt in zip(seeds, result.prompts, strict=True):
            path = folder / TARGET / f"{_slug(result.system.name)}-seed{seed}.safetensors"
            save_prompt(prompt, path)
            written.append(path)
    return Demo(
        sources=tuple(order),
        comparison=comparison,
        seeds=tuple(seeds),
        metric=target.task.metric,
        seconds=seconds,
        prompts=tuple(written),
    )


def _systems(sources: dict[str, Prompt], order: Sequence[Ranked]) -> list[System]:
    """Scratch; vanilla and PanDa from a related and an unrelated source; both fusions of the metric's top two."""
    similarities = {one.prompt.path: one.similarity for one in order}
    systems = [System("scratch")]
    for kind, name in (("related", RELATED), ("unrelated", UNRELATED)):
        source = sources[name]
        own = ((source,), (similarities[source.path],))
        systems.append(System(f"vanilla, {kind} ({name})", *own))
        systems.append(System(f"PanDa single, {kind} ({name})", *own, _panda("single")))
    top = order[:2]
    both = (tuple(one.prompt for one in top), tuple(one.similarity for one in top))
    names = " + ".join(one.prompt.task.name.removeprefix("tiny/") for one in top)
    systems.append(System(f"PanDa early, top two ({names})", *both, _panda("early")))
    systems.append(System(f"PanDa late, top two ({names})", *both, _panda("late")))
    return systems


def _panda(fusion: str) -> DistillationMethods:
    return named_methods("target-like", fusion, "mse")


def comparison_table(demo: Demo) -> list[tuple[str, str, str]]:
    """(system, best, last) rows, mean ± standard deviation over the seeds, in percent."""
    return [
        (result.system.name, str(Spread.of(result.best)), str(Spread.of(result.last)))
        for result in demo.comparison.results
    ]


def report_markdown(demo: Demo) -> str:
    """The demonstration as a Markdown page."""
    chosen = demo.sources[0].prompt.task.name
    lines = [
        "# panda-fusion demo",
        "",
        f"Backbone `tiny`, method `{METHOD}`, target `tiny/{TARGET}`, seeds {', '.join(map(str, demo.seeds))}.",
        "",
        f"## Sources, ranked for the target by `panda` (chosen: `{chosen}`)",
        "",
        "| source | metric | best on its own task | similarity |",
        "|---|---|---|---|",
    ]
    for one in demo.sources:
        lines.append(
            f"| {one.prompt.task.name} | {one.prompt.task.metric} | {_own_best(one.prompt)} | {one.similarity:.4f} |"
        )
    lines += [
        "",
        f"## Target `tiny/{TARGET}`: {demo.metric}, percent, mean ± standard deviation over {len(demo.seeds)} seeds",
        "",
        "| system | best | last |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {best} | {last} |" for name, best, last in comparison_table(demo)]
    times = ", ".join(f"{name} {value:.1f} s" for name, value in demo.seconds.items())
    return "\n".join([*lines, "", f"Time: {times}.", ""])


def _own_best(prompt: Prompt) -> str:
    best = prompt.scores["best"]
    assert isinstance(best, dict)
    return f"{100 * best[prompt.task.metric]:.1f}"


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
