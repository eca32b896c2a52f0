"""Giving a prompt that came from elsewhere the task embedding that prompts trained here carry."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from panda_fusion.dataset import encode
from panda_fusion.encoded_task import SAMPLE_SEED
from panda_fusion.plugin_manager import peft_methods
from panda_fusion.prompt import Prompt
from panda_fusion.subsets import balanced_sample
from panda_fusion.task_embedding import SAMPLES, task_embeddings

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.rows import Split


def with_task_embedding(prompt: Prompt, backbone: Backbone, development: Split, max_length: int) -> Prompt:
    """The same prompt with its task embedding (PanDa III-C1), from the samples that training would take.

    Args:
        prompt: a prompt of `backbone`.
        backbone: the frozen backbone.
        development: the development set of the task that the prompt was trained on.
        max_length: tokens kept of an example.

    Raises:
        BackboneError: virtual tokens and texts do not fit into the position table.
    """
    method = peft_methods().create(prompt.method)
    backbone.check_length(method.virtual_tokens(), max_length)
    rows = development.select(balanced_sample(development, SAMPLES, SAMPLE_SEED))
    samples = encode(backbone, rows.texts, rows.labels, prompt.task.kind, max_length)
    trainable = method.from_stored(prompt.tensors, backbone.shape)
    pack = {name: tensor.unsqueeze(0) for name, tensor in trainable.items()}
    return replace(prompt, embedding=task_embeddings(backbone, method, pack, samples)[0])
