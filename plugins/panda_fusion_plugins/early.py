"""Early fusion: the similarity-weighted average of the prompts is the teacher (PanDa eq. 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from panda_fusion import hookimpl
from panda_fusion.fusion import PromptFusion
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.method import Options

if TYPE_CHECKING:
    import torch


class EarlyOptions(Options, frozen=True, kw_only=True):
    """Options of `early`."""

    normalize: Annotated[bool, Meta(description="divide by the sum of the similarities instead of their number")] = (
        False
    )


class EarlyFusion(PromptFusion):
    """u = 1/n sum_i sim_i u_i, as printed in eq. 5: the weights do not sum to one unless `normalize` is set."""

    Options = EarlyOptions
    options: EarlyOptions

    def fuse(self, tensors: Mapping[str, torch.Tensor], similarities: torch.Tensor) -> dict[str, torch.Tensor]:
        from panda_fusion.fusion import fusion_weights

        weights = fusion_weights(similarities, self.options.normalize)
        return {name: (weights.view(-1, *[1] * (tensor.dim() - 1)) * tensor).sum(0) for name, tensor in tensors.items()}


@hookimpl
def register_fusions(register: RegisterMethod) -> None:
    register("early", EarlyFusion, help="similarity-weighted average of prompts (eq. 5)")
