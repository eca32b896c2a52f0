"""The memory probe against sums by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_samples import method

from panda_fusion.activation_memory import activation_bytes
from panda_fusion.backbone import Backbone

Tiny = Callable[[str], Backbone]


@pytest.mark.parametrize("spec", ["prefix:length=4", "prompt:length=4", "adapter:reduction=8"])
def test_twice_the_rows_take_twice_the_memory(spec: str, tiny: Tiny) -> None:
    backbone = tiny("bert")
    one, two, four = (activation_bytes(backbone, method(spec), rows, 16) for rows in (8, 16, 32))
    assert one > 0
    # What does not grow with the rows (the prompt's own casts) is small.
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)


def test_a_layer_keeps_at_least_its_attention_weights_and_at_most_what_all_its_values_take(tiny: Tiny) -> None:
    """Between the attention weights alone, and 34 hidden-sized values a token plus five matrices of weights a head."""
    backbone = tiny("bert")
    rows, tokens, prefix = 8, 16, 4
    shape = backbone.shape
    weights = rows * shape.heads * tokens * (tokens + prefix) * 4 * shape.layers
    most = shape.layers * rows * tokens * 34 * shape.hidden * 4 + 5 * weights
    assert weights < activation_bytes(backbone, method(f"prefix:length={prefix}"), rows, tokens) < most


def test_checkpointing_keeps_less_and_stays_switched_on(tiny: Tiny) -> None:
    backbone = tiny("bert")
    plain = activation_bytes(backbone, method("prefix:length=4"), 8, 16)
    backbone.gradient_checkpointing = True
    try:
        assert activation_bytes(backbone, method("prefix:length=4"), 8, 16) < 0.8 * plain
        assert backbone.gradient_checkpointing
    finally:
        backbone.gradient_checkpointing = False
