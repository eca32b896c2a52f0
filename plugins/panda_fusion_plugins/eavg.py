"""SPoT's E_avg: the cosine of two prompts averaged over their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from panda_fusion import hookimpl
from panda_fusion.errors import PromptFileError
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.similarity import Similarity, SimilarityContext

if TYPE_CHECKING:
    import torch

    from panda_fusion.prompt import Prompt


class Eavg(Similarity):
    """cos(mean_p s_p, mean_p t_p) over the tokens p of each prompt; the lengths may differ."""

    def check_sources(self, sources: Sequence[Prompt], context: SimilarityContext) -> None:
        for source in sources:
            _means(source, sources[0], "the probe")

    def score(self, source: Prompt, target: Prompt | None, context: SimilarityContext) -> float:
        import torch

        assert target is not None
        first, second = _means(source, target, "the target's prompt")
        return float(torch.cosine_similarity(first, second, dim=0))


def _means(source: Prompt, target: Prompt, word: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token means of both; PromptFileError where they cannot be compared."""
    first, second = _token_mean(source), _token_mean(target)
    if first.shape != second.shape:
        raise PromptFileError(
            f"Prompt {source.path or source.task.name!r} ({source.method}) and {word} ({target.method}) have "
            f"{first.numel()} and {second.numel()} features per token, so similarity 'eavg' cannot compare them; "
            "use prompts of one method or --similarity panda."
        )
    return first, second


def _token_mean(prompt: Prompt) -> torch.Tensor:
    """[features] float64."""
    from panda_fusion.plugin_manager import peft_methods

    return peft_methods().create(prompt.method).token_matrix(prompt.tensors).double().mean(0)


@hookimpl
def register_similarities(register: RegisterMethod) -> None:
    register("eavg", Eavg, help="cosine of the token-averaged prompts (SPoT)")
