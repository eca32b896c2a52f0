"""Dropout on the CPU whose random numbers cost little: masks are slices of one pool.

Drawing one random number per activation takes a CPU as long as the rest of a training step. A pool of four
million mask values costs next to nothing: a quarter of it is drawn anew for every forward pass, and every use reads it
from a random place on. Each value is kept with the right probability, and masks of two layers, rows or steps
hold the same stretch of values only by chance, and then at other activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

SIZE = 2**22
"""Mask values in the pool: 8 MB in bfloat16, which stays in a CPU's caches."""
PARTS = 4
"""Parts of the pool, of which every forward pass draws one anew."""


class MaskPool:
    """Masks for inverted dropout on the CPU.

    Args:
        probability: share of values that become 0, from 0 to below 1, rounded to 2^-16.
        dtype: dtype of the masks.
    """

    def __init__(self, probability: float, dtype: torch.dtype) -> None:
        dropped = min(round(probability * 2**16), 2**16 - 1)
        self.probability = probability
        self.dtype = dtype
        self._threshold = dropped - 2**15
        self._kept = 2**16 / (2**16 - dropped)
        self._bits = np.random.SFC64(int(torch.randint(2**62, ())))
        self._pool = torch.empty(SIZE, dtype=dtype)
        self._next = 0
        for _ in range(PARTS):
            self.refresh()

    def refresh(self) -> None:
        """Draw the next part of the pool anew. Masks drawn before must not be used any more."""
        size = SIZE // PARTS
        numbers = torch.from_numpy(self._bits.random_raw(size // 4)).view(torch.int16)
        part = self._pool[self._next * size : (self._next + 1) * size]
        part.copy_(numbers >= self._threshold).mul_(self._kept)
        self._next = (self._next + 1) % PARTS

    def draw(self, like: torch.Tensor) -> tuple[int, ...]:
        """Where in the pool the mask of a tensor begins: one place for every stretch of half the pool's size.

        The places come from torch's generator, so that a recomputed layer draws the same ones again.
        """
        stretches = -(-like.numel() // (SIZE // 2))
        return tuple(torch.randint(0, SIZE // 2, (stretches,)).tolist())

    def apply(self, tensor: torch.Tensor, places: tuple[int, ...]) -> torch.Tensor:
        """The tensor times its mask, as a new contiguous tensor."""
        flat = tensor.reshape(-1)
        result = torch.empty_like(flat)
        stretches = zip(places, flat.split(SIZE // 2), result.split(SIZE // 2), strict=True)
        for start, part, out in stretches:
            torch.mul(part, self._pool[start : start + part.numel()], out=out)
        return result.view(tensor.shape)


_active: list[MaskPool] = []


@contextmanager
def dropout_from(pool: MaskPool) -> Iterator[None]:
    """Let dropout layers and attention in the block take their masks from a pool."""
    _active.append(pool)
    try:
        yield
    finally:
        _active.pop()


def active_pool() -> MaskPool | None:
    """The pool of the innermost `dropout_from`."""
    return _active[-1] if _active else None


class PooledDropout(torch.nn.Dropout):
    """A dropout layer that takes its masks from the active pool, and draws them itself where there is none."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        pool = active_pool()
        if pool is None or not self.training or not self.p:
            return super().forward(input)
        result: torch.Tensor = _Masked.apply(input, pool)
        return result


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, pool: MaskPool) -> torch.Tensor:
        ctx.pool, ctx.places = pool, pool.draw(tensor)
        return pool.apply(tensor, ctx.places)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.pool.apply(gradients[0], ctx.places), None


def with_pooled_dropout(model: torch.nn.Module) -> None:
    """Replace the dropout layers of a model by pooled ones, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Dropout:
                setattr(module, name, PooledDropout(child.p).train(child.training))
