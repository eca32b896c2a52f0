"""Training throughput: panda-fusion beside PEFT under the HF Trainer and PEFT in a plain loop.

Same model, rows, batch size and prompt length for all; the second of two epochs is timed. Contenders take turns within
one process, several rounds, so that a busy machine hits all of them alike. Prints samples per second, their spread, and
ratios within the rounds to the fastest PEFT contender that trains with its dropout.

    python benchmarks/throughput.py --data DIR --task rte
    python benchmarks/throughput.py --data DIR --task rte --pack 21        # many prompts in one pass
    python benchmarks/throughput.py --data DIR --task conll04              # tags of words
    python benchmarks/throughput.py --model bert-base --method prompt      # a shape with random weights
    python benchmarks/throughput.py                                        # texts of tiny/nli, no data needed
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peers import Work, peft_loop, peft_trainer, rows_for
from rounds import fastest, ratios, spread, take_turns
from setting import add_options, describe_machine, load_rows, model_folder
from transformers.utils import logging as transformers_logging

from panda_fusion import hookimpl
from panda_fusion.backbone import load_backbone
from panda_fusion.device import choose_device, choose_precision, precision_name
from panda_fusion.encoding import encode_split
from panda_fusion.plugin_manager import peft_methods, temporary_plugin
from panda_fusion.students import new_students
from panda_fusion.trainer import TrainSettings, train_pack

NO_DROPOUT = "PEFT + HF Trainer, bf16 + length grouping, dropout off"
"""Trains something else than PEFT as it comes, so that it is no candidate for PEFT's best."""


class _StepClock:
    """Times the second epoch, through the same hook that a progress bar uses."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.started = self.seconds = 0.0

    @hookimpl
    def step_ended(self, step: int, steps: int) -> None:
        if step in (self.steps, steps) and torch.cuda.is_available():
            torch.cuda.synchronize()
        if step == self.steps:
            self.started = time.perf_counter()
        elif step == steps:
            self.seconds = time.perf_counter() - self.started


def ours(work: Work, precision: str, backbone_dropout: float = 0.0, pack: int = 1) -> float:
    """Samples per second of `train_pack`, all prompts of the pack together."""
    dtype = choose_precision(precision, work.device)  # type: ignore[arg-type]
    backbone = load_backbone(work.model, device=work.device, dtype=dtype)
    task = work.data.task
    train = encode_split(backbone, task, work.data.train, work.max_length)
    spec = f"{work.method}:length={work.length}" if work.method in ("prefix", "prompt") else work.method
    method = peft_methods().create(spec)
    clock = _StepClock(work.steps)
    settings = TrainSettings(epochs=2, batch_size=work.batch_size, dropout=0.1, backbone_dropout=backbone_dropout)
    with temporary_plugin(clock, "step-clock"):
        students = new_students(backbone, task, method, list(range(pack)), 1e-3)
        train_pack(backbone, method, students, task, train, settings)
    return pack * work.steps * work.batch_size / clock.seconds


def contenders(work: Work, pack: int, compiled: bool) -> dict[str, Callable[[], float]]:
    """Name -> a function that runs once and returns samples per second."""
    peers: dict[str, Callable[[], float]] = {}
    if work.method in ("prefix", "prompt"):
        peers = {
            "PEFT + HF Trainer, defaults (fp32)": lambda: peft_trainer(work, bf16=False, group_by_length=False),
            "PEFT + HF Trainer, bf16": lambda: peft_trainer(work, bf16=True, group_by_length=False),
            "PEFT + HF Trainer, bf16 + length grouping": lambda: peft_trainer(work, bf16=True, group_by_length=True),
            NO_DROPOUT: lambda: peft_trainer(work, bf16=True, group_by_length=True, dropout=False),
            "PEFT in a plain loop, bf16, by length": lambda: peft_loop(work),
        }
        if compiled:
            peers["PEFT + HF Trainer, bf16 + length grouping, compiled"] = lambda: peft_trainer(
                work, bf16=True, group_by_length=True, compiled=True
            )
    own = {
        "panda-fusion, fp32": lambda: ours(work, "fp32"),
        "panda-fusion, auto precision": lambda: ours(work, "auto"),
        "panda-fusion, auto, backbone dropout as PEFT": lambda: ours(work, "auto", 0.1),
    }
    if pack > 1:
        own[f"panda-fusion, auto precision, {pack} prompts"] = lambda: ours(work, "auto", pack=pack)
    return peers | own


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--method", choices=["prefix", "prompt", "adapter"], default="prefix")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=20, help="virtual tokens")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--pack", type=int, default=1, help="prompts trained side by side, as one more contender")
    parser.add_argument("--compiled", action="store_true", help="a compiled PEFT model too; needs a C++ compiler")
    parser.add_argument("--steps", type=int, default=40, help="steps of an epoch")
    parser.add_argument(
        "--alike", action="store_true", help="rows of the median length: what few steps cost where nothing is padded"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", help="run contenders whose name contains this; may be repeated")
    given = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device = choose_device(given.device)
    model = model_folder(given.model)
    work = Work(
        model=model,
        data=rows_for(load_rows(given), given.steps, given.batch_size, model if given.alike else None),
        method=given.method,
        batch_size=given.batch_size,
        length=given.length,
        max_length=given.max_length,
        steps=given.steps,
        device=device,
    )
    chosen = {
        k: v
        for k, v in contenders(work, given.pack, given.compiled).items()
        if not given.only or any(part in k for part in given.only)
    }
    figures = take_turns(chosen, given.rounds)
    auto = precision_name(choose_precision("auto", device))
    name = given.model or "all-MiniLM-L6-v2"
    setting = f"{name}, {work.data.task.name}, {given.method}, batch {work.batch_size}, {work.length} virtual tokens"
    print(f"{setting}, {given.steps} steps an epoch, {given.rounds} rounds")
    print(f"{describe_machine(device)}; auto precision: {auto}; torch {torch.__version__}")
    best = fastest({name: figures[name] for name in figures if name.startswith("PEFT") and name != NO_DROPOUT})
    for contender, values in figures.items():
        line = f"{contender:54} {spread(values, 1)} samples/s"
        if best:
            line += f"  {spread(ratios(values, figures[best]), 2, 'x')}"
        print(line)
    if given.json:
        record = {"setting": setting, "machine": describe_machine(device), "best": best, "samples_per_second": figures}
        given.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
