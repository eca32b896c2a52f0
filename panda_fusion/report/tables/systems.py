"""All systems beside each other, averaged over sources."""

from __future__ import annotations

from dataclasses import replace

from panda_fusion.matrix_record import CellRecord
from panda_fusion.report.results import Results, short
from panda_fusion.report.table import EMPTY, Row, Table, average, change, grouped, over_sources, with_best
from panda_fusion.report.variants import WORDS, variant_order, variants


def systems_table(results: Results) -> Table | None:
    """Model tuning, prompt tuning, vanilla transfer and PanDa: Tables IV to VI and XI, Figures 2 and 6."""
    rows = _rows(results, results.of("full"), "–")
    for method in results.methods:
        trained = (*results.scratch, *results.of("vanilla", "panda"))
        rows += _rows(results, [r for r in trained if r.method == method], short(method, results.methods))
    if not rows:
        return None
    return Table(
        name="systems",
        title="Systems",
        note="Best scores, times 100: means over all sources, then mean ± sample standard deviation over seeds. The "
        "gain is that of the average against prompt tuning. (Paper: Tables IV to VI and XI, Figures 2 and 6.)",
        label_columns=("system", "method"),
        columns=(*results.targets, "average", "gain"),
        rows=tuple(with_best(rows, uncompared=1)),
    )


def _rows(results: Results, records: list[CellRecord], method: str) -> list[Row]:
    names = variants(records)
    groups = grouped(records, lambda record: names[record.cell])
    rows: list[Row] = []
    for name in variant_order(records, names):
        numbers = [over_sources(r for r in groups[name] if r.target == target) for target in results.targets]
        if any(one.value is not None for one in numbers):
            rows.append(Row((name, method), (*numbers, average(numbers), EMPTY), group=not rows))
    plain = [row for row in rows if row.labels[0].startswith(WORDS["scratch"])]
    if len(plain) != 1:  # none to compare with, or a sweep
        return rows
    base = plain[0].numbers[-2:-1]
    return [
        row if row is plain[0] else replace(row, numbers=(*row.numbers[:-1], change(row.numbers[-2:-1], base)))
        for row in rows
    ]
