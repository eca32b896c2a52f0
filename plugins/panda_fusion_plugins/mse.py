"""Mean squared error between teacher and student (PanDa eq. 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from panda_fusion import hookimpl
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.kd_loss import KDLoss, mean_per_prompt
from panda_fusion.method import Options

if TYPE_CHECKING:
    import torch


class MSEOptions(Options, frozen=True, kw_only=True):
    """Options of `mse`."""

    space: Annotated[
        Literal["probs", "logits"],
        Meta(description="compare probabilities (eq. 3) or raw logits; regression always compares values"),
    ] = "probs"


class MSE(KDLoss):
    """Squared differences of probabilities, summed over classes and averaged over the batch."""

    Options = MSEOptions
    options: MSEOptions

    def _map(self, logits: torch.Tensor, kind: str) -> torch.Tensor:
        return logits if kind == "regression" or self.options.space == "logits" else logits.softmax(-1)

    def targets(self, logits: torch.Tensor, kind: str) -> torch.Tensor:
        return self._map(logits, kind)

    def loss(
        self, student: torch.Tensor, targets: torch.Tensor, kind: str, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        difference = self._map(student, kind) - targets
        if self.options.space == "logits":
            from panda_fusion.readout import MASKED

            # What cannot be chosen is no prediction; fused logits of it would not even cancel.
            difference = difference.masked_fill(student <= MASKED, 0)
        return mean_per_prompt(difference.square().sum(-1), mask)


@hookimpl
def register_kd_losses(register: RegisterMethod) -> None:
    register("mse", MSE, help="squared error of probabilities or logits (eq. 3)")
