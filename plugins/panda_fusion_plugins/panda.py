"""PanDa's transferability: the cosine of two task embeddings (eq. 2)."""

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


class Panda(Similarity):
    """cos(h_s, h_t), h being the shift that a prompt causes at [CLS], averaged over samples of its own task.

    The embeddings travel in the prompt files, so no data of the source tasks are needed.
    """

    def check_sources(self, sources: Sequence[Prompt]) -> None:
        for prompt in sources:
            _embedding(prompt)

    def score(self, source: Prompt, target: Prompt | None, context: SimilarityContext) -> float:
        import torch

        assert target is not None
        own, other = _embedding(source), _embedding(target)
        if own.shape != other.shape:
            raise PromptFileError(
                f"Prompt {source.path or source.task.name!r} has a task embedding of {own.numel()} "
                f"numbers and the target's prompt one of {other.numel()}; use prompts of one backbone."
            )
        return float(torch.cosine_similarity(own.double(), other.double(), dim=0))


def _embedding(prompt: Prompt) -> torch.Tensor:
    """[hidden] float32."""
    if prompt.embedding is None:
        raise PromptFileError(
            f"Prompt {prompt.path or prompt.task.name!r} carries no task embedding, which similarity 'panda' "
            "compares; train it with panda-fusion or use --similarity eavg."
        )
    return prompt.embedding


@hookimpl
def register_similarities(register: RegisterMethod) -> None:
    register("panda", Panda, help="cosine of the task embeddings (PanDa eq. 2)")
