"""The task loss of every prompt of a pack."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from panda_fusion.kd_loss import mean_per_prompt


def task_losses(
    logits: torch.Tensor, labels: torch.Tensor, kind: str, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy (PanDa eq. 1) or squared error, averaged over what counts in the batch.

    Args:
        logits: [G, B, C] or, with S labels per example (words, or an answer's start and end), [G, B, S, C] float32.
        labels: [G, B] or [G, B, S] int64 classes, or [G, B] float32 values for regression (C = 1).
        kind: task kind.
        mask: [G, B, S], True where a label counts; None: all do.

    Returns:
        [G].
    """
    if kind == "regression":
        return (logits.squeeze(-1) - labels).square().mean(1)
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")  # -100 gives 0
    return mean_per_prompt(losses.view(labels.shape), mask)
