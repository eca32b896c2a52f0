"""The base class of similarities: transferability metrics between two prompts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from panda_fusion.method import Method

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.dataset import EncodedSet
    from panda_fusion.prompt import Prompt
    from panda_fusion.tensor_cache import TensorCache


@dataclass(frozen=True)
class SimilarityContext:
    """What a similarity may use besides the two prompts.

    Attributes:
        backbone: the frozen backbone of both prompts.
        samples: class-balanced samples of the target task, tokenised.
        cache: task embeddings computed before, for similarities that compute some; None: nothing is kept.
        draw: class-balanced samples of another number (all rows, if there are fewer); None: there are no others.
    """

    backbone: Backbone
    samples: EncodedSet
    cache: TensorCache | None = None
    draw: Callable[[int], EncodedSet] | None = None


class Similarity(Method):
    """A number that says how well a source prompt should transfer; higher is better."""

    needs_target: ClassVar[bool] = True
    """Whether a prompt trained on the target task is needed (a short probe is trained if none is given)."""

    def check_sources(self, sources: Sequence[Prompt], context: SimilarityContext) -> None:
        """Raise what `score` would raise for these sources or this backbone; called before a probe is paid for.

        A probe has the method of the first source.

        Raises:
            PromptFileError: a source lacks what is compared.
            OptionError: an option does not fit the backbone.
            BackboneError: the backbone does not have what is compared.
        """

    @abstractmethod
    def score(self, source: Prompt, target: Prompt | None, context: SimilarityContext) -> float:
        """Similarity of a source and a target prompt of one backbone.

        Args:
            source: the source task's prompt.
            target: a prompt trained on the target task; None only where `needs_target` is False.
            context: backbone and samples, for similarities that look at activations.

        Raises:
            PromptFileError: a prompt lacks what the similarity compares, or the two do not fit.
        """

    def scores(self, sources: Sequence[Prompt], target: Prompt | None, context: SimilarityContext) -> list[float]:
        """Similarity of every source to the target, in the order given; what ranking calls.

        The default asks `score` one by one. A similarity that runs the backbone overrides it, so that many prompts
        share a forward pass (`panda_fusion.prompt_packs`); each number must be the one that `score` gives.
        """
        return [self.score(source, target, context) for source in sources]
