"""Kullback-Leibler divergence from teacher to student at a temperature (Hinton et al.)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from panda_fusion import hookimpl
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.kd_loss import CLASSES, KDLoss, mean_per_prompt
from panda_fusion.method import Options

if TYPE_CHECKING:
    import torch


class KLOptions(Options, frozen=True, kw_only=True):
    """Options of `kl`."""

    temperature: Annotated[float, Meta(gt=0, le=1000, description="softens both distributions")] = 1.0


class KL(KDLoss):
    """T^2 sum_c t_c log(t_c / s_c), summed over classes and averaged over the batch.

    t and s are the softmax of the logits divided by the temperature T. Fused targets that do not sum to one
    are taken as they are.
    """

    Options = KLOptions
    options: KLOptions
    kinds = CLASSES

    def targets(self, logits: torch.Tensor, kind: str) -> torch.Tensor:
        return (logits / self.options.temperature).softmax(-1)

    def loss(
        self, student: torch.Tensor, targets: torch.Tensor, kind: str, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        log_student = (student / self.options.temperature).log_softmax(-1)
        entropy = targets.xlogy(targets)  # 0 where a target is 0
        losses = (entropy - targets * log_student).sum(-1) * self.options.temperature**2
        return mean_per_prompt(losses, mask)


@hookimpl
def register_kd_losses(register: RegisterMethod) -> None:
    register("kl", KL, help="Kullback-Leibler divergence at a temperature")
