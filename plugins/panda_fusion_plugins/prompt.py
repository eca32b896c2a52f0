"""Prompt tuning: trained embeddings in front of the text's (Lester et al.)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from panda_fusion import hookimpl
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.method import Options
from panda_fusion.peft_method import PEFTMethod

if TYPE_CHECKING:
    import torch

    from panda_fusion.backbone import BackboneShape
    from panda_fusion.injection import Injection


class PromptOptions(Options, frozen=True, kw_only=True):
    """Options of `prompt`."""

    length: Annotated[int, Meta(ge=1, le=4096, description="virtual tokens in front of the text")] = 20


class InputPrompt(PEFTMethod):
    """Lester et al.: P trained input embeddings, `embedding` [P, hidden]; the text's positions follow them."""

    Options = PromptOptions
    # P-tuning stores the output of its encoder, which is a plain prompt.
    peft_types = ("PROMPT_TUNING", "P_TUNING")
    options: PromptOptions

    def virtual_tokens(self) -> int:
        return self.options.length

    def stored_shapes(self, shape: BackboneShape) -> dict[str, tuple[int, ...]]:
        return {"embedding": (self.options.length, shape.input_width)}

    def create(self, shape: BackboneShape, generator: torch.Generator) -> dict[str, torch.Tensor]:
        import torch

        size = (self.options.length, shape.input_width)
        return {"embedding": torch.randn(size, generator=generator) * shape.initializer_range}

    def inject(self, tensors: Mapping[str, torch.Tensor], shape: BackboneShape) -> Injection:
        from panda_fusion.injection import Injection

        return Injection(embedding=tensors["embedding"])

    def token_matrix(self, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return stored["embedding"]


@hookimpl
def register_peft_methods(register: RegisterMethod) -> None:
    register("prompt", InputPrompt, help="trained embeddings in front of the text (Lester et al.)")
