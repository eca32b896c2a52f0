"""PanDa's transferability: the cosine of two task embeddings (eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from panda_fusion import hookimpl
from panda_fusion.errors import PromptFileError
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.method import Options
from panda_fusion.similarity import Similarity, SimilarityContext

if TYPE_CHECKING:
    import torch

    from panda_fusion.prompt import Prompt


class PandaOptions(Options, frozen=True, kw_only=True):
    """Options of `panda`."""

    samples: Annotated[
        Literal["own", "target"],
        Meta(description="whose samples: each prompt's own task's (stored in the files), or the target's for all"),
    ] = "own"
    count: Annotated[
        int, Meta(ge=1, le=100_000, description="how many samples of the target; 100 are stored in the files")
    ] = 100

    def __post_init__(self) -> None:
        if self.samples == "own" and self.count != 100:
            raise ValueError("another count than 100 needs samples=target, since the files hold the embedding of 100.")


class Panda(Similarity):
    """cos(h_s, h_t), h being the shift that a prompt causes at [CLS], averaged over samples.

    With `samples=own` they are samples of the task that the prompt was trained on, as in eq. 2; the embeddings
    travel in the prompt files, so no data of the source tasks and no forward pass are needed. With `samples=target`
    every prompt sees the target's samples, which also ranks prompts that carry no embedding.
    """

    Options = PandaOptions
    options: PandaOptions

    def check_sources(self, sources: Sequence[Prompt], context: SimilarityContext) -> None:
        if self.options.samples == "own":
            for prompt in sources:
                _embedding(prompt)

    def score(self, source: Prompt, target: Prompt | None, context: SimilarityContext) -> float:
        return self.scores([source], target, context)[0]

    def scores(self, sources: Sequence[Prompt], target: Prompt | None, context: SimilarityContext) -> list[float]:
        import torch

        assert target is not None
        *own, other = self._embeddings([*sources, target], context)
        for source, embedding in zip(sources, own, strict=True):
            if embedding.shape != other.shape:
                raise PromptFileError(
                    f"Prompt {source.path or source.task.name!r} has a task embedding of {embedding.numel()} "
                    f"numbers and the target's prompt one of {other.numel()}; use prompts of one backbone."
                )
        return [float(torch.cosine_similarity(one.double(), other.double(), dim=0)) for one in own]

    def _embeddings(self, prompts: Sequence[Prompt], context: SimilarityContext) -> list[torch.Tensor]:
        """[hidden] float32 per prompt."""
        if self.options.samples == "own":
            return [_embedding(prompt) for prompt in prompts]
        from panda_fusion.prompt_embedding import embeddings_on

        samples = context.samples if context.draw is None else context.draw(self.options.count)
        return list(embeddings_on(prompts, context.backbone, samples, context.cache))


def _embedding(prompt: Prompt) -> torch.Tensor:
    """[hidden] float32."""
    if prompt.embedding is None:
        raise PromptFileError(
            f"Prompt {prompt.path or prompt.task.name!r} carries no task embedding, which similarity 'panda' "
            "compares; use --similarity panda:samples=target, or train the prompt with panda-fusion."
        )
    return prompt.embedding


@hookimpl
def register_similarities(register: RegisterMethod) -> None:
    register("panda", Panda, help="cosine of the task embeddings (PanDa eq. 2)")
