"""What is asked of a GPU: the achieved share of its bf16 rate, a pack of 21 prompts, the work of the paper's Table XII.

    python benchmarks/gpu.py --peak 989e12                   # dense bf16 FLOP/s of the device (H100 SXM: 989e12)
    python benchmarks/gpu.py --model FOLDER --pack-model FOLDER --rows 64 --steps 2 --prompts 2  # small, on a CPU

Texts are token ids drawn at random with the lengths of MNLI (29 word pieces on average, 128 at most) and STS-B (32),
for the pack those of tiny/nli, and weights are random: neither is felt by the time. --json keeps everything.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from peers import Work, peft_loop, peft_trainer, rows_for
from setting import describe_machine, model_folder
from throughput import ours

from panda_fusion import plugin_manager as plugins
from panda_fusion.backbone import Backbone, load_backbone
from panda_fusion.dataset import EncodedSet
from panda_fusion.device import choose_device, choose_precision
from panda_fusion.distillation import named_methods, teacher_signal
from panda_fusion.encoded_task import EncodedTask
from panda_fusion.rows import load_task_data
from panda_fusion.run import RunSettings, finished_prompts, train_students
from panda_fusion.students import new_students
from panda_fusion.task import Task
from panda_fusion.task_source import resolve_task
from panda_fusion.trainer import TrainedPack, TrainSettings, train_pack

LENGTH = 20
NLI = Task(name="mnli-like", kind="classification", inputs=("text",), labels=("a", "b", "c"))
SIMILARITY = Task(name="stsb-like", kind="regression", inputs=("text",), metric="pearson_spearman")


def texts(backbone: Backbone, task: Task, rows: int, mean: float, seed: int, width: int | None = None) -> EncodedSet:
    """Random token ids: lengths from a gamma distribution around `mean`, or all `width`."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.gamma(4.0, mean / 4, rows).round(), 8, 128).astype(np.int64)
    if width is not None:
        lengths[:] = width
    ids = generator.integers(5, min(backbone.vocabulary, 30_000), (rows, int(lengths.max())), dtype=np.int32)
    labels: torch.Tensor
    if task.kind == "regression":
        labels = torch.from_numpy(generator.random(rows, dtype=np.float32) * 5)
    else:
        labels = torch.from_numpy(generator.integers(0, len(task.labels), rows))
    return EncodedSet(
        input_ids=torch.from_numpy(ids).to(backbone.device),
        lengths=torch.from_numpy(lengths).to(backbone.device),
        token_types=None,
        labels=labels.to(backbone.device),
        kind=task.kind,
    )


def train(backbone: Backbone, task: Task, data: EncodedSet, settings: TrainSettings) -> TrainedPack:
    """One fresh prefix on made-up rows."""
    method = plugins.peft_methods().create(f"prefix:length={LENGTH}")
    students = new_students(backbone, task, method, [0], 5e-3)
    return train_pack(backbone, method, students, task, data, settings)


def flop_share(backbone: Backbone, steps: int, peak: float | None) -> dict[str, Any]:
    """FLOP/s of training steps of 32 x 128 tokens: 2 forward and 2 backward per weight of the layers and token."""
    batch, width = 32, 128
    data = texts(backbone, NLI, batch * 8, 0, 0, width)
    parameters = backbone.shape.parameters or {}
    layers = tuple(f"{name}." for name in backbone.shape.layer_modules)
    weights = sum(int(np.prod(shape)) for name, shape in parameters.items() if name.startswith(layers))
    settings = TrainSettings(epochs=1000, max_steps=steps, batch_size=batch)
    train(backbone, NLI, data, TrainSettings(epochs=1, max_steps=5, batch_size=batch))
    pack = train(backbone, NLI, data, settings)
    rate = 4 * weights * batch * width * pack.steps / pack.train_seconds
    return {"flop_per_second": rate, "share_of_peak": None if peak is None else rate / peak, "weights": weights}


def pack_of_prompts(model: str, device: torch.device, prompts: int, steps: int) -> dict[str, Any]:
    """A pack against as many sequential runs of PEFT at its best, batch 16 each, the same texts of tiny/nli."""
    data = rows_for(load_task_data(resolve_task("tiny/nli", None), None), steps, 16)
    work = Work(model, data, "prefix", 16, LENGTH, 128, steps, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rate = ours(work, "auto", pack=prompts)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    peft = max(peft_trainer(work, bf16=True, group_by_length=True), peft_loop(work))
    return {
        "prompts": prompts,
        "samples_per_second": rate,
        "peft_samples_per_second": peft,
        "ratio": rate / peft,
        "peak_memory_bytes": peak,
    }


def unscored(which: Task, data: EncodedSet) -> EncodedTask:
    """A task whose validation set is a few of its training rows: scoring is no part of the work."""
    some = data.subset(range(32))
    return EncodedTask(which, data, some, None, some, ())


def table_xii(backbone: Backbone, rows: int) -> dict[str, Any]:
    """Seconds of an epoch over MNLI's rows, and of ten epochs of STS-B with PanDa from that prompt."""
    scale = rows / 392_702
    started = time.perf_counter()
    mnli = texts(backbone, NLI, rows, 29, 2)
    stsb = texts(backbone, SIMILARITY, max(32, int(5_749 * scale)), 32, 3)
    method = plugins.peft_methods().create(f"prefix:length={LENGTH}")
    source_settings = RunSettings(TrainSettings(epochs=1, batch_size=64), 5e-3)
    target_settings = RunSettings(TrainSettings(epochs=10, batch_size=32), 1e-2)

    students = new_students(backbone, NLI, method, [0], 5e-3)
    trained = train_students(backbone, method, students, unscored(NLI, mnli), source_settings)
    (source,) = finished_prompts(backbone, unscored(NLI, mnli), trained, students, source_settings)
    middle = time.perf_counter()
    methods = named_methods("target-like", "single", "mse")
    signal = teacher_signal(
        backbone, SIMILARITY, stsb, [source], [0.5], methods, method, target_settings.training, 1e-2, 1
    )
    students = new_students(backbone, SIMILARITY, method, [1], 1e-2, distillation=signal.distillation)
    train_students(backbone, method, students, unscored(SIMILARITY, stsb), target_settings)
    end = time.perf_counter()
    return {"mnli_rows": rows, "mnli_seconds": middle - started, "stsb_seconds": end - middle, "seconds": end - started}


def main() -> None:
    """Run all three and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert-large", help="a shape, a transformers folder, or tiny")
    parser.add_argument("--pack-model", default="bert-base", help="the same, for the pack of prompts")
    parser.add_argument("--peak", type=float, help="dense bf16 FLOP/s of the device, for the share")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=21)
    parser.add_argument("--rows", type=int, default=392_702, help="rows of the source task; MNLI has 392,702")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    device = choose_device(given.device)
    dtype = choose_precision("auto", device)
    record: dict[str, Any] = {"machine": describe_machine(device), "torch": torch.__version__, "model": given.model}

    backbone = load_backbone(model_folder(given.model), device=device, dtype=dtype)
    record["flops"] = flop_share(backbone, given.steps, given.peak)
    record["table_xii"] = table_xii(backbone, given.rows)
    del backbone
    record["pack"] = pack_of_prompts(model_folder(given.pack_model), device, given.prompts, given.steps)
    print(json.dumps(record, indent=1))
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
