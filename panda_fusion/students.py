"""The prompts that a run trains: where they start, one per seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from panda_fusion.random_streams import random_stream
from panda_fusion.trainer import Distillation, Student

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.peft_method import PEFTMethod
    from panda_fusion.task import Task


def new_students(
    backbone: Backbone,
    task: Task,
    method: PEFTMethod,
    seeds: Sequence[int],
    learning_rate: float | None,
    start: Mapping[str, torch.Tensor] | None = None,
    distillation: Distillation | None = None,
) -> list[Student]:
    """One student per seed: a random prompt, or the given one, and always a new random head.

    Args:
        backbone: the frozen backbone.
        task: the target task.
        method: PEFT method.
        seeds: each seeds prompt, head and data order of its student.
        learning_rate: peak learning rate; None: the method's own.
        start: trainable tensors to start from (vanilla transfer, SPoT); None: random.
        distillation: soft targets for all of them, or None.
    """
    heads = heads_for(backbone, task, seeds)
    return [
        Student(
            tensors=method.create(backbone, random_stream(seed, "prompt")) if start is None else start,
            head=head,
            seed=seed,
            learning_rate=method.learning_rate if learning_rate is None else learning_rate,
            distillation=distillation,
        )
        for seed, head in zip(seeds, heads, strict=True)
    ]


def heads_for(backbone: Backbone, task: Task, seeds: Sequence[int]) -> list[dict[str, torch.Tensor]]:
    """A new head per seed; the same seed gives the same head whatever the PEFT method."""
    head = backbone.head(task.outputs, task.kind)
    return [head.create(random_stream(seed, "head")) for seed in seeds]
