"""Fitting heads on frozen features: what a teacher needs whose prompt is not trained on the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from panda_fusion.device import single_thread
from panda_fusion.optimizer import PackedAdamW, PackedParameters
from panda_fusion.random_streams import random_stream
from panda_fusion.readout import labels_and_mask, masked
from panda_fusion.task_loss import task_losses

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.dataset import EncodedSet

LEARNING_RATE = 3e-3
BATCH_SIZE = 64
EPOCHS = 20
MIN_STEPS, MAX_STEPS = 1000, 3000


def fit_heads(
    backbone: Backbone, features: torch.Tensor, data: EncodedSet, outputs: int, seed: int
) -> dict[str, torch.Tensor]:
    """Train K heads on K sets of features side by side; the backbone is not run.

    Twenty epochs of AdamW with batches of 64 and a linearly falling rate from 3e-3, but at least 1000 and at
    most 3000 steps: a second or so for whole-row tasks, since the backbone is not run.

    Args:
        backbone: whose head it is.
        features: [K, M, ..., hidden] what the head reads (`panda_fusion.inference.head_features`).
        data: the M examples with their labels.
        outputs: width of the head.
        seed: seeds heads and data order.

    Returns:
        Head parameters [K, ...] float32 on the CPU.
    """
    count, examples = features.shape[:2]
    head = backbone.head(outputs, data.kind)
    generator = random_stream(seed, "teacher")
    start = head.create(generator)
    parameters = PackedParameters([start] * count, features.device)
    steps = min(MAX_STEPS, max(MIN_STEPS, EPOCHS * examples // BATCH_SIZE))
    optimizer = PackedAdamW(parameters.flat, [LEARNING_RATE] * count, steps)
    features = features.clone()  # made in inference mode: autograd may not save such tensors
    order = torch.empty(0, dtype=torch.int64)
    with single_thread(features.device):
        for _ in range(steps):
            if len(order) < min(BATCH_SIZE, examples):
                order = torch.cat((order, torch.randperm(examples, generator=generator)))
            index, order = order[:BATCH_SIZE].to(features.device), order[BATCH_SIZE:]
            own = index.expand(count, -1)
            logits = masked(head(parameters.tensors(), features[:, index]), data, own)
            labels, mask = labels_and_mask(data, own, data.input_ids.shape[1])
            losses = task_losses(logits, labels, data.kind, mask)
            losses.sum().backward()
            optimizer.step(losses.detach())
    return {name: tensor.detach().cpu().clone() for name, tensor in parameters.tensors().items()}
