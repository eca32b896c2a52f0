"""What a table is: rows of numbers, each with the cells behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeVar

from panda_fusion.matrix_record import CellRecord
from panda_fusion.report.statistics import Summary, summary

K = TypeVar("K")


@dataclass(frozen=True)
class Number:
    """One number of a table.

    Attributes:
        text: as it is shown.
        value: the number itself, as the CSV has it; None for text or nothing.
        deviation: sample standard deviation over what was averaged, in the same unit.
        cells: identifiers of the cells behind it.
        best: whether it is the best of its column.
    """

    text: str
    value: float | None = None
    deviation: float | None = None
    cells: tuple[str, ...] = ()
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A row: its labels and its numbers; `group` starts a new block."""

    labels: tuple[str, ...]
    numbers: tuple[Number, ...]
    group: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: name of its files.
        title: what it shows.
        note: how to read it, and which table of the paper it corresponds to.
        label_columns: heads of the labels.
        columns: heads of the numbers.
        rows: the rows.
    """

    name: str
    title: str
    note: str
    label_columns: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


EMPTY = Number("–")


def number(found: Summary | None, cells: Iterable[str], scale: float = 1, digits: int = 1) -> Number:
    """A mean with its deviation, both times `scale`."""
    if found is None:
        return EMPTY
    mean = scale * found.mean
    deviation = None if found.deviation is None else scale * found.deviation
    text = f"{mean:z.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")
    return Number(text, mean, deviation, tuple(cells))


def signed(value: float, cells: Iterable[str], digits: int = 1) -> Number:
    """A difference, shown with its sign."""
    return Number(f"{value:+z.{digits}f}", value, None, tuple(cells))


def count(value: int, cells: Iterable[str]) -> Number:
    """A whole number."""
    return Number(f"{value:,}", value, None, tuple(cells))


def score(records: Iterable[CellRecord]) -> Number:
    """Mean and deviation of best scores, times 100."""
    some = [(record.best, record.cell) for record in records if record.best is not None]
    return number(summary([best for best, _ in some]), [cell for _, cell in some], scale=100)


def over_sources(records: Iterable[CellRecord]) -> Number:
    """Best scores, times 100: means over sources, then mean and deviation over seeds."""
    some = [(record, record.best) for record in records if record.best is not None]
    seeds = sorted({record.seed for record, _ in some})
    means = [fmean(best for record, best in some if record.seed == seed) for seed in seeds]
    return number(summary(means), [record.cell for record, _ in some], scale=100)


def average(numbers: Sequence[Number], digits: int = 1) -> Number:
    """The mean over all columns; nothing where one is missing, which would compare different things."""
    values = [one.value for one in numbers if one.value is not None]
    if len(values) < len(numbers) or not values:
        return EMPTY
    return Number(f"{fmean(values):z.{digits}f}", fmean(values), None, cells_of(numbers))


def change(own: Sequence[Number], other: Sequence[Number]) -> Number:
    """The mean of own minus other over the columns that both have; nothing where they share none."""
    shared = [
        (a, b, a.value - b.value)
        for a, b in zip(own, other, strict=True)
        if a.value is not None and b.value is not None
    ]
    if not shared:
        return EMPTY
    return signed(fmean(value for *_, value in shared), cells_of([one for a, b, _ in shared for one in (a, b)]))


def cells_of(numbers: Iterable[Number]) -> tuple[str, ...]:
    """The cells behind some numbers, each once."""
    return tuple(dict.fromkeys(cell for one in numbers for cell in one.cells))


def with_best(rows: Sequence[Row], uncompared: int = 0) -> list[Row]:
    """The rows with the largest number of every column marked, but for the last `uncompared` columns."""
    columns = list(zip(*(row.numbers for row in rows), strict=True))
    best = [max((one.value for one in column if one.value is not None), default=None) for column in columns]
    best[len(best) - uncompared :] = [None] * uncompared
    return [
        replace(
            row,
            numbers=tuple(
                replace(one, best=largest is not None and one.value == largest)
                for one, largest in zip(row.numbers, best, strict=True)
            ),
        )
        for row in rows
    ]


def grouped(records: Iterable[CellRecord], key: Callable[[CellRecord], K]) -> dict[K, list[CellRecord]]:
    """Records by key, keys in the order in which they come."""
    groups: dict[K, list[CellRecord]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups
