"""The base class of knowledge-distillation losses between a teacher's and a student's outputs."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from panda_fusion.method import Method

if TYPE_CHECKING:
    import torch

CLASSES = frozenset({"classification", "multiple-choice", "token-classification", "extractive-qa"})
"""Task kinds whose outputs are logits over classes."""
ALL_KINDS = CLASSES | {"regression"}


class KDLoss(Method):
    """A KD loss in two steps, so that a teacher is run once and its outputs can be averaged in between.

    1. `targets` maps teacher logits into the space in which fusions average (probabilities or logits);
    2. `loss` compares the student's logits with such targets, for every prompt of the pack on its own.
    """

    kinds: ClassVar[frozenset[str]] = ALL_KINDS
    """The task kinds for which the loss is defined."""

    def check_kind(self, kind: str) -> None:
        """Raise OptionError if the loss, with its options, is undefined for the task kind."""
        from panda_fusion.errors import OptionError

        if kind not in self.kinds:
            raise OptionError(
                f"KD loss {self.name!r} is not defined for a {kind} task (it compares distributions over "
                "classes); use mse."
            )

    @abstractmethod
    def targets(self, logits: torch.Tensor, kind: str) -> torch.Tensor:
        """Map teacher logits [..., C] (C = 1 for regression) to soft targets of the same shape.

        Training sets of K teachers come whole or some examples at a time; words that do not count are part of them.
        """

    @abstractmethod
    def loss(
        self, student: torch.Tensor, targets: torch.Tensor, kind: str, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One loss per prompt of the pack.

        Args:
            student: student logits [G, B, C], or [G, B, S, C] for S words (token-classification) or for an answer's
                start and end, whose classes are the tokens (extractive-qa); float32. What cannot be chosen, such as a
                choice that a row lacks, holds -1e4.
            targets: soft targets of the same shape, from `targets` and maybe averaged by a fusion.
            kind: the task kind.
            mask: [G, B] or [G, B, S], True where the row (word) counts; None: all count.

        Returns:
            [G]: summed over classes, averaged over what counts.
        """


def mean_per_prompt(losses: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Average losses [G, B] or [G, B, S] to [G], over the True places of a mask of the same shape."""
    flat = losses.flatten(1)
    if mask is None:
        return flat.mean(1)
    weights = mask.to(flat.dtype).flatten(1)
    return (flat * weights).sum(1) / weights.sum(1).clamp(min=1)
