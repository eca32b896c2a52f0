"""Attention on the CPU by plain matrix products, with a backward pass of its own.

PyTorch's fused attention spends most of a training step in its backward pass on CPUs, and bfloat16 softmax is several
times slower where a row's length is no multiple of the vector width. So keys are padded to such a multiple (the
bias hides the padding), the weights are kept for the backward pass, and only gradients that are needed are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from panda_fusion.mask_pool import MaskPool, active_pool

LANES = 32
"""Values of two bytes in a vector register of 512 bits."""


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    prefix: tuple[torch.Tensor, torch.Tensor] | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(scale query [prefix_key, key]^T + bias) [prefix_value, value].

    Args:
        query: [N, heads, T, head_dim].
        key: [N, heads, S, head_dim].
        value: like `key`.
        bias: added to the scores of the text's keys, broadcastable to [N, heads, T, S]; None: nothing hidden.
        scale: factor on the scores.
        prefix: keys and values that every query sees, each [N, heads, P, head_dim]; None: no prefix.
        dropout: probability of dropping an attention weight, of whose masks `panda_fusion.mask_pool` has a pool.

    Returns:
        [N, heads, T, head_dim].
    """
    prefix_key, prefix_value = (None, None) if prefix is None else prefix
    masks = (active_pool() or MaskPool(dropout, query.dtype)) if dropout else None
    output: torch.Tensor = _Attention.apply(query, key, value, prefix_key, prefix_value, bias, scale, masks)
    return output


@dataclass(frozen=True)
class Kept:
    """What the backward pass needs of `attention_forward`.

    Attributes:
        tensors: queries, keys, values and weights, the first three [N * heads, ..., head_dim].
        heads: heads of a row.
        front: P, keys of the prefix.
        length: S, keys of the text.
        scale: factor on the scores.
        masks: where dropout masks come from; None: no dropout.
        places: where in `masks` the mask begins.
    """

    tensors: tuple[torch.Tensor, ...]
    heads: int
    front: int
    length: int
    scale: float
    masks: MaskPool | None = None
    places: tuple[int, ...] = ()


def attention_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix_key: torch.Tensor | None,
    prefix_value: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: float,
    masks: MaskPool | None = None,
) -> tuple[torch.Tensor, Kept]:
    """`attend` without autograd: its output and what `attention_backward` needs."""
    rows, heads, length, size = query.shape
    front = 0 if prefix_key is None else prefix_key.shape[2]
    behind = -(front + key.shape[2]) % LANES if query.dtype == torch.bfloat16 else 0
    bias = _padded(bias, query, key.shape[2], front, behind)
    # One contiguous copy each, [N * heads, ..., head_dim]: products of strided views would copy at every use.
    queries = query.reshape(-1, length, size)
    keys = _joined(prefix_key, key, behind).flatten(0, 1)
    values = _joined(prefix_value, value, behind).flatten(0, 1)
    scores = torch.bmm(queries, keys.transpose(1, 2))
    if bias is None:
        scores.mul_(scale)
    else:
        scores = torch.add(bias, scores.view(rows, heads, length, -1), alpha=scale).reshape(scores.shape)
    weights = torch.softmax(scores, dim=-1)
    places = () if masks is None else masks.draw(weights)
    kept = Kept((queries, keys, values, weights), heads, front, key.shape[2], scale, masks, places)
    if masks is not None:
        weights = masks.apply(weights, places)
    return torch.bmm(weights, values).view(rows, heads, length, size), kept


def attention_backward(
    gradient: torch.Tensor, kept: Kept, need: Sequence[bool], bias_shape: torch.Size | None = None
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of query, key, value, prefix_key, prefix_value and bias, as far as they are needed.

    Args:
        gradient: of the output, [N, heads, T, head_dim].
        kept: from `attention_forward`.
        need: for each of the six, whether it is needed.
        bias_shape: shape of the bias, if its gradient is.
    """
    queries, keys, values, weights = kept.tensors
    gradient = gradient.reshape(queries.shape)
    need_query, need_key, need_value, need_prefix_key, need_prefix_value, need_bias = need
    d_query = d_keys = d_values = d_bias = None
    if need_value or need_prefix_value:
        dropped = weights if kept.masks is None else kept.masks.apply(weights, kept.places)
        d_values = torch.bmm(dropped.transpose(1, 2), gradient)
    if need_query or need_key or need_prefix_key or need_bias:
        d_weights = torch.bmm(gradient, values.transpose(1, 2))
        if kept.masks is not None:
            d_weights = kept.masks.apply(d_weights, kept.places)
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        if need_bias:  # T5 learns its own when the whole model is tuned
            text = slice(kept.front, kept.front + kept.length)
            d_bias = d_scores.unflatten(0, (-1, kept.heads))[..., text].sum_to_size(bias_shape)
        if need_query:
            d_query = torch.bmm(d_scores, keys).mul_(kept.scale).unflatten(0, (-1, kept.heads))
        if need_key or need_prefix_key:
            d_keys = torch.bmm(d_scores.transpose(1, 2), queries).mul_(kept.scale)

    def split(joined: torch.Tensor | None, prefix: bool, text: bool) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the prefix and of the text from those of both."""
        if joined is None:
            return None, None
        behind = joined.shape[1] - kept.front - kept.length
        parts = joined.unflatten(0, (-1, kept.heads)).split((kept.front, kept.length, behind), dim=2)
        return parts[0] if prefix else None, parts[1] if text else None

    d_prefix_key, d_key = split(d_keys, need_prefix_key, need_key)
    d_prefix_value, d_value = split(d_values, need_prefix_value, need_value)
    return d_query, d_key, d_value, d_prefix_key, d_prefix_value, d_bias


def _padded(
    bias: torch.Tensor | None, query: torch.Tensor, length: int, front: int, behind: int
) -> torch.Tensor | None:
    """The bias for the prefix, the text and the zeros behind it."""
    if bias is None and behind:
        bias = query.new_zeros((1, 1, 1, length))
    if bias is not None and (front or behind):
        bias = torch.nn.functional.pad(bias, (front, 0))
        bias = torch.nn.functional.pad(bias, (0, behind), value=torch.finfo(query.dtype).min)
    return bias


def _joined(prefix: torch.Tensor | None, text: torch.Tensor, behind: int) -> torch.Tensor:
    """[N, heads, P + S + behind, head_dim], zeros at the end."""
    parts = [text] if prefix is None else [prefix, text]
    if behind:
        parts.append(text.new_zeros(()).expand(*text.shape[:2], behind, text.shape[3]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        prefix_key: torch.Tensor | None,
        prefix_value: torch.Tensor | None,
        bias: torch.Tensor | None,
        scale: float,
        masks: MaskPool | None,
    ) -> torch.Tensor:
        output, kept = attention_forward(query, key, value, prefix_key, prefix_value, bias, scale, masks)
        ctx.save_for_backward(*kept.tensors)
        ctx.kept = replace(kept, tensors=())
        ctx.bias_shape = None if bias is None else bias.shape
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept = replace(ctx.kept, tensors=ctx.saved_tensors)
        return (*attention_backward(gradients[0], kept, ctx.needs_input_grad[:6], ctx.bias_shape), None, None)
