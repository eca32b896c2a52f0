"""Task embeddings: the shift that a prompt causes in the pooled vector (PanDa III-C1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from panda_fusion.inference import pooled_vectors

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.dataset import EncodedSet
    from panda_fusion.peft_method import PEFTMethod

SAMPLES = 100
"""Class-balanced samples of the task's own development set (PanDa III-C1)."""


def task_embeddings(
    backbone: Backbone,
    method: PEFTMethod,
    tensors: Mapping[str, torch.Tensor],
    samples: EncodedSet,
    plain: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean over samples of h_cls with the prompt minus h_cls without it, before eq. 2.

    Args:
        backbone: the frozen backbone.
        method: PEFT method of the prompts.
        tensors: its trainable tensors [G, ...].
        samples: class-balanced examples of the task that the prompts were trained on.
        plain: `pooled_vectors(backbone, samples)` where it is there already; None: it is computed.

    Returns:
        [G, hidden] float32 on the CPU.
    """
    if plain is None:
        plain = pooled_vectors(backbone, samples)
    prompted = pooled_vectors(backbone, samples, method, tensors)
    return (prompted - plain).mean(1).cpu()
