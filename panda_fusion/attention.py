"""Attention with trained keys and values in front, registered with transformers' attention interface.

transformers looks the attention function up by name for every layer of every model that uses the interface,
so one function serves all of them and no cache objects are involved. Which prefixes apply is a matter of the
forward pass that is running: `prefix_scope` holds them, and layers take theirs in the order in which they are
called (ALBERT runs one module for all layers, and some modules do not know their index).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from panda_fusion.errors import BackboneError
from panda_fusion.injection import Rows

NAME = "panda_fusion"
"""The name under which transformers finds the attention function and its mask."""


@dataclass
class _Scope:
    """State of one forward pass: per-layer prefixes and the number of attention calls so far."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    rows: Rows
    calls: int = 0


_scopes: list[_Scope] = []


@contextmanager
def prefix_scope(key: torch.Tensor, value: torch.Tensor, rows: Rows) -> Iterator[None]:
    """Let every attention call in the block see trained keys and values.

    Args:
        key: [G, layers, P, kv_heads, head_dim] in the backbone's dtype.
        value: same shape.
        rows: which prompt each row of the batch uses.

    Raises:
        BackboneError: the forward pass made another number of attention calls than there are layers
            (gradient checkpointing, or a model that does not use the attention interface): the prefix would
            be lost without a word.
    """
    scope = _Scope(key.unbind(1), value.unbind(1), rows)
    _scopes.append(scope)
    try:
        yield
        if scope.calls != len(scope.keys):
            raise BackboneError(
                f"The backbone made {scope.calls} attention calls for a prefix of {len(scope.keys)} layers; its "
                "architecture does not run every layer through transformers' attention interface, so a prefix "
                "cannot be used with it."
            )
    finally:
        _scopes.pop()


def _split_heads(prefix: torch.Tensor, rows: Rows, count: int) -> torch.Tensor:
    """[G, P, kv_heads, head_dim] to [N, kv_heads, P, head_dim] for the rows of the batch."""
    return rows.spread(prefix.transpose(1, 2), count)


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A bias to add to scores from a mask that is boolean (True = attend) or a bias already."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function in the form that transformers calls.

    Args:
        module: the calling attention module (unused, part of the interface).
        query: [N, heads, T, head_dim].
        key: [N, kv_heads, T, head_dim].
        value: [N, kv_heads, T, head_dim].
        attention_mask: None or [N, 1, 1 or T, T], boolean (True = attend) or an additive bias.
        scaling: factor on the scores; 1 / sqrt(head_dim) if None.
        dropout: probability of dropping an attention weight.

    Returns:
        ([N, T, heads, head_dim], None).
    """
    scope = _scopes[-1] if _scopes else None
    prefix_length = 0
    if scope is not None:
        if scope.calls >= len(scope.keys):
            raise BackboneError(
                "The backbone makes more attention calls than it has layers; gradient checkpointing or "
                "cross-attention cannot be combined with a prefix."
            )
        prefix_key = _split_heads(scope.keys[scope.calls], scope.rows, query.shape[0])
        prefix_value = _split_heads(scope.values[scope.calls], scope.rows, query.shape[0])
        scope.calls += 1
        prefix_length = prefix_key.shape[2]
        key = torch.cat((prefix_key, key), dim=2)
        value = torch.cat((prefix_value, value), dim=2)
    bias = _additive(attention_mask, query.dtype)
    if bias is not None and prefix_length:
        bias = torch.nn.functional.pad(bias, (prefix_length, 0))
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.is_cuda:
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout, scale=scale
        )
        return output.transpose(1, 2), None
    # On the CPU the backward pass of fused attention takes half of a step; plain products are faster.
    scores = torch.matmul(query * scale, key.transpose(2, 3))
    if bias is not None:
        scores = scores + bias
    weights = torch.softmax(scores, dim=-1)
    if dropout:
        weights = torch.nn.functional.dropout(weights, dropout)
    return torch.matmul(weights, value).transpose(1, 2), None


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor:
    """transformers' boolean mask, never left out: causal flags of fused kernels are wrong beside a prefix."""
    kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    return sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, _mask)
