"""Streams of one seed: repeatable, and not each other's draws."""

from __future__ import annotations

import itertools

import torch

from panda_fusion.random_streams import random_stream

STREAMS = ("prompt", "head", "teacher")


def test_streams_and_seeds_draw_differently_and_repeatably() -> None:
    """torch keeps 32 bits of a seed, so streams made by adding a large number would all be one."""
    drawn = {
        (seed, stream): torch.randn(8, generator=random_stream(seed, stream))  # type: ignore[arg-type]
        for seed in (0, 1, 2**32 - 1)
        for stream in STREAMS
    }
    for one, other in itertools.combinations(drawn.values(), 2):
        assert not torch.equal(one, other)
    assert torch.equal(drawn[1, "head"], torch.randn(8, generator=random_stream(1, "head")))
