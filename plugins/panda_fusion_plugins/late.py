"""Late fusion: the similarity-weighted average of the teachers' predictions (PanDa eq. 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from panda_fusion import hookimpl
from panda_fusion.fusion import PredictionFusion, TrainingView
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.method import Options

if TYPE_CHECKING:
    import torch


class LateOptions(Options, frozen=True, kw_only=True):
    """Options of `late`."""

    normalize: Annotated[bool, Meta(description="divide by the sum of the similarities instead of their number")] = (
        False
    )


class LateFusion(PredictionFusion):
    """P = 1/n sum_i sim_i P_i, as printed in eq. 6: it does not sum to one unless `normalize` is set."""

    Options = LateOptions
    options: LateOptions
    by_example = True

    def fuse(self, targets: torch.Tensor, similarities: torch.Tensor, view: TrainingView | None = None) -> torch.Tensor:
        from panda_fusion.fusion import fusion_weights

        weights = fusion_weights(similarities, self.options.normalize)
        return (weights.view(-1, *[1] * (targets.dim() - 1)) * targets).sum(0)


@hookimpl
def register_fusions(register: RegisterMethod) -> None:
    register("late", LateFusion, help="similarity-weighted average of predictions (eq. 6)")
