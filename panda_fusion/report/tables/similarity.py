"""How good similarities are at foretelling transfer."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from panda_fusion.matrix_record import CellRecord
from panda_fusion.report.pairs import compared, metric_rows, question_of, rankings
from panda_fusion.report.results import Results, short
from panda_fusion.report.statistics import spearman, summary
from panda_fusion.report.table import (
    Number,
    Row,
    Table,
    average,
    cells_of,
    grouped,
    number,
    over_sources,
    score,
    with_best,
)
from panda_fusion.report.variants import variant_order, variants


def metric_label(results: Results, metric: str, method: str) -> str:
    """A metric, and the PEFT method of the prompts where there are several."""
    name = short(metric, results.metrics)
    return name if len(results.methods) < 2 else f"{name}, {short(method, results.methods)}"


def correlation_table(results: Results) -> Table | None:
    """Figure 5 (right): how well a similarity foretells vanilla transfer after one epoch."""
    rows = []
    for metric, method in metric_rows(results):
        numbers = [_correlation(results, metric, method, target) for target in results.targets]
        known = [one.value for one in numbers if one.value is not None]
        if known:
            mean = Number(f"{fmean(known):z.2f}", fmean(known), None, cells_of(numbers))
            rows.append(Row((metric_label(results, metric, method),), (*numbers, mean)))
    if not rows:
        return None
    return Table(
        name="similarity-against-transfer",
        title="Similarity against transfer",
        note="Spearman's rank correlation, over sources, of the similarity with the score of vanilla transfer after "
        "its first epoch: mean ± sample standard deviation over seeds; the average is over the targets where it is "
        "defined (three sources, not all alike). (Paper: Figure 5.)",
        label_columns=("similarity",),
        columns=(*results.targets, "average"),
        rows=tuple(with_best(rows)),
    )


def _correlation(results: Results, metric: str, method: str, target: str) -> Number:
    comparisons = compared(results, method)
    runs = grouped(
        (r for r in results.of("vanilla") if r.method == method and r.target == target and r.first_epoch is not None),
        lambda r: (r.seed, r.learning_rate, r.samples),
    )
    found: list[float] = []
    cells: list[str] = []
    for some in runs.values():
        both = [(r, other) for r in some if (other := comparisons.get((r.sources[0], question_of(r)))) is not None]
        both = [(r, other) for r, other in both if metric in other.transferability]
        value = spearman([other.transferability[metric] for _, other in both], [r.first_epoch or 0.0 for r, _ in both])
        if value is not None:
            found.append(value)
            cells += [cell for r, other in both for cell in (r.cell, other.cell)]
    return number(summary(found), dict.fromkeys(cells), digits=2)


def nearest_table(results: Results) -> Table | None:
    """Figure 7: vanilla transfer from the single source that a similarity ranks first."""
    rows: list[Row] = []
    for method in results.methods:
        records = [r for r in results.of("vanilla") if r.method == method and r.best is not None]
        names = variants(records)
        for variant in variant_order(records, names):
            own = [record for record in records if names[record.cell] == variant]
            label = "" if variant == "vanilla" else f", {variant}"
            some = [
                Row((f"{metric_label(results, metric, method)}{label}",), _by_target(results, nearest))
                for metric in results.metrics
                if (nearest := _nearest(results, own, metric, method))
            ]
            if some:
                rows += with_best(some)
                known = [r for r in own if (r.sources[0], question_of(r)) in compared(results, method)]
                suffix = label if len(results.methods) < 2 else f", {short(method, results.methods)}{label}"
                means = [over_sources(r for r in known if r.target == target) for target in results.targets]
                rows.append(Row((f"mean of all sources{suffix}",), (*means, average(means))))
    if not rows:
        return None
    return Table(
        name="most-similar-source",
        title="Transfer from the most similar source",
        note="Best scores of vanilla transfer, times 100, from the one source with the highest mean similarity to a "
        "target: mean ± sample standard deviation over seeds. The last row is what a source taken at random gives. "
        "(Paper: Figure 7.)",
        label_columns=("similarity",),
        columns=(*results.targets, "average"),
        rows=tuple(rows),
    )


def _nearest(results: Results, records: Iterable[CellRecord], metric: str, method: str) -> list[CellRecord]:
    """The transfers from the sources that the metric ranks first."""
    order = rankings(results, method, metric)
    return [r for r in records if order.get((r.target, r.samples), [])[:1] == [r.sources[0]]]


def _by_target(results: Results, records: list[CellRecord]) -> tuple[Number, ...]:
    numbers = [score(record for record in records if record.target == target) for target in results.targets]
    return (*numbers, average(numbers))


def type_table(results: Results) -> Table | None:
    """Table X: similarity of tasks of the same type and of different types."""
    rows = []
    for metric, method in metric_rows(results):
        same: list[tuple[float, str]] = []
        other: list[tuple[float, str]] = []
        for r in compared(results, method).values():
            if metric in r.transferability and r.source_types and r.source_types[0]:
                (same if r.source_types[0] == r.target_type else other).append((r.transferability[metric], r.cell))
        if same and other:
            numbers = [
                number(summary([value for value, _ in some]), [cell for _, cell in some], digits=3)
                for some in (same, other)
            ]
            rows.append(Row((metric_label(results, metric, method),), tuple(numbers)))
    if not rows:
        return None
    return Table(
        name="same-and-different-types",
        title="Similarity within and between task types",
        note="Mean ± sample standard deviation over pairs of tasks and seeds. A good similarity is higher within a "
        "type. (Paper: Table X, in per cent.)",
        label_columns=("similarity",),
        columns=("same type", "different types"),
        rows=tuple(rows),
    )
