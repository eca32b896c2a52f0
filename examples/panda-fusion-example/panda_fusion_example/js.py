"""A KD loss that is symmetric and bounded: the Jensen-Shannon divergence (Lin, 1991)."""

from __future__ import annotations

from typing import Annotated

import torch
from msgspec import Meta

from panda_fusion.kd_loss import CLASSES, KDLoss, mean_per_prompt
from panda_fusion.method import Options


class JensenShannonOptions(Options, frozen=True, kw_only=True):
    """Options of `js`."""

    temperature: Annotated[float, Meta(gt=0, le=1000, description="softens both distributions")] = 1.0


class JensenShannon(KDLoss):
    """T^2 (KL(t, m) + KL(s, m)) / 2 with m = (t + s) / 2, averaged over the batch.

    t and s are the softmax of the teacher's and the student's logits divided by the temperature T. The
    divergence lies between 0 (equal) and log 2 (nothing in common), times T^2.
    """

    Options = JensenShannonOptions
    options: JensenShannonOptions
    kinds = CLASSES

    def targets(self, logits: torch.Tensor, kind: str) -> torch.Tensor:
        return (logits / self.options.temperature).softmax(-1)

    def loss(
        self, student: torch.Tensor, targets: torch.Tensor, kind: str, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        log_student = (student / self.options.temperature).log_softmax(-1)
        probabilities = log_student.exp()
        middle = (targets + probabilities) / 2
        # Where both are 0 the divergence is 0, but the logarithm of 0 would make its gradient NaN.
        log_middle = middle.clamp(min=torch.finfo(middle.dtype).tiny).log()
        teacher_side = targets.xlogy(targets) - targets * log_middle
        student_side = probabilities * (log_student - log_middle)
        losses = (teacher_side + student_side).sum(-1) / 2 * self.options.temperature**2
        return mean_per_prompt(losses, mask)
