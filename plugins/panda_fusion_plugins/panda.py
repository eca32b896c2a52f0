"""PanDa's transferability: the cosine of two task embeddings (eq. 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from panda_fusion import hookimpl
from panda_fusion.errors import PromptFileError
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.similarity import Similarity, SimilarityContext

if TYPE_CHECKING:
    from panda_fusion.prompt import Prompt


class Panda(Similarity):
    """cos(h_s, h_t), h being the shift that a prompt causes at [CLS], averaged over samples of its own task.

    The embeddings travel in the prompt files, so no data of the source tasks are needed.
    """

    def score(self, source: Prompt, target: Prompt | None, context: SimilarityContext) -> float:
        import torch

        assert target is not None
        for prompt in (source, target):
            if prompt.embedding is None:
                raise PromptFileError(
                    f"Prompt {prompt.path or prompt.task.name!r} carries no task embedding, which similarity 'panda' "
                    "compares; train it with panda-fusion or use --similarity eavg."
                )
        assert source.embedding is not None
        assert target.embedding is not None
        if source.embedding.shape != target.embedding.shape:
            raise PromptFileError(
                f"Prompt {source.path or source.task.name!r} has a task embedding of {source.embedding.numel()} "
                f"numbers and the target's prompt one of {target.embedding.numel()}; use prompts of one backbone."
            )
        return float(torch.cosine_similarity(source.embedding.double(), target.embedding.double(), dim=0))


@hookimpl
def register_similarities(register: RegisterMethod) -> None:
    register("panda", Panda, help="cosine of the task embeddings (PanDa eq. 2)")
