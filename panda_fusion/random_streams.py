"""Independent random generators from one seed."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

_STREAMS = {"prompt": 0, "head": 1, "teacher": 2}


def random_stream(seed: int, stream: Literal["prompt", "head", "teacher"]) -> torch.Generator:
    """A CPU generator for one purpose of a run.

    torch's CPU generator keeps the lowest 32 bits of a seed only, so adding a large number to it would give the very
    same draws; numpy's seed sequence mixes both.

    Args:
        seed: the run's seed, 0 or more.
        stream: what is drawn; the streams of one seed are independent of each other.
    """
    mixed = np.random.SeedSequence((seed, _STREAMS[stream])).generate_state(1, np.uint32)
    return torch.Generator().manual_seed(int(mixed[0]))
