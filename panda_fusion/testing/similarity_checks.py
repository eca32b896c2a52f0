"""What a similarity must fulfil. Not symmetry: A may help B more than B helps A."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from panda_fusion.errors import PromptFileError
from panda_fusion.method import Options
from panda_fusion.similarity import Similarity, SimilarityContext
from panda_fusion.testing.check import Check, require

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.prompt import Prompt


def check_similarity(
    method_type: type[Similarity], options: Options | None = None, name: str = "checked"
) -> Iterator[Check]:
    """Checks of a similarity, on made-up prompts of a registered PEFT method and a tiny backbone.

    Args:
        method_type: the class.
        options: its options; None takes the defaults.
        name: what the instance is called.
    """
    method = method_type(options)
    method.name = name

    def finite() -> None:
        first, second = _prompt(1), _prompt(2)
        found = method.score(first, second, _context())
        require(isinstance(found, float), f"score returns a {type(found).__name__}; expected a float")
        require(math.isfinite(found), f"score returns {found}; expected a finite number")

    def repeatable() -> None:
        first, second = (method.score(_prompt(1), _prompt(2), _context()) for _ in range(2))
        require(first == second, f"two equal calls gave {first} and {second}")

    def unchanged() -> None:
        import torch

        first, second = _prompt(1), _prompt(2)
        method.score(first, second, _context())
        for prompt, fresh in ((first, _prompt(1)), (second, _prompt(2))):
            require(
                all(torch.equal(tensor, fresh.tensors[key]) for key, tensor in prompt.tensors.items()),
                "score changed a prompt's tensors",
            )
            assert prompt.embedding is not None
            assert fresh.embedding is not None
            require(torch.equal(prompt.embedding, fresh.embedding), "score changed a prompt's task embedding")

    def itself() -> None:
        target = _prompt(1)
        best = method.score(_prompt(1), target, _context())
        for seed in (2, 3, 4):
            other = method.score(_prompt(seed), target, _context())
            require(other <= best + 1e-6, f"a prompt's similarity to itself is {best}, to another one {other}")

    def several() -> None:
        sources, target = [_prompt(seed) for seed in (3, 1, 2, 3)], _prompt(1)
        found = method.scores(sources, target, _context())
        require(len(found) == len(sources), f"scores of {len(sources)} sources gave {len(found)} numbers")
        for place, source in enumerate(sources):
            alone = method.score(source, target, _context())
            require(
                isinstance(found[place], float) and abs(found[place] - alone) <= 1e-5,
                f"scores gives source {place} {found[place]!r}, score gives it {alone}",
            )
        require(method.scores([], target, _context()) == [], "scores of no source is not an empty list")

    def checked_first() -> None:
        method.check_sources([_prompt(1), _prompt(2)], _context())

    def no_target() -> None:
        found = method.score(_prompt(1), None, _context())
        require(
            isinstance(found, float) and math.isfinite(found),
            f"needs_target is False, but without a target score returns {found!r}",
        )

    def no_embedding() -> None:
        from dataclasses import replace

        bare = replace(_prompt(1), embedding=None)
        _number_or_prompt_error(method, bare, _prompt(2), "the source carries no task embedding")

    def other_backbone() -> None:
        from panda_fusion.testing.samples import PLAIN, sample_backbone

        _number_or_prompt_error(
            method, _prompt(1, sample_backbone(PLAIN)), _prompt(2), "the prompts have different sizes"
        )

    yield Check("score is a finite float", finite)
    yield Check("deterministic", repeatable)
    yield Check("prompts stay as they are", unchanged)
    yield Check("no prompt is closer to a prompt than itself", itself)
    yield Check("many sources at once score what each scores alone", several)
    yield Check("check_sources takes sources that can be scored", checked_first)
    if not method.needs_target:
        yield Check("works without a target prompt", no_target)
    yield Check("a prompt without task embedding works or raises PromptFileError", no_embedding)
    yield Check("prompts of different sizes work or raise PromptFileError", other_backbone)


def _number_or_prompt_error(method: Similarity, source: Prompt, target: Prompt, case: str) -> None:
    try:
        found = method.score(source, target, _context())
    except PromptFileError:
        return
    require(isinstance(found, float) and math.isfinite(found), f"{case}: score returns {found!r}")


def _prompt(seed: int, sized: Backbone | None = None) -> Prompt:
    from panda_fusion.testing.samples import sample_method, sample_prompt, tiny_backbone

    return sample_prompt(tiny_backbone("bert"), sample_method(), seed, sized)


def _context() -> SimilarityContext:
    from panda_fusion.testing.samples import encoded_texts, tiny_backbone

    backbone = tiny_backbone("bert")
    return SimilarityContext(backbone=backbone, samples=encoded_texts(backbone))
