"""Contenders that take turns: what one round met, all of them met, so ratios are taken within the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping


def take_turns(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run every contender once a round; contender -> what its runs returned, by round."""
    figures: dict[str, list[float]] = {contender: [] for contender in contenders}
    for _ in range(rounds):
        for contender, run in contenders.items():
            figures[contender].append(run())
    return figures


def ratios(values: list[float], reference: list[float]) -> list[float]:
    """`values` over `reference`, round by round."""
    return [value / base for value, base in zip(values, reference, strict=True)]


def fastest(figures: Mapping[str, list[float]]) -> str | None:
    """The contender with the highest median; None if there is none."""
    return max(figures, key=lambda contender: statistics.median(figures[contender]), default=None)


def spread(values: list[float], digits: int, unit: str = "") -> str:
    """Median, lowest and highest: `2.91x [2.53, 2.95]` for the unit `x`."""
    return f"{statistics.median(values):.{digits}f}{unit} [{min(values):.{digits}f}, {max(values):.{digits}f}]"
