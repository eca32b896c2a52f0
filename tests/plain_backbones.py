"""Forward passes with a prefix, from the weights and the published architectures alone: what PEFT cannot check.

Each function takes a transformers base model (for its weights and sizes), a right padded batch and a prefix, and
returns the last hidden states [N, T, hidden]. A prefix of length 0 gives the model as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional as F

Tensors = Mapping[str, torch.Tensor]


class _Weights:
    """A model's tensors by name, and the two building blocks that all architectures share."""

    def __init__(self, model: Any, norm_eps: float) -> None:
        self.of = dict(model.state_dict())
        self.eps = norm_eps

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        out = x @ self.of[f"{name}.weight"].T
        return out + self.of[f"{name}.bias"] if f"{name}.bias" in self.of else out

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.of[f"{name}.weight"], self.of[f"{name}.bias"], eps=self.eps)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor,
    scale: float,
    bias: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """Attention of [N, T, heads, d] over P prefix keys [P, heads, d] and T text keys; `bias` is of the text alone."""
    count, width = q.shape[:2]
    keys = torch.cat((prefix[0].expand(count, -1, -1, -1), k), dim=1)
    values = torch.cat((prefix[1].expand(count, -1, -1, -1), v), dim=1)
    scores = torch.einsum("nqhd,nkhd->nhqk", q, keys) * scale
    length = prefix[0].shape[0]
    scores = torch.cat((scores[..., :length], scores[..., length:] + bias), dim=-1)
    seen = torch.cat((torch.ones(count, length, dtype=torch.bool), mask), dim=1)
    weights = scores.masked_fill(~seen[:, None, None], -math.inf).softmax(-1)
    return torch.einsum("nhqk,nkhd->nqhd", weights, values).reshape(count, width, -1)


