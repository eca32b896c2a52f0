"""What people use today for prompt tuning: PEFT under the HF Trainer, and PEFT in a loop of their own.

Classification, regression, and tagging of words, whose tag the first piece of a word carries.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from panda_fusion.rows import Split, TaskData

IGNORED = -100
"""The label of a token that carries none."""


@dataclass(frozen=True)
class Work:
    """What every contender trains on, twice: the second of two epochs is timed, so that all meet the same rows and what
    is made once, on meeting a length for the first time say, is no part of it.

    Attributes:
        model: transformers folder.
        data: the task, and training rows for as many steps (`rows_for`).
        method: `prefix` or `prompt`; panda-fusion takes any method without options.
        batch_size: rows per step.
        length: virtual tokens.
        max_length: tokens kept of a text.
        steps: steps of an epoch.
        device: where to run.
    """

    model: str
    data: TaskData
    method: str
    batch_size: int
    length: int
    max_length: int
    steps: int
    device: torch.device

    @property
    def tags_words(self) -> bool:
        """Whether the task is token-classification."""
        return self.data.task.kind == "token-classification"


def rows_for(data: TaskData, steps: int, batch_size: int, alike: str | None = None) -> TaskData:
    """The task with training rows for so many steps.

    Args:
        data: the task and all its rows.
        steps: steps of an epoch.
        batch_size: rows per step.
        alike: transformers folder by whose tokenizer the rows are as long as the median one, as nearly as there are
            enough; None: rows are drawn from all of them.

    Raises:
        SystemExit: there are too few.
    """
    count = steps * batch_size
    if count > len(data.train):
        raise SystemExit(
            f"{steps} steps of {batch_size} rows take {count} training rows, but task {data.task.name} has "
            f"{len(data.train)}; lower --steps to {len(data.train) // batch_size}."
        )
    chosen = random.Random(0).sample(range(len(data.train)), count)
    if alike is not None:
        words = data.task.kind == "token-classification"
        tokens = AutoTokenizer.from_pretrained(alike)(*data.train.texts, is_split_into_words=words)["input_ids"]
        middle = statistics.median(map(len, tokens))
        chosen = sorted(range(len(tokens)), key=lambda row: abs(len(tokens[row]) - middle))[:count]
    return replace(data, train=data.train.select(chosen))


class _Clock(TrainerCallback):
    """Times the second epoch."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.started = self.seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if state.global_step == self.steps:
            self.started = time.perf_counter()
        self.seconds = time.perf_counter() - self.started


def peft_model(work: Work, dropout: bool = True) -> tuple[Any, Any]:
    """(PEFT model in float32, tokenizer)."""
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    auto = AutoModelForTokenClassification if work.tags_words else AutoModelForSequenceClassification
    model = auto.from_pretrained(work.model, num_labels=work.data.task.outputs)
    model.config.pad_token_id = tokenizer.pad_token_id
    if not dropout:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    kinds = {"prefix": PrefixTuningConfig, "prompt": PromptTuningConfig}
    task_type = "TOKEN_CLS" if work.tags_words else "SEQ_CLS"
    config = kinds[work.method](task_type=task_type, num_virtual_tokens=work.length)
    return get_peft_model(model, config), tokenizer


def peft_rows(work: Work, tokenizer: Any, split: Split) -> list[dict[str, Any]]:
    """The rows of a split as the Trainer takes them, with their lengths."""
    if work.tags_words:
        return _tagged_rows(work, tokenizer, split)
    encoded = tokenizer(*split.texts, truncation="longest_first", max_length=work.max_length)
    return [
        {name: encoded[name][i] for name in encoded} | {"labels": label, "length": len(encoded["input_ids"][i])}
        for i, label in enumerate(split.labels)
    ]


def _tagged_rows(work: Work, tokenizer: Any, split: Split) -> list[dict[str, Any]]:
    """The same for rows of words: a word's first piece has its tag, all other tokens have none."""
    if len(split.texts) > 1:
        raise SystemExit(f"Task {work.data.task.name} asks for the roles of a predicate, which the peers cannot take.")
    encoded = tokenizer(split.texts[0], is_split_into_words=True, truncation=True, max_length=work.max_length)
    rows = []
    for number, tags in enumerate(split.labels):
        words = encoded.word_ids(number)
        first = [word is not None and word != before for word, before in zip(words, [None, *words[:-1]], strict=True)]
        labels = [tags[word] if begins else IGNORED for word, begins in zip(words, first, strict=True)]
        row = {name: encoded[name][number] for name in encoded}
        rows.append(row | {"labels": labels, "length": len(words)})
    return rows


def collator(work: Work, tokenizer: Any) -> Any:
    """What pads a batch, labels of tokens too."""
    if not work.tags_words:
        return DataCollatorWithPadding(tokenizer)
    pad = DataCollatorForTokenClassification(tokenizer)
    if work.method != "prompt":
        return pad

    def with_virtual_tokens(rows: list[dict[str, Any]]) -> Any:
        """PEFT puts its prompt in front of the texts, but nothing in front of their labels."""
        batch = pad(rows)
        batch["labels"] = torch.nn.functional.pad(batch["labels"], (work.length, 0), value=IGNORED)
        return batch

    return with_virtual_tokens


def trainer_arguments(
    work: Work, folder: str, *, bf16: bool, group_by_length: bool, **others: Any
) -> TrainingArguments:
    """Arguments of a Trainer that writes and prints nothing; `others` are TrainingArguments' own."""
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=work.batch_size,
        bf16=bf16,
        train_sampling_strategy="group_by_length" if group_by_length else "random",
        length_column_name="length",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=work.device.type == "cpu",
        dataloader_pin_memory=work.device.type == "cuda",
        **others,
    )


def peft_trainer(
    work: Work, *, bf16: bool, group_by_length: bool, dropout: bool = True, compiled: bool = False
) -> float:
    """Samples per second under the HF Trainer."""
    model, tokenizer = peft_model(work, dropout)
    clock = _Clock(work.steps)
    with tempfile.TemporaryDirectory() as folder:
        arguments = trainer_arguments(
            work,
            folder,
            bf16=bf16,
            group_by_length=group_by_length,
            num_train_epochs=2,
            learning_rate=1e-3,
            torch_compile=compiled,
        )
        Trainer(
            model=model,
            args=arguments,
            train_dataset=peft_rows(work, tokenizer, work.data.train),  # type: ignore[arg-type]
            data_collator=collator(work, tokenizer),
            callbacks=[clock],
        ).train()
    return work.steps * work.batch_size / clock.seconds


def peft_loop(work: Work) -> float:
    """Samples per second of a plain loop: bf16 autocast, batches sorted by length, fused AdamW, nothing else."""
    model, tokenizer = peft_model(work)
    model.to(work.device).train()
    rows = sorted(peft_rows(work, tokenizer, work.data.train), key=lambda row: row["length"])
    batches = [rows[start : start + work.batch_size] for start in range(0, len(rows), work.batch_size)]
    draw = random.Random(0)
    order = [*draw.sample(batches, work.steps), *draw.sample(batches, work.steps)]
    collate = collator(work, tokenizer)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    started = 0.0
    for step, some in enumerate(order):
        if step == work.steps:
            if work.device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
        batch = collate([{k: v for k, v in row.items() if k != "length"} for row in some]).to(work.device)
        with torch.autocast(work.device.type, dtype=torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if work.device.type == "cuda":
        torch.cuda.synchronize()
    return work.steps * work.batch_size / (time.perf_counter() - started)
