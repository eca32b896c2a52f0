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

from panda_fusion.cpu_attention import attend
from panda_fusion.errors import BackboneError
from panda_fusion.injection import Rows
from panda_fusion.last_layer import unfolded

NAME = "panda_fusion"
"""The name under which transformers finds the attention function and its mask."""


@dataclass
class PrefixScope:
    """State of one forward pass: per-layer prefixes and the number of attention calls so far."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    rows: Rows
    calls: int = 0


_scopes: list[PrefixScope] = []


@contextmanager
def prefix_scope(
    key: torch.Tensor, value: torch.Tensor, rows: Rows, resume_at: int | None = None
) -> Iterator[PrefixScope]:
    """Let every attention call in the block see trained keys and values.

    Args:
        key: [G, layers, P, kv_heads, head_dim] in the backbone's dtype.
        value: same shape.
        rows: which prompt each row of the batch uses.
        resume_at: the block computes only some layers (again), from the one of this number on; None: it is a
            whole forward pass, which is checked to have used every layer's prefix.

    Raises:
        BackboneError: the forward pass made another number of attention calls than there are layers (a model
            that does not use the attention interface): the prefix would be lost without a word.
    """
    scope = PrefixScope(key.unbind(1), value.unbind(1), rows, resume_at or 0)
    _scopes.append(scope)
    try:
        yield scope
        if resume_at is None and scope.calls != len(scope.keys):
            raise BackboneError(
                f"The backbone made {scope.calls} attention calls for a prefix of {len(scope.keys)} layers; its "
                "architecture does not run every layer through transformers' attention interface, so a prefix "
                "cannot be used with it."
            )
    finally:
        _scopes.pop()


_recordings: list[list[tuple[torch.Tensor, torch.Tensor]]] = []


@contextmanager
def recorded_attention() -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Collect the text's own keys and values, each [N, kv_heads, T, head_dim], of every attention call in the block."""
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    _recordings.append(calls)
    try:
        yield calls
    finally:
        _recordings.pop()


def record(key: torch.Tensor, value: torch.Tensor) -> None:
    """Tell a running `recorded_attention` of one call's keys and values [N, kv_heads, T, head_dim]."""
    if _recordings:
        _recordings[-1].append((key, value))


def next_prefix(count: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The prefix of the attention call that is being made, which counts as one; None where none applies.

    Args:
        count: N, rows of the batch.

    Returns:
        Keys and values, each [N, kv_heads, P, head_dim].

    Raises:
        BackboneError: every layer's prefix has been used already.
    """
    scope = _scopes[-1] if _scopes else None
    if scope is None:
        return None
    if scope.calls >= len(scope.keys):
        raise BackboneError(
            f"The backbone makes more attention calls than the {len(scope.keys)} layers of its prefix; cross-attention "
            "cannot be combined with a prefix."
        )
    key, value = scope.keys[scope.calls], scope.values[scope.calls]
    scope.calls += 1
    return scope.rows.spread(key.transpose(1, 2), count), scope.rows.spread(value.transpose(1, 2), count)


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
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function in the form that transformers calls.

    Args:
        module: the calling attention module.
        query: [N, heads, T, head_dim].
        key: [N, kv_heads, T, head_dim].
        value: [N, kv_heads, T, head_dim].
        attention_mask: None or [N, 1, 1 or T, T], boolean (True = attend) or an additive bias.
        scaling: factor on the scores; 1 / sqrt(head_dim) if None.
        dropout: probability of dropping an attention weight.
        position_bias: [1 or N, heads, T, T], added to the scores (T5). The prefix has no position: its bias is 0.

    Returns:
        ([N, T, heads, head_dim], None).
    """
    record(key, value)
    key, value = unfolded(module, query, key, value)
    prefix = next_prefix(query.shape[0])
    bias = _additive(attention_mask, query.dtype)
    if position_bias is not None:
        bias = position_bias.to(query.dtype) if bias is None else bias + position_bias.to(query.dtype)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
        if prefix is not None:
            prefix = (prefix[0].repeat_interleave(groups, dim=1), prefix[1].repeat_interleave(groups, dim=1))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if not query.is_cuda:
        return attend(query, key, value, bias, scale, prefix, dropout).transpose(1, 2), None
    if prefix is not None:
        key = torch.cat((prefix[0], key), dim=2)
        value = torch.cat((prefix[1], value), dim=2)
        if bias is not None:
            bias = torch.nn.functional.pad(bias, (prefix[0].shape[2], 0))
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=dropout, scale=scale
    )
    return output.transpose(1, 2), None


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor:
    """transformers' boolean mask, never left out: causal flags of fused kernels are wrong beside a prefix."""
    kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    return sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, _mask)