def _prefix(tensors: Tensors, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    return tensors["key"][layer], tensors["value"][layer]


def _tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def albert(model: Any, batch: Tensors, tensors: Tensors) -> torch.Tensor:
    """ALBERT (Lan et al., 2020): embeddings of their own width, and one layer that runs again and again."""
    w, config = _Weights(model, model.config.layer_norm_eps), model.config
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    length, heads = tensors["key"].shape[1], config.num_attention_heads
    types = batch.get("token_type_ids", torch.zeros_like(ids))
    x = w.of["embeddings.word_embeddings.weight"][ids] + w.of["embeddings.token_type_embeddings.weight"][types]
    x = x + w.of["embeddings.position_embeddings.weight"][length : length + ids.shape[1]]
    x = w.linear("encoder.embedding_hidden_mapping_in", w.norm("embeddings.LayerNorm", x))
    name = "encoder.albert_layer_groups.0.albert_layers.0"
    for layer in range(config.num_hidden_layers):
        q, k, v = (w.linear(f"{name}.attention.{p}", x).unflatten(-1, (heads, -1)) for p in ("query", "key", "value"))
        mixed = _attend(q, k, v, _prefix(tensors, layer), mask, q.shape[-1] ** -0.5)
        x = w.norm(f"{name}.attention.LayerNorm", x + w.linear(f"{name}.attention.dense", mixed))
        inner = w.linear(f"{name}.ffn_output", _tanh_gelu(w.linear(f"{name}.ffn", x)))
        x = w.norm(f"{name}.full_layer_layer_norm", x + inner)
    return x


def _deberta_bucket(distance: int, buckets: int, most: int) -> int:
    """Distances up to half the buckets as they are, larger ones on a logarithmic scale (DeBERTa-v2)."""
    half = buckets // 2
    if buckets <= 0 or abs(distance) <= half:
        return distance
    steps = math.ceil(math.log(abs(distance) / half) / math.log((most - 1) / half) * (half - 1)) + half
    return steps if distance > 0 else -steps


def deberta(model: Any, batch: Tensors, tensors: Tensors) -> torch.Tensor:
    """DeBERTa-v2 and v3 (He et al., 2021): three products make a score; a prefix has the first one alone."""
    w, config = _Weights(model, model.config.layer_norm_eps), model.config
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    length, heads, width = tensors["key"].shape[1], config.num_attention_heads, ids.shape[1]
    real = mask[..., None].float()
    x = w.of["embeddings.word_embeddings.weight"][ids]
    if config.position_biased_input:
        x = x + w.of["embeddings.position_embeddings.weight"][length : length + width]
    x = w.norm("embeddings.LayerNorm", x) * real
    most = config.max_relative_positions if config.max_relative_positions > 0 else config.max_position_embeddings
    span = config.position_buckets if config.position_buckets > 0 else most
    distances = w.of["encoder.rel_embeddings.weight"]
    if "layer_norm" in config.norm_rel_ebd:
        distances = w.norm("encoder.LayerNorm", distances)
    index = torch.tensor(
        [
            [
                min(max(_deberta_bucket(i - j, config.position_buckets, most) + span, 0), 2 * span - 1)
                for j in range(width)
            ]
            for i in range(width)
        ]
    )
    embedded = x
    for layer in range(config.num_hidden_layers):
        name = f"encoder.layer.{layer}"
        own = f"{name}.attention.self"
        q, k, v = (w.linear(f"{own}.{p}_proj", x).unflatten(-1, (heads, -1)) for p in ("query", "key", "value"))
        shared = config.share_att_key
        far_key = w.linear(f"{own}.key_proj" if shared else f"{own}.pos_key_proj", distances)
        far_query = w.linear(f"{own}.query_proj" if shared else f"{own}.pos_query_proj", distances)
        far_key, far_query = (far.unflatten(-1, (heads, -1))[index] for far in (far_key, far_query))  # [T, T, heads, d]
        scale = (3 * q.shape[-1]) ** -0.5
        bias = torch.einsum("nihd,ijhd->nhij", q, far_key) + torch.einsum("njhd,ijhd->nhij", k, far_query)
        mixed = _attend(q, k, v, _prefix(tensors, layer), mask, scale, bias * scale)
        names = f"{name}.attention.output"
        x_next = w.norm(f"{names}.LayerNorm", x + w.linear(f"{names}.dense", mixed))
        inner = w.linear(f"{name}.output.dense", F.gelu(w.linear(f"{name}.intermediate.dense", x_next)))
        x = w.norm(f"{name}.output.LayerNorm", x_next + inner)
        if layer == 0 and config.conv_kernel_size:
            weight, bias_of = w.of["encoder.conv.conv.weight"], w.of["encoder.conv.conv.bias"]
            around = F.conv1d(embedded.transpose(1, 2), weight, bias_of, padding=config.conv_kernel_size // 2)
            x = w.norm("encoder.conv.LayerNorm", x + F.gelu(around.transpose(1, 2) * real)) * real
    return x


def _t5_bucket(distance: int, buckets: int, most: int) -> int:
    """Half of the buckets for keys behind the query; half of each for distances as they are (Raffel et al., 2020)."""
    half = buckets // 2
    side = half if distance > 0 else 0
    exact, distance = half // 2, abs(distance)
    if distance < exact:
        return side + distance
    return side + min(half - 1, exact + int(math.log(distance / exact) / math.log(most / exact) * (half - exact)))


def t5_encoder(model: Any, batch: Tensors, tensors: Tensors) -> torch.Tensor:
    """T5's encoder with gated feed-forward layers (v1.1, flan, MT5): scores are not scaled, distances add a bias."""
    w, config = _Weights(model, model.config.layer_norm_epsilon), model.config
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    heads, width = config.num_heads, ids.shape[1]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return w.of[f"{name}.weight"] * x / (x.square().mean(-1, keepdim=True) + w.eps).sqrt()

    x = w.of["shared.weight"][ids]
    buckets, most = config.relative_attention_num_buckets, config.relative_attention_max_distance
    index = torch.tensor([[_t5_bucket(j - i, buckets, most) for j in range(width)] for i in range(width)])
    bias = w.of["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"][index].permute(2, 0, 1)
    for layer in range(config.num_layers):
        name = f"encoder.block.{layer}.layer"
        normed = norm(f"{name}.0.layer_norm", x)
        q, k, v = (w.linear(f"{name}.0.SelfAttention.{p}", normed).unflatten(-1, (heads, -1)) for p in "qkv")
        mixed = _attend(q, k, v, _prefix(tensors, layer), mask, 1.0, bias)
        x = x + w.linear(f"{name}.0.SelfAttention.o", mixed)
        normed, inner = norm(f"{name}.1.layer_norm", x), f"{name}.1.DenseReluDense"
        x = x + w.linear(
            f"{inner}.wo", _tanh_gelu(w.linear(f"{inner}.wi_0", normed)) * w.linear(f"{inner}.wi_1", normed)
        )
    return norm("encoder.final_layer_norm", x)


PLAIN: dict[str, Callable[[Any, Tensors, Tensors], torch.Tensor]] = {
    "albert": albert,
    "deberta-v2": deberta,
    "t5": t5_encoder,
}
"""Model type -> its forward pass."""
