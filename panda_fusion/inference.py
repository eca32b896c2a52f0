"""Passes without gradients: pooled vectors and logits of a whole data set for every prompt of a pack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from panda_fusion.dataset import EncodedSet, gather, length_sorted_chunks
from panda_fusion.heap import kept_heap
from panda_fusion.injection import Rows
from panda_fusion.readout import MASKED, logits_shape, masked, read

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.injection import Injection
    from panda_fusion.large_tensor import LargeTensor
    from panda_fusion.peft_method import PEFTMethod

Tensors = Mapping[str, torch.Tensor]
CPU_TOKENS = 2_048
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
        [G, M, hidden] float32 on the backbone's device, in the order of `data` (G = 1 for the plain backbone); for
        multiple choice the mean over an example's choices.
    """

    def pool(index: torch.Tensor, width: int, injection: Injection | None, rows: Rows) -> torch.Tensor:
        batch = gather(data, index.reshape(-1), width)
        pooled = backbone.forward(batch.input_ids, batch.lengths, batch.token_types, injection, rows).float()
        if data.choices is None:
            return pooled.view(*index.shape, -1)
        choices = data.choices[index]
        real = torch.arange(data.rows, device=choices.device) < choices[..., None]
        each = pooled.view(*index.shape, data.rows, -1) * real[..., None]
        return each.sum(2) / choices[..., None]

    return _pass(backbone, data, method, tensors, (backbone.info.output_width,), 0.0, pool)


def head_features(backbone: Backbone, data: EncodedSet, method: PEFTMethod, tensors: Tensors) -> torch.Tensor:
    """What the head of the data's kind reads, for every prompt of a pack.

    Args:
        backbone: the frozen backbone.
        data: M examples.
        method: PEFT method of the pack.
        tensors: its trainable tensors [G, ...].

    Returns:
        [G, M, ..., hidden] float32 on the backbone's device (`panda_fusion.readout.read`, for the whole split).
    """

    def states(index: torch.Tensor, width: int, injection: Injection | None, rows: Rows) -> torch.Tensor:
        return read(backbone, data, index, width, injection, rows)

    return _pass(backbone, data, method, tensors, head_features_shape(backbone, data), 0.0, states)


def head_features_shape(backbone: Backbone, data: EncodedSet) -> tuple[int, ...]:
    """[..., hidden] of one example over a whole split."""
    hidden = backbone.info.output_width
    if data.choices is not None:
        return (data.rows, hidden)
    if data.words is not None:
        return (data.words.shape[1], hidden)
    if data.answerable is not None:
        return (data.input_ids.shape[1], hidden)
    return (hidden,)


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
        outputs: width of the head (`Task.outputs`).

    Returns:
        float32 on the backbone's device, in the order of `data`: [G, M, outputs]; multiple-choice [G, M, R];
        token-classification [G, M, S, outputs]; extractive-qa [G, M, 2, longest]. What cannot be chosen holds -1e4.
    """
    prompts = len(next(iter(tensors.values())))
    result = torch.empty((prompts, len(data), *logits_shape(data, outputs)), device=backbone.device)
    write_logits(backbone, data, method, tensors, head, outputs, result)
    return result


def write_logits(
    backbone: Backbone,
    data: EncodedSet,
    method: PEFTMethod,
    tensors: Tensors,
    head: Tensors,
    outputs: int,
    into: torch.Tensor | LargeTensor,
) -> None:
    """Write what `predict_logits` returns into a tensor of that shape, on any device or in a file, as it is made."""
    parameters = {name: tensor.to(backbone.device) for name, tensor in head.items()}
    layer = backbone.head(outputs, data.kind)

    def logits(index: torch.Tensor, width: int, injection: Injection | None, rows: Rows) -> torch.Tensor:
        features = read(backbone, data, index, width, injection, rows)
        weights = None if injection is None else injection.weights
        return masked(layer(parameters, features, weights=weights), data, index)

    fill = 0.0 if data.answerable is None else MASKED
    _write(backbone, data, method, tensors, fill, logits, into)


def _pass(
    backbone: Backbone,
    data: EncodedSet,
    method: PEFTMethod | None,
    tensors: Tensors | None,
    shape: tuple[int, ...],
    fill: float,
    compute: Callable[[torch.Tensor, int, Injection | None, Rows], torch.Tensor],
) -> torch.Tensor:
    """[G, M, *shape] on the backbone's device, from `_write`."""
    prompts = 1 if tensors is None else len(next(iter(tensors.values())))
    result = torch.empty((prompts, len(data), *shape), device=backbone.device)
    _write(backbone, data, method, tensors, fill, compute, result)
    return result


@torch.inference_mode()
def _write(
    backbone: Backbone,
    data: EncodedSet,
    method: PEFTMethod | None,
    tensors: Tensors | None,
    fill: float,
    compute: Callable[[torch.Tensor, int, Injection | None, Rows], torch.Tensor],
    result: torch.Tensor | LargeTensor,
) -> None:
    """Into `result` [G, M, ...] what `compute` makes of every chunk of examples [G, B], `fill` behind shorter rows."""
    injection = None
    prompts = result.shape[0]
    if method is not None:
        assert tensors is not None
        on_device = {name: tensor.to(backbone.device) for name, tensor in tensors.items()}
        injection = method.inject(on_device, backbone.shape)
    lengths = data.example_lengths()
    budget = CUDA_TOKENS if backbone.device.type == "cuda" else CPU_TOKENS
    with kept_heap():
        for chunk in length_sorted_chunks(lengths, budget, prompts * data.rows):
            place = torch.from_numpy(chunk)
            index = place.to(backbone.device)
            made = compute(index.expand(prompts, -1), int(lengths[chunk[0]]), injection, Rows(prompts)).float()
            behind = [
                size
                for here, whole in zip(made.shape[:1:-1], result.shape[:1:-1], strict=True)
                for size in (0, whole - here)
            ]
            if any(behind):
                made = F.pad(made, behind, value=fill)
            if isinstance(result, torch.Tensor) and result.device == index.device:
                result[:, index] = made
            else:
                result[:, place] = made.cpu()
