"""What a training step consists of: operators by their share of the time, one thread, one prefix.

python benchmarks/step_profile.py --data DIR --task rte
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from setting import add_options, load_rows, model_folder
from torch.profiler import ProfilerActivity, profile

from panda_fusion.backbone import load_backbone
from panda_fusion.dataset import encode
from panda_fusion.device import choose_device, choose_precision
from panda_fusion.heap import kept_heap
from panda_fusion.plugin_manager import peft_methods
from panda_fusion.students import new_students
from panda_fusion.trainer import TrainSettings, train_pack


def main() -> None:
    """Profile a few steps and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--top", type=int, default=10, help="operators that are shown")
    given = parser.parse_args()
    torch.set_num_threads(1)
    device = choose_device(given.device)
    backbone = load_backbone(model_folder(given.model), device=device, dtype=choose_precision("auto", device))
    data = load_rows(given)
    train = encode(backbone, data.train.texts, data.train.labels, data.task.kind, 128)
    method = peft_methods().create("prefix:length=20")
    students = new_students(backbone, data.task, method, [0], 1e-3)

    def run(steps: int) -> float:
        settings = TrainSettings(epochs=1000, max_steps=steps, batch_size=32)
        return train_pack(backbone, method, students, data.task, train, settings).train_seconds

    on_gpu = device.type == "cuda"
    with kept_heap():  # from one run to the next, as within a long one
        run(3)
        seconds = min(run(given.steps) for _ in range(3))
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
            run(given.steps)

    def own_time(event: object) -> float:
        return float(getattr(event, "self_device_time_total" if on_gpu else "self_cpu_time_total"))

    events = sorted(profiler.key_averages(), key=own_time, reverse=True)
    total = sum(map(own_time, events))
    print(f"{data.task.name}, {given.steps} steps of 32 rows: {given.steps * 32 / seconds:.1f} samples/s\n")
    print("| operator | share | calls a step |")
    print("|---|---:|---:|")
    for event in events[: given.top]:
        print(f"| `{event.key}` | {100 * own_time(event) / total:.1f} % | {event.count / given.steps:.0f} |")


if __name__ == "__main__":
    main()
