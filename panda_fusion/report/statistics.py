"""Means, spreads and intervals of scores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (None for a single value) of `count` values."""

    mean: float
    deviation: float | None
    count: int


def summary(values: Sequence[float]) -> Summary | None:
    """The summary of some values; None of none."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), deviation, len(values))


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences with its 95 % t interval; the bounds are None for fewer than two pairs."""

    mean: float
    low: float | None
    high: float | None
    count: int


def difference(pairs: Sequence[tuple[float, float]]) -> Difference | None:
    """The mean of first minus second over pairs, with its interval; None without pairs."""
    if not pairs:
        return None
    values = [first - second for first, second in pairs]
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Difference(mean, None, None, 1)
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Difference(mean, mean - half, mean + half, len(values))


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None where it is not defined (fewer than three pairs, or no variation)."""
    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)
