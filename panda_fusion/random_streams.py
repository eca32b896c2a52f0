"""Independent random generators from one seed."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

Stream = Literal["prompt", "head", "teacher", "probe"]

_STREAMS: dict[Stream, int] = {"prompt": 0, "head": 1, "teacher": 2, "probe": 3}


def random_stream(seed: int, stream: Stream) -> torch.Generator:
    """A CPU generator for one purpose of a run.

    torch's CPU generator keeps the lowest 32 bits of a seed only, so adding a large number to it would give the very
    same draws; numpy's seed sequence mixes both.

    Args:
        seed: the run's seed, 0 or more.
        stream: what is drawn; the streams of one seed are independent of each other.
    """
    return torch.Generator().manual_seed(stream_seed(seed, stream))


def stream_seed(seed: int, stream: Stream) -> int:
    """The seed of `random_stream`, from 0 to 2^32 - 1, for what takes a seed and draws several things with it."""
    return int(np.random.SeedSequence((seed, _STREAMS[stream])).generate_state(1, np.uint32)[0])
