"""One source, one teacher: the similarity weighs the KD loss (PanDa eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from panda_fusion import hookimpl
from panda_fusion.errors import OptionError
from panda_fusion.fusion import PredictionFusion, TrainingView
from panda_fusion.hookspecs import RegisterMethod

if TYPE_CHECKING:
    import torch


class SingleFusion(PredictionFusion):
    """No fusion: the only teacher's targets as they are; lambda is multiplied by the similarity."""

    by_example = True

    def check_sources(self, count: int) -> None:
        if count != 1:
            raise OptionError(
                f"Fusion 'single' takes exactly one source, but {count} were given; use --fusion early or late."
            )

    def kd_scale(self, similarities: Sequence[float]) -> float:
        return float(similarities[0])

    def fuse(self, targets: torch.Tensor, similarities: torch.Tensor, view: TrainingView | None = None) -> torch.Tensor:
        self.check_sources(len(targets))
        return targets[0].clone()


@hookimpl
def register_fusions(register: RegisterMethod) -> None:
    register("single", SingleFusion, help="one source; its similarity weighs the KD loss (eq. 4)")
