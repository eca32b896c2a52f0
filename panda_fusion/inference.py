"""Passes without gradients: pooled vectors and logits of a whole data set for every prompt of a pack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from panda_fusion.dataset import EncodedSet, gather, length_sorted_chunks
from panda_fusion.injection import Rows

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.peft_method import PEFTMethod

Tensors = Mapping[str, torch.Tensor]
CPU_TOKENS = 8_192
CUDA_TOKENS = 131_072
"""Padded tokens in one pass: what keeps the caches (CPU) or the device (CUDA) busy without filling memory."""


def pooled_vectors(
    backbone: Backbone, data: EncodedSet, method: PEFTMethod | None = None, tensors: Tensors | None = None
) -> torch.Tensor:
    """One pass of the backbone over a data set.

    Args:
        backbone: the frozen backbone.
        data: M examples.
        method: PEFT method of the pack; None: the plain backbone.
        tensors: trainable tensors [G, ...] of that method.

    Returns:
        [G, M, hidden] float32 on the backbone's device, in the order of `data` (G = 1 for the plain backbone).
    """
    return _pass(backbone, data, method, tensors, backbone.shape.hidden, lambda pooled: pooled)


def predict_logits(
    backbone: Backbone, data: EncodedSet, method: PEFTMethod, tensors: Tensors, head: Tensors, outputs: int
) -> torch.Tensor:
    """Logits of every prompt of a pack for every example.

    Args:
        backbone: the frozen backbone.
        data: M examples.
        method: PEFT method of the pack.
        tensors: its trainable tensors [G, ...].
        head: head parameters [G, ...].
        outputs: width of the head.

    Returns:
        [G, M, outputs] float32 on the backbone's device, in the order of `data`.
    """
    parameters = {name: tensor.to(backbone.device) for name, tensor in head.items()}
    layer = backbone.head(outputs)
    return _pass(backbone, data, method, tensors, outputs, lambda pooled: layer(parameters, pooled))


@torch.inference_mode()
def _pass(
    backbone: Backbone,
    data: EncodedSet,
    method: PEFTMethod | None,
    tensors: Tensors | None,
    width: int,
    finish: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """[G, M, width]: what `finish` makes of the pooled vectors [G, B, hidden] of every chunk."""
    injection = None
    prompts = 1
    if method is not None:
        assert tensors is not None
        on_device = {name: tensor.to(backbone.device) for name, tensor in tensors.items()}
        injection = method.inject(on_device, backbone.shape)
        prompts = next(iter(on_device.values())).shape[0]
    result = torch.empty((prompts, len(data), width), device=backbone.device)
    lengths = data.lengths.cpu().numpy()
    budget = CUDA_TOKENS if backbone.device.type == "cuda" else CPU_TOKENS
    for chunk in length_sorted_chunks(lengths, budget, prompts):
        index = torch.from_numpy(chunk).to(backbone.device)
        batch = gather(data, index.repeat(prompts), int(lengths[chunk[0]]))
        pooled = backbone.forward(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(prompts))
        result[:, index] = finish(pooled.view(prompts, len(chunk), -1)).float()
    return result
