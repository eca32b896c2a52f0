"""Differences between systems, pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from panda_fusion.matrix_record import CellRecord
from panda_fusion.report.results import Results, short
from panda_fusion.report.statistics import difference
from panda_fusion.report.table import EMPTY, Number, Row, Table, count, grouped, signed
from panda_fusion.report.variants import Key, own_key, transfer_key, variant_order, variants

Pairs = list[tuple[CellRecord, CellRecord]]


def differences_table(results: Results) -> Table | None:
    """Paired differences between systems, over everything that they have in common."""
    rows: list[Row] = []
    for method in results.methods:
        rows += _rows(results, method)
    if not rows:
        return None
    return Table(
        name="differences",
        title="Differences between systems",
        note="Mean difference of best scores, times 100, over pairs of the same target, source, seed, learning rate "
        "and training rows, with a 95 % t interval. Pairs of one target share data, so the interval speaks of these "
        "tasks and not of tasks at large.",
        label_columns=("comparison",),
        columns=("difference", "95 % interval", "pairs"),
        rows=tuple(rows),
    )


def pairs(records: Iterable[CellRecord], others: Mapping[Key, CellRecord], key: Callable[[CellRecord], Key]) -> Pairs:
    """Records with what they are compared with, where both have a score."""
    found = [(record, others[key(record)]) for record in records if key(record) in others]
    return [(a, b) for a, b in found if a.best is not None and b.best is not None]


def _rows(results: Results, method: str) -> list[Row]:
    panda = [record for record in results.of("panda") if record.method == method]
    vanilla = [record for record in results.of("vanilla") if record.method == method]
    by_transfer = {transfer_key(record): record for record in vanilla}
    by_own = {own_key(record): record for record in results.scratch}
    names = variants(panda)
    groups = grouped(panda, lambda record: names[record.cell])
    order = variant_order(panda, names)
    suffix = f", {short(method, results.methods)}" if len(results.methods) > 1 else ""
    rows = []
    for name in order:
        found = pairs(groups[name], by_transfer, transfer_key)
        rows += _row(f"{name} against vanilla transfer{suffix}", found)
        for half, some in _halves(found):
            rows += _row(f"{name} against vanilla transfer, {half} similar half{suffix}", some)
    for name in order:
        rows += _row(f"{name} against prompt tuning{suffix}", pairs(groups[name], by_own, own_key))
    return rows + _row(f"vanilla transfer against prompt tuning{suffix}", pairs(vanilla, by_own, own_key))


def _row(label: str, some: Pairs) -> list[Row]:
    found = difference([(100 * (a.best or 0.0), 100 * (b.best or 0.0)) for a, b in some])
    if found is None:
        return []
    cells = tuple(dict.fromkeys(record.cell for pair in some for record in pair))
    interval = EMPTY
    if found.low is not None and found.high is not None:
        interval = Number(f"{found.low:+z.2f} to {found.high:+z.2f}", None, None, cells)
    return [Row((label,), (signed(found.mean, cells, digits=2), interval, count(found.count, cells)))]


def _halves(some: Pairs) -> list[tuple[str, Pairs]]:
    """The pairs below the median similarity of source and target, and the others."""
    known = [(a.similarities[0], (a, b)) for a, b in some if len(a.similarities) == 1]
    values = sorted(value for value, _ in known)
    if len(set(values)) < 4:
        return []
    middle = values[len(values) // 2]
    return [
        ("less", [pair for value, pair in known if value < middle]),
        ("more", [pair for value, pair in known if value >= middle]),
    ]
