"""Model tuning: every weight of the backbone is trained. The paper's reference row, not parameter-efficient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from panda_fusion import hookimpl
from panda_fusion.errors import BackboneError
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.peft_method import PEFTMethod

if TYPE_CHECKING:
    import torch

    from panda_fusion.backbone import Backbone, BackboneShape
    from panda_fusion.injection import Injection


class Full(PEFTMethod):
    """All parameters of the base model, from where they are: "model-tuning" (PanDa, Figure 1 and Table III).

    The trained tensors are float32 and cast to the backbone's dtype in every forward pass, so that small steps are not
    lost in bfloat16. Their names and shapes are the backbone's own. The pooler of a BERT is among them. Prompts cannot
    share a forward pass, and a prompt file is the whole model.
    """

    packable = False
    learning_rate = 3e-5

    def virtual_tokens(self) -> int:
        return 0

    def stored_shapes(self, shape: BackboneShape) -> dict[str, tuple[int, ...]] | None:
        return None if shape.parameters is None else dict(shape.parameters)

    def create(self, backbone: Backbone, generator: torch.Generator) -> dict[str, torch.Tensor]:
        from math import prod

        from panda_fusion.safetensors_header import MAX_DATA_BYTES

        size = 4 * sum(prod(sizes) for sizes in (backbone.shape.parameters or {}).values())
        if size > MAX_DATA_BYTES:
            raise BackboneError(
                f"PEFT method 'full' trains and stores all {size // 4} parameters of backbone {backbone.name!r}, "
                f"{size} bytes, and a prompt file holds at most {MAX_DATA_BYTES}; use a smaller backbone or another "
                "method."
            )
        return backbone.weights()

    def inject(self, tensors: Mapping[str, torch.Tensor], shape: BackboneShape) -> Injection:
        from panda_fusion.injection import Injection

        return Injection(weights=tensors)


@hookimpl
def register_peft_methods(register: RegisterMethod) -> None:
    register("full", Full, help="all weights of the backbone (model tuning): the reference")
