"""Evaluation throughput of one prefix: panda-fusion beside PEFT under the HF Trainer.

Same model, texts and prefix length for all; contenders take turns, several rounds, and every pass is over the whole
set. The Trainer groups rows by length as it does in training (what it predicts then comes in another order than the
rows), or the rows are sorted by length before it gets them.

    python benchmarks/evaluation.py --data DIR --task rte
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from peft import PrefixTuningConfig, get_peft_model
from rounds import fastest, ratios, spread, take_turns
from setting import add_options, describe_machine, load_rows, model_folder
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from panda_fusion.backbone import load_backbone
from panda_fusion.dataset import encode
from panda_fusion.device import choose_device, choose_precision, precision_name
from panda_fusion.inference import predict_logits
from panda_fusion.plugin_manager import peft_methods
from panda_fusion.rows import TaskData
from panda_fusion.students import new_students

ByLength = Literal["no", "grouped", "sorted"]


def peft_pass(
    model: str, data: TaskData, length: int, device: torch.device, bf16: bool, batch: int, by_length: ByLength = "no"
) -> Callable[[], int]:
    """One prediction pass of PEFT under the Trainer; returns rows."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    classifier = AutoModelForSequenceClassification.from_pretrained(model, num_labels=data.task.outputs)
    wrapped = get_peft_model(classifier, PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=length))
    encoded = tokenizer(*data.train.texts, truncation="longest_first", max_length=128)
    rows = [{name: encoded[name][i] for name in encoded} for i in range(len(data.train))]
    if by_length == "sorted":
        rows.sort(key=lambda row: -len(row["input_ids"]))
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_eval_batch_size=batch,
        bf16_full_eval=bf16,
        train_sampling_strategy="group_by_length" if by_length == "grouped" else "random",
        report_to=[],
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
    )
    trainer = Trainer(
        model=wrapped, args=arguments, data_collator=DataCollatorWithPadding(tokenizer), processing_class=tokenizer
    )

    def run() -> int:
        trainer.predict(rows)  # type: ignore[arg-type]
        return len(rows)

    return run


def our_pass(model: str, data: TaskData, length: int, device: torch.device, precision: str) -> Callable[[], int]:
    """One pass of `predict_logits`, tokenised before, as PEFT's rows are."""
    backbone = load_backbone(model, device=device, dtype=choose_precision(precision, device))  # type: ignore[arg-type]
    method = peft_methods().create(f"prefix:length={length}")
    (student,) = new_students(backbone, data.task, method, [0], 1e-3)
    rows = encode(backbone, data.train.texts, data.train.labels, data.task.kind, 128)
    tensors = {name: tensor[None] for name, tensor in student.tensors.items()}
    head = {name: tensor[None] for name, tensor in student.head.items()}

    def run() -> int:
        predict_logits(backbone, rows, method, tensors, head, data.task.outputs).cpu()
        return len(rows)

    return run


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--rows", type=int, default=1000, help="rows of the training set that are predicted")
    parser.add_argument("--length", type=int, default=20, help="virtual tokens")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    model = model_folder(given.model)
    device = choose_device(given.device)
    data = load_rows(given)
    data = TaskData(data.task, data.train.select(range(min(given.rows, len(data.train)))), data.validation, ())
    passes = {
        "PEFT + HF Trainer, defaults (fp32, batch 8)": peft_pass(model, data, given.length, device, False, 8),
        "PEFT + HF Trainer, bf16, batch 32": peft_pass(model, data, given.length, device, True, 32),
        "PEFT + HF Trainer, bf16, batch 32, length grouping": peft_pass(
            model, data, given.length, device, True, 32, "grouped"
        ),
        "PEFT + HF Trainer, bf16, batch 32, rows sorted": peft_pass(
            model, data, given.length, device, True, 32, "sorted"
        ),
        "panda-fusion, fp32": our_pass(model, data, given.length, device, "fp32"),
        "panda-fusion, auto precision": our_pass(model, data, given.length, device, "auto"),
    }

    def rows_per_second(run: Callable[[], int]) -> float:
        started = time.perf_counter()
        return run() / (time.perf_counter() - started)

    timed = {contender: partial(rows_per_second, run) for contender, run in passes.items()}
    take_turns(timed, 1)  # warms up
    figures = take_turns(timed, given.rounds)
    best = fastest({contender: figures[contender] for contender in figures if contender.startswith("PEFT")})
    assert best is not None
    auto = precision_name(choose_precision("auto", device))
    print(f"{Path(model).name}, {data.task.name}, {len(data.train)} rows, prefix {given.length}, {given.rounds} rounds")
    print(f"{describe_machine(device)}; auto precision: {auto}; torch {torch.__version__}")
    for contender, values in figures.items():
        print(f"{contender:52} {spread(values, 1)} rows/s  {spread(ratios(values, figures[best]), 2, 'x')}")
    if given.json:
        record = {"task": data.task.name, "machine": describe_machine(device), "best": best, "rows_per_second": figures}
        given.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
