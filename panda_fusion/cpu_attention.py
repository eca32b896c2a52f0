"""Attention on the CPU by plain matrix products, with a backward pass of its own.

PyTorch's fused attention spends most of a training step in its backward pass on CPUs, and bfloat16 softmax is several
times slower where a row's length is no multiple of the vector width. So keys are padded to such a multiple (the
bias hides the padding), the weights are kept for the backward pass, and only gradients that are needed are computed.
"""

from __future__ import annotations

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
    front = 0 if prefix_key is None else prefix_key.shape[2]
    masks = (active_pool() or MaskPool(dropout, query.dtype)) if dropout else None
    behind = -(front + key.shape[2]) % LANES if query.dtype == torch.bfloat16 else 0
    if bias is None and behind:
        bias = query.new_zeros((1, 1, 1, key.shape[2]))
    if bias is not None and (front or behind):
        bias = torch.nn.functional.pad(bias, (front, 0))
        bias = torch.nn.functional.pad(bias, (0, behind), value=torch.finfo(query.dtype).min)
    output: torch.Tensor = _Attention.apply(query, key, value, prefix_key, prefix_value, bias, scale, behind, masks)
    return output


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
        behind: int,
        masks: MaskPool | None,
    ) -> torch.Tensor:
        rows, heads, length, size = query.shape
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
        ctx.save_for_backward(queries, keys, values, weights)
        ctx.scale, ctx.masks, ctx.heads = scale, masks, heads
        ctx.front = 0 if prefix_key is None else prefix_key.shape[2]
        ctx.length = key.shape[2]
        ctx.bias_shape = None if bias is None else bias.shape
        if masks is not None:
            ctx.places = masks.draw(weights)
            weights = masks.apply(weights, ctx.places)
        return torch.bmm(weights, values).view(rows, heads, length, size)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        queries, keys, values, weights = ctx.saved_tensors
        gradient = gradients[0].reshape(queries.shape)
        need_query, need_key, need_value, need_prefix_key, need_prefix_value = ctx.needs_input_grad[:5]
        need_bias = ctx.needs_input_grad[5]
        d_query = d_keys = d_values = d_bias = None
        if need_value or need_prefix_value:
            dropped = weights if ctx.masks is None else ctx.masks.apply(weights, ctx.places)
            d_values = torch.bmm(dropped.transpose(1, 2), gradient)
        if need_query or need_key or need_prefix_key or need_bias:
            d_weights = torch.bmm(gradient, values.transpose(1, 2))
            if ctx.masks is not None:
                d_weights = ctx.masks.apply(d_weights, ctx.places)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            if need_bias:  # T5 learns its own when the whole model is tuned
                d_bias = d_scores.unflatten(0, (-1, ctx.heads)).sum_to_size(ctx.bias_shape)
            if need_query:
                d_query = torch.bmm(d_scores, keys).mul_(ctx.scale).unflatten(0, (-1, ctx.heads))
            if need_key or need_prefix_key:
                d_keys = torch.bmm(d_scores.transpose(1, 2), queries).mul_(ctx.scale)

        def split(joined: torch.Tensor | None, prefix: bool, text: bool) -> tuple[torch.Tensor | None, ...]:
            """Gradients of the prefix and of the text from those of both."""
            if joined is None:
                return None, None
            parts = joined.unflatten(0, (-1, ctx.heads)).split(
                (ctx.front, ctx.length, joined.shape[1] - ctx.front - ctx.length), dim=2
            )
            return parts[0] if prefix else None, parts[1] if text else None

        d_prefix_key, d_key = split(d_keys, need_prefix_key, need_key)
        d_prefix_value, d_value = split(d_values, need_prefix_value, need_value)
        return d_query, d_key, d_value, d_prefix_key, d_prefix_value, d_bias, None, None, None
