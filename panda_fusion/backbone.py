"""The frozen backbone: loading, fingerprint, and the forward pass that prompts enter."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneShape:
    """Sizes of a backbone that PEFT methods need.

    Attributes:
        layers: transformer layers.
        hidden: hidden size.
        heads: attention heads.
        kv_heads: key/value heads.
        head_dim: size of one head.
        positions: longest text plus virtual tokens that the position table takes; None: no table.
        initializer_range: standard deviation that the backbone initialises its own weights with.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    positions: int | None
    initializer_range: float
