"""Prompt tuning: trained embeddings in front of the text's (Lester et al.)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from panda_fusion import hookimpl
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.method import Options
from panda_fusion.peft_method import PEFTMethod

if TYPE_CHECKING:
    import torch

    from panda_fusion.backbone import Backbone, BackboneShape
    from panda_fusion.injection import Injection


class PromptOptions(Options, frozen=True, kw_only=True):
    """Options of `prompt`."""

    length: Annotated[int, Meta(ge=1, le=4096, description="virtual tokens in front of the text")] = 20
    init: Annotated[
        Literal["normal", "vocab", "text"],
        Meta(
            description="how the embeddings start: normal at the backbone's scale, those of sampled tokens, or those "
            "of the option text"
        ),
    ] = "normal"
    text: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(description="what init=text starts from, repeated or cut to length"),
    ] = None

    def __post_init__(self) -> None:
        if (self.init == "text") != (self.text is not None):
            raise ValueError('init=text and text="..." are given together or not at all.')


class InputPrompt(PEFTMethod):
    """Lester et al.: P trained input embeddings, `embedding` [P, hidden]; the text's positions follow them.

    They start (Lester et al., section 3.2) as N(0, initializer_range of the backbone), as the embeddings of P tokens
    sampled from its vocabulary, or as those of a given text.
    """

    Options = PromptOptions
    # P-tuning stores the output of its encoder, which is a plain prompt.
    peft_types = ("PROMPT_TUNING", "P_TUNING")
    options: PromptOptions

    def virtual_tokens(self) -> int:
        return self.options.length

    def stored_shapes(self, shape: BackboneShape) -> dict[str, tuple[int, ...]]:
        return {"embedding": (self.options.length, shape.input_width)}

    def create(self, backbone: Backbone, generator: torch.Generator) -> dict[str, torch.Tensor]:
        import torch

        shape = backbone.shape
        if self.options.init != "normal":
            from panda_fusion.starting_points import sampled_tokens, text_tokens, token_embeddings

            if self.options.text is None:
                tokens = sampled_tokens(backbone, self.options.length, generator)
            else:
                tokens = text_tokens(backbone, self.options.text, self.options.length)
            return {"embedding": token_embeddings(backbone, tokens)}
        size = (self.options.length, shape.input_width)
        return {"embedding": torch.randn(size, generator=generator) * shape.initializer_range}

    def inject(self, tensors: Mapping[str, torch.Tensor], shape: BackboneShape) -> Injection:
        from panda_fusion.injection import Injection

        return Injection(embedding=tensors["embedding"])

    def stored(self) -> PEFTMethod:
        if self.options.init == "normal":
            return self
        plain = InputPrompt(PromptOptions(length=self.options.length))
        plain.name = self.name
        return plain

    def token_matrix(self, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return stored["embedding"]


@hookimpl
def register_peft_methods(register: RegisterMethod) -> None:
    register("prompt", InputPrompt, help="trained embeddings in front of the text (Lester et al.)")
