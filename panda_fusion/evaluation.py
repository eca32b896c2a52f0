"""Using one trained prompt: scoring it on labelled rows and predicting rows without labels."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from panda_fusion.dataset import EncodedSet
from panda_fusion.encoding import encode_split
from panda_fusion.inference import predict_logits
from panda_fusion.plugin_manager import peft_methods
from panda_fusion.prompt_match import check_same_labels
from panda_fusion.scoring import predictions, score_outputs
from panda_fusion.task import head_outputs
from panda_fusion.token_cache import encode_kept

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.prompt import Prompt
    from panda_fusion.rows import Split
    from panda_fusion.task import Task
    from panda_fusion.tensor_cache import TensorCache


@dataclass(frozen=True)
class Evaluation:
    """Scores of a prompt on `examples` rows; `seconds` is the pass alone."""

    metrics: dict[str, float]
    examples: int
    seconds: float


def evaluate_prompt(
    backbone: Backbone, prompt: Prompt, task: Task, split: Split, max_length: int, cache: TensorCache | None = None
) -> Evaluation:
    """Score a prompt on labelled rows, tokenised or found in a cache (`panda_fusion.tensor_cache.TOKENS`).

    Raises:
        DataError: the task's kind or labels are not those that the prompt was trained on.
    """
    check_same_labels(
        prompt.path or prompt.task.name,
        prompt.task,
        task,
        "evaluate it on a task with the same labels, or transfer it first",
    )
    data = encode_kept(backbone, task, split, max_length, cache)
    started = time.perf_counter()
    logits = _logits(backbone, prompt, data, max_length)
    seconds = time.perf_counter() - started
    return Evaluation(score_outputs(task, data, logits), len(split), seconds)


def predict_rows(backbone: Backbone, prompt: Prompt, rows: Split, max_length: int) -> list[dict[str, object]]:
    """Predict rows, in order.

    Args:
        backbone: the frozen backbone.
        prompt: any prompt of it.
        rows: the rows, without labels.
        max_length: tokens kept of a text.

    Returns:
        Per row what `panda_fusion.scoring.predictions` says of its kind.
    """
    data = encode_split(backbone, prompt.task, rows, max_length)
    return predictions(prompt.task, data, _logits(backbone, prompt, data, max_length))


def _logits(backbone: Backbone, prompt: Prompt, data: EncodedSet, max_length: int) -> np.ndarray:
    """[M, outputs] float32."""
    method = peft_methods().create(prompt.method)
    backbone.check_length(method.virtual_tokens(), max_length)
    trainable = method.from_stored(prompt.tensors, backbone.shape)
    outputs = head_outputs(prompt.task.kind, prompt.task.labels)
    logits = predict_logits(
        backbone,
        data,
        method,
        {name: tensor.unsqueeze(0) for name, tensor in trainable.items()},
        {name: tensor.unsqueeze(0) for name, tensor in prompt.head.items()},
        outputs,
    )
    return logits[0].cpu().numpy()
