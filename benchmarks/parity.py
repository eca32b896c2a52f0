"""Whether what is fast is also as good: final scores of prefix tuning by PEFT under the HF Trainer and by panda-fusion.

Both train the same rows for the same epochs at the same learning rate, batch size and prompt length, each with the
seeds 0 to 4, PEFT in float32 with its defaults or as it is fastest, panda-fusion in its automatic precision. Scores are
those of the validation set after every epoch, the best and the last.

    python benchmarks/parity.py --data DIR --task cb --epochs 20
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from peers import Work, peft_model, peft_rows, trainer_arguments
from setting import add_options, describe_machine, load_rows, model_folder
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, set_seed
from transformers.utils import logging as transformers_logging

from panda_fusion.backbone import load_backbone
from panda_fusion.dataset import encode
from panda_fusion.device import choose_device, choose_precision
from panda_fusion.metrics import score
from panda_fusion.plugin_manager import peft_methods
from panda_fusion.students import new_students
from panda_fusion.trainer import TrainSettings, train_pack


def peft_scores(work: Work, epochs: int, rate: float, seed: int, best: bool) -> list[float]:
    """The main metric after every epoch of a PEFT run, in float32 or with its best settings."""
    set_seed(seed)
    model, tokenizer = peft_model(work)
    task = work.data.task
    found: list[float] = []

    def metrics(prediction: Any) -> dict[str, float]:
        # Its own labels: with length grouping the Trainer evaluates in another order than the rows'.
        scores = score(task.metric, np.asarray(prediction.predictions), prediction.label_ids.tolist())
        found.append(next(iter(scores.values())))
        return {"score": found[-1]}

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=trainer_arguments(
                work,
                folder,
                bf16=best,
                group_by_length=best,
                num_train_epochs=epochs,
                learning_rate=rate,
                weight_decay=0.0,
                eval_strategy="epoch",
                seed=seed,
            ),
            train_dataset=peft_rows(work, tokenizer, work.data.train),  # type: ignore[arg-type]
            eval_dataset=peft_rows(work, tokenizer, work.data.validation),  # type: ignore[arg-type]
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=metrics,
        )
        trainer.remove_callback(PrinterCallback)  # its lines would stand between ours
        trainer.train()
    return found


def our_scores(work: Work, epochs: int, rate: float, seeds: list[int]) -> list[list[float]]:
    """The main metric after every epoch for every seed, all seeds in one pack."""
    backbone = load_backbone(work.model, device=work.device, dtype=choose_precision("auto", work.device))
    task = work.data.task
    method = peft_methods().create(f"prefix:length={work.length}")
    train, validation = (
        encode(backbone, split.texts, split.labels, task.kind, work.max_length)
        for split in (work.data.train, work.data.validation)
    )
    students = new_students(backbone, task, method, seeds, rate)
    settings = TrainSettings(epochs=epochs, batch_size=work.batch_size)
    pack = train_pack(backbone, method, students, task, train, settings, validation)
    return [[value for _, _, value in scores.history] for scores in pack.scores]


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "cb", "tiny/sentiment")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--best", action="store_true", help="PEFT in bf16 with length grouping, not its defaults")
    given = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device = choose_device(given.device)
    work = Work(
        model=model_folder(given.model),
        data=load_rows(given),
        method="prefix",
        batch_size=given.batch_size,
        length=20,
        max_length=128,
        steps=0,
        device=device,
    )
    seeds = list(range(given.seeds))
    started = time.perf_counter()
    peft = [peft_scores(work, given.epochs, given.lr, seed, given.best) for seed in seeds]
    middle = time.perf_counter()
    ours = our_scores(work, given.epochs, given.lr, seeds)
    seconds = {"PEFT": middle - started, "panda-fusion": time.perf_counter() - middle}
    name = work.data.task.name
    print(f"{name}, {given.epochs} epochs, lr {given.lr:g}, batch {given.batch_size}, seeds {seeds}")
    print(describe_machine(device))
    for contender, histories in (("PEFT", peft), ("panda-fusion", ours)):
        for what, values in (("best", [max(h) for h in histories]), ("last", [h[-1] for h in histories])):
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"{contender:14}{what:5} {100 * statistics.fmean(values):6.1f} ± {100 * spread:.1f}")
        print(f"{contender:14}{seconds[contender]:8.1f} s for all seeds, evaluations included")
    if given.json:
        record = {"task": name, "machine": describe_machine(device), "PEFT": peft, "panda-fusion": ours}
        given.json.write_text(json.dumps(record | {"seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
