"""From a head's outputs over a split to the task's scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from panda_fusion.metrics import score

if TYPE_CHECKING:
    import numpy as np

    from panda_fusion.dataset import EncodedSet
    from panda_fusion.task import Task


def score_outputs(task: Task, data: EncodedSet, logits: np.ndarray) -> dict[str, float]:
    """Score one prompt's outputs over a split.

    Args:
        task: the task.
        data: the M examples.
        logits: [M, ...] float32, as `panda_fusion.inference.predict_logits` gives them.

    Returns:
        Scores by name; the first one is the main metric.
    """
    assert data.labels is not None
    return score(task.metric, logits, data.labels.tolist())
