"""Encoder layers of BERT and its kin on the CPU as one operation each, with a backward pass written by hand.

In a frozen layer no weight has a gradient, so all that the backward pass must find out of a layer's inside is what
attention, the activation and the norms need. Query, key and value are one product, and residual connections are
added within the products, in either direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu

from panda_fusion.attention import next_prefix, record
from panda_fusion.cpu_attention import attention_backward, attention_forward
from panda_fusion.packed_linear import PackedLinear, PackedWeight

_KNOWN = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra"})
"""Model types whose layers are made like BERT's: attention, norm, feed-forward with GELU, norm."""


class FusedLayer:
    """One layer of an encoder.

    Args:
        layer: transformers' module, its linear layers packed.
    """

    def __init__(self, layer: nn.Module) -> None:
        attention: Any = layer.get_submodule("attention.self")
        parts = (attention.query, attention.key, attention.value)
        self.module = layer
        self.heads: int = attention.num_attention_heads
        self.scale: float = attention.scaling
        self.joint = PackedWeight(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
        self.out = _packed(layer, "attention.output.dense")
        self.up = _packed(layer, "intermediate.dense")
        self.down = _packed(layer, "output.dense")
        self.middle_norm = layer.get_submodule("attention.output.LayerNorm")
        self.last_norm = layer.get_submodule("output.LayerNorm")

    def __call__(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, *_: Any, **__: Any
    ) -> torch.Tensor:
        """What the module's `forward` gives without dropout.

        Args:
            hidden_states: [N, T, hidden] bfloat16.
            attention_mask: None or a bias [N, 1, 1 or T, T] for the scores.
        """
        key, value = next_prefix(hidden_states.shape[0]) or (None, None)
        result: torch.Tensor = _Layer.apply(hidden_states, key, value, attention_mask, self)
        return result


def fuse_layers(model: nn.Module, names: Sequence[str]) -> tuple[FusedLayer, ...]:
    """The layers of a base model as `FusedLayer`; none where its architecture or activation is another, or its linear
    layers are not packed."""
    config: Any = model.config
    if config.model_type not in _KNOWN or config.hidden_act != "gelu" or getattr(config, "is_decoder", False):
        return ()
    layers = [model.get_submodule(name) for name in names]
    linear = [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)]
    if not all(isinstance(module, PackedLinear) for module in linear):
        return ()
    return tuple(map(FusedLayer, layers))


@contextmanager
def fused(layers: Sequence[FusedLayer]) -> Iterator[None]:
    """Let these layers run fused for the length of the block."""
    try:
        for layer in layers:
            layer.module.forward = layer
        yield
    finally:
        for layer in layers:
            del layer.module.forward  # the class's own again


def _packed(layer: nn.Module, name: str) -> PackedWeight:
    module = layer.get_submodule(name)
    assert isinstance(module, PackedLinear)
    return module.packed


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        prefix_key: torch.Tensor | None,
        prefix_value: torch.Tensor | None,
        bias: torch.Tensor | None,
        layer: FusedLayer,
    ) -> torch.Tensor:
        rows, length, width = hidden.shape
        flat = hidden.reshape(-1, width)
        joint = layer.joint.product(flat).view(rows, length, 3, layer.heads, -1)
        query, key, value = (part.transpose(1, 2) for part in joint.unbind(2))
        record(key, value)
        mixed, kept = attention_forward(query, key, value, prefix_key, prefix_value, bias, layer.scale)
        first = layer.out.product(mixed.transpose(1, 2).reshape(-1, width), flat)
        middle, *middle_statistics = _normed(first, layer.middle_norm)
        wide = layer.up.product(middle)
        second = layer.down.product(gelu(wide), middle)
        last, *last_statistics = _normed(second, layer.last_norm)
        ctx.save_for_backward(first, *middle_statistics, wide, second, *last_statistics, *kept.tensors)
        ctx.kept = replace(kept, tensors=())
        ctx.layer, ctx.shape = layer, hidden.shape
        return last.view(hidden.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        layer: FusedLayer = ctx.layer
        rows, length, width = ctx.shape
        first, middle_mean, middle_deviation, wide, second, last_mean, last_deviation, *kept = ctx.saved_tensors
        d_second = _norm_backward(gradients[0].reshape(-1, width), second, last_mean, last_deviation, layer.last_norm)
        d_wide = torch.ops.aten.gelu_backward(layer.down.transposed_product(d_second), wide)
        d_middle = layer.up.transposed_product(d_wide, d_second)
        d_first = _norm_backward(d_middle, first, middle_mean, middle_deviation, layer.middle_norm)
        d_mixed = layer.out.transposed_product(d_first).view(rows, length, layer.heads, -1).transpose(1, 2)
        text, *prefix = ctx.needs_input_grad[:3]
        d_query, d_key, d_value, *d_prefix, _ = attention_backward(
            d_mixed, replace(ctx.kept, tensors=tuple(kept)), (text, text, text, *prefix, False)
        )
        d_hidden = None
        if text:
            assert d_query is not None
            assert d_key is not None
            assert d_value is not None
            d_joint = torch.stack([part.transpose(1, 2) for part in (d_query, d_key, d_value)], dim=2)
            d_hidden = layer.joint.transposed_product(d_joint.view(-1, 3 * width), d_first).view(ctx.shape)
        return d_hidden, *d_prefix, None, None


def _normed(data: torch.Tensor, norm: Any) -> tuple[torch.Tensor, ...]:
    """The norm's output, and mean and reciprocal deviation of every row."""
    return torch.native_layer_norm(data, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _norm_backward(
    gradient: torch.Tensor, data: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor, norm: Any
) -> torch.Tensor:
    result: torch.Tensor = torch.ops.aten.native_layer_norm_backward(
        gradient, data, norm.normalized_shape, mean, deviation, norm.weight, norm.bias, [True, False, False]
    )[0]
    return result
