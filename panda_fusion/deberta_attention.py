"""DeBERTa-v2's attention with trained keys and values in front (also DeBERTa-v3, which has the same modules).

Its disentangled attention (He et al., 2021, eq. 4) lies outside of transformers' attention interface: scores are the
sum of content-to-content, content-to-position and position-to-content products. A prefix has no position, so its
scores are the content-to-content product alone, under the same scale; P-tuning v2 does it that way.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch

from panda_fusion.attention import next_prefix, record


def install(model: torch.nn.Module) -> None:
    """Let the attention modules of a DeBERTa-v2 base model see prefixes (`panda_fusion.attention.prefix_scope`)."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

    for module in model.modules():
        if isinstance(module, DisentangledSelfAttention):
            module.forward = MethodType(_forward, module)


def _forward(
    self: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor,
    output_attentions: bool = False,
    query_states: torch.Tensor | None = None,
    relative_pos: torch.Tensor | None = None,
    rel_embeddings: torch.Tensor | None = None,
) -> tuple[torch.Tensor, None]:
    """`DisentangledSelfAttention.forward` with a prefix.

    Args:
        hidden_states: [N, T, hidden].
        attention_mask: [N, 1, T, T], non-zero where attention is allowed.
        output_attentions: part of the interface, never set by the engine.
        query_states: [N, T, hidden], or None for `hidden_states`.
        relative_pos: [1, T, T] bucketed distances.
        rel_embeddings: [2 * span, hidden] embeddings of distances.

    Returns:
        ([N, T, heads * head_dim], None).
    """
    count, heads = hidden_states.shape[0], self.num_attention_heads

    def split(states: torch.Tensor) -> torch.Tensor:
        return self.transpose_for_scores(states, heads)  # [N * heads, T, head_dim]

    query = split(self.query_proj(hidden_states if query_states is None else query_states))
    key = split(self.key_proj(hidden_states))
    value = split(self.value_proj(hidden_states))
    record(key.unflatten(0, (count, heads)), value.unflatten(0, (count, heads)))
    parts = 1 + sum(part in self.pos_att_type for part in ("c2p", "p2c"))
    scale = (query.shape[-1] * parts) ** -0.5
    scores = torch.bmm(query, key.transpose(1, 2) * scale)
    if self.relative_attention:
        scores = scores + self.disentangled_attention_bias(
            query, key, relative_pos, self.pos_dropout(rel_embeddings), parts
        )
    allowed = attention_mask.bool().expand(count, heads, -1, -1).reshape(scores.shape)
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    prefix = next_prefix(count)
    if prefix is not None:
        prefix_key, prefix_value = (part.reshape(count * heads, *part.shape[2:]) for part in prefix)
        scores = torch.cat((torch.bmm(query, prefix_key.transpose(1, 2) * scale), scores), dim=2)
        value = torch.cat((prefix_value, value), dim=1)
    weights = self.dropout(torch.softmax(scores, dim=-1))
    mixed = torch.bmm(weights, value).view(count, heads, -1, value.shape[-1])
    return mixed.transpose(1, 2).flatten(2), None
