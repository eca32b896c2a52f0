"""The task loss of every prompt of a pack."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def task_losses(logits: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    """Cross-entropy (PanDa eq. 1) or squared error, averaged over the batch.

    Args:
        logits: [G, B, C] float32.
        labels: [G, B] int64 classes, or float32 values for regression (C = 1).
        kind: task kind.

    Returns:
        [G].
    """
    if kind == "regression":
        return (logits.squeeze(-1) - labels).square().mean(1)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(labels.shape).mean(1)
