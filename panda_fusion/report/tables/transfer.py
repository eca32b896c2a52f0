"""Every source and every target: vanilla transfer beside PanDa."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from panda_fusion.matrix_record import CellRecord
from panda_fusion.report.file_names import file_name
from panda_fusion.report.pairs import rankings
from panda_fusion.report.results import Results, short
from panda_fusion.report.table import EMPTY, Row, Table, average, change, grouped, score, with_best
from panda_fusion.report.variants import WORDS, variant_order, variants

TOP = 3
"""Sources that a similarity metric proposes, of which the best counts (Table II)."""


def transfer_table(results: Results, method: str) -> Table | None:
    """Table II of one PEFT method: sources in rows, targets in columns."""
    transfers = [record for record in results.of("vanilla", "panda") if record.method == method]
    if not transfers:
        return None
    tuned = [*results.of("full"), *(record for record in results.scratch if record.method == method)]
    rows = _plain_rows(results, tuned)
    names = variants(transfers)
    order = variant_order(transfers, names)
    for sources in sorted({record.sources for record in transfers}, key=lambda some: _place(results, some)):
        own = [record for record in transfers if record.sources == sources]
        rows += _source_rows(results, " + ".join(sources), own, names, order)
    rows = with_best(rows, uncompared=1)
    for variant in order:
        singles = [r for r in transfers if len(r.sources) == 1 and names[r.cell] == variant and r.best is not None]
        rows += _chosen_rows(results, method, variant, singles, group=variant == order[0])
    return Table(
        name=file_name("transfer", short(method, results.methods)),
        title=f"Transfer with {short(method, results.methods)}",
        note="Best scores, times 100: mean ± sample standard deviation over seeds. The change is the mean difference "
        "to vanilla transfer from the same source, over the targets that have both. ORACLE takes the best row for "
        f"each target, the rows below it the best of the {TOP} sources that have the highest mean similarity to it. "
        "(Paper: Tables II, III and XIII to XVI.)",
        label_columns=("source", "system"),
        columns=(*results.targets, "average", "change"),
        rows=tuple(rows),
    )


def _row(results: Results, labels: tuple[str, ...], records: Sequence[CellRecord], group: bool = False) -> list[Row]:
    """A row, unless there is nothing in it; the change is still to come."""
    numbers = [score(record for record in records if record.target == target) for target in results.targets]
    if all(one.value is None for one in numbers):
        return []
    return [Row(labels, (*numbers, average(numbers), EMPTY), group)]


def _plain_rows(results: Results, tuned: Sequence[CellRecord]) -> list[Row]:
    names = variants(tuned)
    rows = []
    for name in variant_order(tuned, names):
        rows += _row(results, ("–", name), [record for record in tuned if names[record.cell] == name])
    return rows


def _source_rows(
    results: Results, label: str, records: Sequence[CellRecord], names: dict[str, str], order: Sequence[str]
) -> list[Row]:
    """A source's variants, each with its change against the source's only vanilla row."""
    rows: list[Row] = []
    for variant in order:
        own = [record for record in records if names[record.cell] == variant]
        rows += _row(results, (label, variant), own, group=not rows)
    vanilla = [row for row in rows if row.labels[1].startswith(WORDS["vanilla"])]
    if len(vanilla) != 1:  # none to compare with, or a sweep
        return rows
    base = vanilla[0].numbers[:-2]
    return [
        row if row is vanilla[0] else replace(row, numbers=(*row.numbers[:-1], change(row.numbers[:-2], base)))
        for row in rows
    ]


def _chosen_rows(results: Results, method: str, variant: str, singles: Sequence[CellRecord], group: bool) -> list[Row]:
    rows = _row(results, ("ORACLE", variant), _oracle(results, singles), group)
    for metric in results.metrics:
        label = f"best of top {TOP} by {short(metric, results.metrics)}"
        rows += _row(results, (label, variant), _best_of_top(results, method, singles, metric))
    return rows


def _place(results: Results, names: tuple[str, ...]) -> tuple[object, ...]:
    order = {name: place for place, name in enumerate(results.sources)}
    return (len(names), tuple(order.get(name, len(order)) for name in names), names)


def _oracle(results: Results, records: Sequence[CellRecord]) -> list[CellRecord]:
    """For every target the records of the source with the best mean."""
    return [record for target in results.targets for record in _best([r for r in records if r.target == target])]


def _best_of_top(results: Results, method: str, records: Sequence[CellRecord], metric: str) -> list[CellRecord]:
    """For every target the best of the sources that the metric ranks first, once all of them have scores."""
    order = rankings(results, method, metric)
    chosen: list[CellRecord] = []
    for place, some in grouped(records, lambda r: (r.target, r.samples)).items():
        first = order.get(place, [])[:TOP]
        if set(first) <= {record.sources[0] for record in some}:
            chosen += _best([record for record in some if record.sources[0] in first])
    return chosen


def _best(records: Sequence[CellRecord]) -> list[CellRecord]:
    """Those of the source with the best mean."""
    groups = grouped(records, lambda record: record.sources)
    return max(groups.values(), key=lambda some: fmean(r.best or 0.0 for r in some), default=[])
