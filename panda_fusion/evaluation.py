"""Using one trained prompt: scoring it on labelled rows and predicting rows without labels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from panda_fusion.dataset import EncodedSet, encode
from panda_fusion.inference import predict_logits
from panda_fusion.metrics import score
from panda_fusion.plugin_manager import peft_methods
from panda_fusion.prompt_match import check_same_labels

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.prompt import Prompt
    from panda_fusion.rows import Split
    from panda_fusion.task import Task


@dataclass(frozen=True)
class Evaluation:
    """Scores of a prompt on `examples` rows; `seconds` is the pass alone."""

    metrics: dict[str, float]
    examples: int
    seconds: float


def evaluate_prompt(backbone: Backbone, prompt: Prompt, task: Task, split: Split, max_length: int) -> Evaluation:
    """Score a prompt on labelled rows.

    Raises:
        DataError: the task's kind or labels are not those that the prompt was trained on.
    """
    check_same_labels(
        prompt.path or prompt.task.name,
        prompt.task,
        task,
        "evaluate it on a task with the same labels, or transfer it first",
    )
    data = encode(backbone, split.texts, split.labels, task.kind, max_length)
    started = time.perf_counter()
    logits = _logits(backbone, prompt, data, max_length)
    seconds = time.perf_counter() - started
    return Evaluation(score(task.metric, logits, np.asarray(split.labels).tolist()), len(data), seconds)


def predict_rows(
    backbone: Backbone, prompt: Prompt, texts: Sequence[Sequence[str]], max_length: int
) -> list[dict[str, object]]:
    """Predict rows, in order.

    Args:
        backbone: the frozen backbone.
        prompt: any prompt of it.
        texts: the task's one or two text columns.
        max_length: tokens kept of a text.

    Returns:
        Per row `label` (name) and `probabilities` (in label order), or `value` for a regression.
    """
    data = encode(backbone, texts, None, prompt.task.kind, max_length)
    logits = _logits(backbone, prompt, data, max_length)
    if prompt.task.kind == "regression":
        return [{"value": float(row[0])} for row in logits]
    probabilities = torch.from_numpy(logits).softmax(-1).tolist()
    names = prompt.task.labels
    return [
        {"label": names[int(row.argmax())], "probabilities": shares}
        for row, shares in zip(logits, probabilities, strict=True)
    ]


def _logits(backbone: Backbone, prompt: Prompt, data: EncodedSet, max_length: int) -> np.ndarray:
    """[M, outputs] float32."""
    method = peft_methods().create(prompt.method)
    backbone.check_length(method.virtual_tokens(), max_length)
    trainable = method.from_stored(prompt.tensors, backbone.shape)
    outputs = max(1, len(prompt.task.labels))
    logits = predict_logits(
        backbone,
        data,
        method,
        {name: tensor.unsqueeze(0) for name, tensor in trainable.items()},
        {name: tensor.unsqueeze(0) for name, tensor in prompt.head.items()},
        outputs,
    )
    return logits[0].cpu().numpy()
