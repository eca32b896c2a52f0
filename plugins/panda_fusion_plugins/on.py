"""ON: the overlap of the feed-forward neurons that two prompts activate (Su et al.)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from panda_fusion import hookimpl
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.layer_choice import LAYERS_PATTERN, chosen_layers
from panda_fusion.method import Options
from panda_fusion.similarity import Similarity, SimilarityContext

if TYPE_CHECKING:
    import torch

    from panda_fusion.prompt import Prompt


class OverlapOptions(Options, frozen=True, kw_only=True):
    """Options of `on`."""

    layers: Annotated[
        str,
        Meta(
            pattern=LAYERS_PATTERN,
            description="whose neurons count: all, last3, or numbers from 0 and ranges such as 0-2+9",
        ),
    ] = "all"


class Overlap(Similarity):
    """cos(a_s, a_t), a being 1 for every feed-forward neuron that is above 0 and 0 for the others.

    The text is a single [CLS] token, at which the neurons are read, so neither task's data take part. In numbers:
    neurons activated by both / sqrt(activated by s * activated by t). Prompts of different PEFT methods can be
    compared.
    """

    Options = OverlapOptions
    options: OverlapOptions

    def check_sources(self, sources: Sequence[Prompt], context: SimilarityContext) -> None:
        self._layers(context)

    def score(self, source: Prompt, target: Prompt | None, context: SimilarityContext) -> float:
        return self.scores([source], target, context)[0]

    def scores(self, sources: Sequence[Prompt], target: Prompt | None, context: SimilarityContext) -> list[float]:
        from panda_fusion.neuron_activations import activated_neurons

        assert target is not None
        *own, other = activated_neurons(context.backbone, [*sources, target], self._layers(context))
        return [_cosine(one, other) for one in own]

    def _layers(self, context: SimilarityContext) -> tuple[int, ...]:
        from panda_fusion.neuron_activations import neuron_modules

        return chosen_layers(self.options.layers, len(neuron_modules(context.backbone)))


def _cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    """Of two bool vectors [neurons], from whole numbers; 0 where one of them is all zero."""
    shared = int((first & second).sum())
    product = int(first.sum()) * int(second.sum())
    return shared / product**0.5 if product else 0.0


@hookimpl
def register_similarities(register: RegisterMethod) -> None:
    register("on", Overlap, help="overlap of activated feed-forward neurons (Su et al.)")
