"""Drawing rows: a selection split carved out of a training set, and a class-balanced sample.

Only `random.Random` draws, so the same seed gives the same rows on every machine and version of numpy.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from panda_fusion.errors import DataError
from panda_fusion.rows import Split

QUANTILES = 10
"""Into how many groups of equal size the rows of a regression are put, ordered by value."""


def carve_selection(train: Split, fraction: float = 0.1, seed: int = 0) -> tuple[Split, Split]:
    """Split a training set into a smaller one and a selection set with the same class balance.

    Every class of two or more rows has at least one row on either side; a class of one row stays in training.
    A regression is stratified by tenths of its values. Rows keep their order.

    Args:
        train: the training set.
        fraction: share of the rows that goes to the selection set, between 0 and 1.
        seed: which rows are drawn.

    Returns:
        (training set, selection set), disjoint and together all rows.

    Raises:
        DataError: no class has two rows.
        ValueError: the fraction is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction {fraction} is not between 0 and 1")
    groups = [group for group in _groups(train.labels) if len(group) > 1]
    if not groups:
        raise DataError(
            f"A selection set cannot be carved out of {len(train)} training rows because no class has two; "
            "select on the validation split or add rows."
        )
    generator = random.Random(seed)
    chosen: set[int] = set()
    carried = 0.0
    for group in groups:
        # What rounding leaves over goes to the next group, so that the whole comes out at the fraction.
        exact = fraction * len(group) + carried
        rounded = round(exact)
        carried = exact - rounded
        chosen.update(generator.sample(group, min(max(rounded, 1), len(group) - 1)))
    rest = [index for index in range(len(train)) if index not in chosen]
    return train.select(rest), train.select(sorted(chosen))


def balanced_sample(split: Split, count: int = 100, seed: int = 0) -> list[int]:
    """Draw rows with the same number per class, as far as the rows go (PanDa, section III-C1).

    Classes that run out give all they have and the others make up for them, so that `min(count, rows)` rows
    come back; what cannot be divided evenly goes to the classes of lowest index. A regression gives one row
    from each of `count` quantiles of its values.

    Args:
        split: the rows to draw from.
        count: how many rows at most.
        seed: which rows are drawn.

    Returns:
        Indices of different rows, ascending.

    Raises:
        ValueError: count is less than 1.
    """
    if count < 1:
        raise ValueError(f"count {count} is less than 1")
    generator = random.Random(seed)
    if len(split) <= count:
        return list(range(len(split)))
    if _is_numeric(split.labels):
        order = _by_value(split.labels, generator)
        edges = [len(order) * step // count for step in range(count + 1)]
        return sorted(order[generator.randrange(low, high)] for low, high in pairwise(edges))
    groups = _groups(split.labels)
    quotas = _quotas([len(group) for group in groups], count)
    return sorted(
        index for group, quota in zip(groups, quotas, strict=True) for index in generator.sample(group, quota)
    )


def _quotas(sizes: Sequence[int], count: int) -> list[int]:
    """Numbers that differ by at most one, except where a size is smaller; their sum is count or all sizes."""
    quotas = [0] * len(sizes)
    left = min(count, sum(sizes))
    while left:
        open_groups = [index for index, size in enumerate(sizes) if quotas[index] < size]
        share = max(left // len(open_groups), 1)
        for index in open_groups:
            more = min(share, sizes[index] - quotas[index], left)
            quotas[index] += more
            left -= more
    return quotas


def _groups(labels: Sequence[int] | Sequence[float]) -> list[list[int]]:
    """Row indices per class in class order, or per tenth of the values; no group is empty."""
    if _is_numeric(labels):
        order = _by_value(labels, random.Random(0))
        edges = [len(order) * step // QUANTILES for step in range(QUANTILES + 1)]
        slices = [sorted(order[low:high]) for low, high in pairwise(edges)]
        # Fewer rows than would give each group two: one group, of which some rows can be taken.
        return slices if min(len(group) for group in slices) > 1 else [sorted(order)]
    if isinstance(labels[0], list):  # tags and answers have no classes
        return [list(range(len(labels)))]
    by_class: dict[float, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        by_class[label].append(index)
    return [by_class[label] for label in sorted(by_class)]


def _is_numeric(labels: Sequence[int] | Sequence[float]) -> bool:
    """Whether these are the values of a regression: `Split.labels` holds floats for nothing else."""
    return len(labels) > 0 and isinstance(labels[0], float)


def _by_value(labels: Sequence[int] | Sequence[float], generator: random.Random) -> list[int]:
    """Row indices in ascending order of value; equal values in random order."""
    order = list(range(len(labels)))
    generator.shuffle(order)
    return sorted(order, key=lambda index: labels[index])
