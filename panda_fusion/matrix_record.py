"""The record of one cell of a matrix: what `matrix` writes and `report` reads."""

from __future__ import annotations

from typing import Literal

import msgspec

System = Literal["scratch", "full", "vanilla", "panda", "similarity"]


class CellRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One finished or failed cell, one line of `records.jsonl`.

    A cell is one prompt trained on one target with one seed (or, for the system `similarity`, one comparison of
    a source with a target). Fields that do not apply to a system are empty or None.

    Attributes:
        cell: 16 hexadecimal digits, a digest of everything that decides the result.
        recipe: digest of the recipe that planned the cell.
        status: `done` or `failed`.
        error: one sentence, for a failed cell.
        system: `scratch` (prompt tuning from a random start), `full` (model tuning), `vanilla` (starts from the
            source), `panda` (distillation from the sources) or `similarity` (no training).
        model: backbone as the recipe names it.
        target: target task.
        target_type: the task type of Table I (NLI, Paraphrase, ...), or the task kind where the table has none.
        sources: source tasks, none for `scratch` and `full`.
        source_types: their task types.
        method: PEFT method string.
        teacher: teacher method string.
        fusion: fusion method string (`single`, `early`, `late`).
        kd: KD loss method string.
        lambda_: weight of the KD term.
        similarity: similarity method string whose value entered the loss or the fusion.
        learning_rate: peak learning rate.
        epochs: epochs planned.
        max_steps: limit of steps, or None.
        batch_size: rows per step.
        samples: training rows used, where the recipe limits them; None: all.
        seed: seed of the prompt.
        metric: the target's metric.
        best: main metric at the best step, 0 to 1 (correlations -1 to 1).
        last: main metric after the last step.
        first_epoch: main metric after the first epoch; None if nothing was evaluated before the second one ended.
        best_metrics: all metrics at the best step.
        last_metrics: all metrics after the last step.
        best_step: that step.
        history: (step, epoch, main metric) of every evaluation.
        similarities: of every source to the target, in the order of `sources`, by `similarity`.
        transferability: similarity method string -> value, for the single source of a `similarity` cell.
        steps: steps done.
        train_seconds: seconds of training, the cell's share of its pack.
        teacher_seconds: seconds of building and running the teachers, the cell's share.
        samples_per_second: of the whole pack.
        trainable_parameters: numbers that the optimizer changes, head included.
        prompt: prompt file relative to the results folder, or None.
        pack: digest of the pack that the cell was trained in.
        pack_size: prompts in that pack.
        device: `cpu` or `cuda`.
        precision: `fp32` or `bf16`.
        versions: library versions.
        finished: time of writing, ISO 8601 in UTC.
    """

    cell: str
    recipe: str
    status: Literal["done", "failed"]
    error: str | None = None
    system: System
    model: str
    target: str
    target_type: str = ""
    sources: tuple[str, ...] = ()
    source_types: tuple[str, ...] = ()
    method: str
    teacher: str | None = None
    fusion: str | None = None
    kd: str | None = None
    lambda_: float | None = msgspec.field(name="lambda", default=None)
    similarity: str | None = None
    learning_rate: float | None = None
    epochs: int | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    samples: int | None = None
    seed: int
    metric: str | None = None
    best: float | None = None
    last: float | None = None
    first_epoch: float | None = None
    best_metrics: dict[str, float] = msgspec.field(default_factory=dict)
    last_metrics: dict[str, float] = msgspec.field(default_factory=dict)
    best_step: int | None = None
    history: tuple[tuple[int, float, float], ...] = ()
    similarities: tuple[float, ...] = ()
    transferability: dict[str, float] = msgspec.field(default_factory=dict)
    steps: int | None = None
    train_seconds: float | None = None
    teacher_seconds: float | None = None
    samples_per_second: float | None = None
    trainable_parameters: int | None = None
    prompt: str | None = None
    pack: str | None = None
    pack_size: int | None = None
    device: str | None = None
    precision: str | None = None
    versions: dict[str, str] = msgspec.field(default_factory=dict)
    finished: str
