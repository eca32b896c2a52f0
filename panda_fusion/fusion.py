"""The base classes of fusions: how several sources become one supervision signal."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from panda_fusion.method import Method

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TrainingView:
    """What a trainable fusion may look at: the target's training set, M examples in order.

    Attributes:
        features: [M, hidden] float32, the backbone's pooled output without any prompt.
        labels: [M] int64 class indices, or float32 values for regression.
        kind: the task kind.
    """

    features: torch.Tensor
    labels: torch.Tensor
    kind: str


class Fusion(Method):
    """Common part: subclass `PromptFusion` or `PredictionFusion`, not this."""

    def check_sources(self, count: int) -> None:
        """Raise OptionError if the fusion cannot work with this number of sources."""

    def kd_scale(self, similarities: Sequence[float]) -> float:
        """The factor on lambda in the student's loss (1 where the similarities went into the fusion)."""
        return 1.0


class PromptFusion(Fusion):
    """Early fusion: K teacher prompts become one teacher prompt, before any prediction is made."""

    @abstractmethod
    def fuse(self, tensors: Mapping[str, torch.Tensor], similarities: torch.Tensor) -> dict[str, torch.Tensor]:
        """Fuse K prompts of one method and shape.

        Args:
            tensors: trainable tensors of the K prompts, each [K, ...], float32.
            similarities: [K] float32.

        Returns:
            The fused prompt's tensors, each [...] without the leading K.
        """


class PredictionFusion(Fusion):
    """Late fusion: K teachers' soft targets become one soft target per example."""

    needs_training_view = False
    """Whether `fuse` wants a `TrainingView` (costs one more pass over the training set without a prompt)."""
    by_example = False
    """Whether an example's soft target depends on nothing but the similarities and its own targets. `fuse` may then be
    called for some of the examples at a time, which is how predictions that are too large for memory are fused; with
    False it gets all M at once, whatever their size. Not to be combined with `needs_training_view`."""

    @abstractmethod
    def fuse(self, targets: torch.Tensor, similarities: torch.Tensor, view: TrainingView | None = None) -> torch.Tensor:
        """Fuse the soft targets of K teachers.

        Args:
            targets: [K, M, ...] float32, teacher outputs in the KD loss's space for M training examples (for some of
                them where `by_example` is set).
            similarities: [K] float32.
            view: the training set's features and labels, where `needs_training_view` is set; a fusion with
                parameters of its own fits them on it and may weight every example differently.

        Returns:
            [M, ...] float32.
        """


def fusion_weights(similarities: torch.Tensor, normalize: bool) -> torch.Tensor:
    """Weights [K] of a similarity-weighted average.

    Args:
        similarities: [K].
        normalize: False: sim_i / K, as eq. 5 and 6 print it; True: sim_i / sum of all.

    Raises:
        OptionError: normalize is asked for and the similarities sum to (nearly) zero.
    """
    if not normalize:
        return similarities / len(similarities)
    total = similarities.sum()
    if float(total.abs()) < 1e-6:
        from panda_fusion.errors import OptionError

        raise OptionError(
            f"The similarities sum to {float(total):.2g}, so they cannot be normalised; use normalize=false or "
            "--similarity constant."
        )
    return similarities / total
