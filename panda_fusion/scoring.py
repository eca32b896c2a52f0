"""From a head's outputs over a split to scores and predictions, whatever the task kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from panda_fusion.extractive_qa import predicted_answers, score_answers
from panda_fusion.metrics import score
from panda_fusion.token_classification import outside_tag, predicted_tags, score_tags

if TYPE_CHECKING:
    import numpy as np

    from panda_fusion.dataset import EncodedSet
    from panda_fusion.prompt import TaskInfo
    from panda_fusion.task import Task


def score_outputs(task: Task, data: EncodedSet, logits: np.ndarray) -> dict[str, float]:
    """Score one prompt's outputs over a split.

    Args:
        task: the task.
        data: the M examples, with labels.
        logits: [M, ...] float32, as `panda_fusion.inference.predict_logits` gives them.

    Returns:
        Scores by name; the first one is the main metric.
    """
    if task.kind == "token-classification":
        return score_tags(task.metric, task.labels, data, logits)
    if task.kind == "extractive-qa":
        return score_answers(data, logits)
    assert data.labels is not None
    return score(task.metric, logits, data.labels.tolist())


def predictions(task: TaskInfo, data: EncodedSet, logits: np.ndarray) -> list[dict[str, object]]:
    """What is predicted for every row, in order.

    Args:
        task: what the prompt file says of its task.
        data: the rows, tokenised.
        logits: [M, ...] float32.

    Returns:
        Per row `label` (class name) and `probabilities` (in label order); `value` (regression); `choice` (index) and
        `probabilities`; `tags` (one name per word); `answer` (a piece of the context, or "" for none).
    """
    if task.kind == "token-classification":
        found = predicted_tags(data, logits, outside_tag(task.labels))
        return [{"tags": [task.labels[tag] for tag in row]} for row in found]
    if task.kind == "extractive-qa":
        return [{"answer": answer} for answer in predicted_answers(data, logits)]
    if task.kind == "regression":
        return [{"value": float(row[0])} for row in logits]
    import torch

    shares = torch.from_numpy(logits).softmax(-1).tolist()
    if task.kind == "multiple-choice":
        assert data.choices is not None
        counts = data.choices.tolist()
        return [
            {"choice": int(row.argmax()), "probabilities": some[:count]}
            for row, some, count in zip(logits, shares, counts, strict=True)
        ]
    return [
        {"label": task.labels[int(row.argmax())], "probabilities": some}
        for row, some in zip(logits, shares, strict=True)
    ]
