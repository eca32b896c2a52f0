"""The tables of a report, with the cells behind every number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from panda_fusion.matrix_record import CellRecord
from panda_fusion.report.results import Results, short
from panda_fusion.report.statistics import Summary, difference, spearman, summary

K = TypeVar("K")
TOP = 3
"""Sources that a similarity metric proposes, of which the best counts (Table II)."""


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


def all_tables(results: Results) -> list[Table]:
    """Every table for which there are records."""
    tables: list[Table] = []
    for method in _methods(results):
        tables += _some(transfer_table(results, method))
    tables += _some(claims_table(results))
    for axis in AXES:
        tables += _some(axis_table(results, *axis))
    tables += _some(correlation_table(results))
    tables += _some(type_table(results))
    tables += _some(cost_table(results))
    return tables


def _some(table: Table | None) -> list[Table]:
    return [] if table is None else [table]


def _methods(results: Results) -> list[str]:
    return sorted({record.method for record in results.of("scratch", "vanilla", "panda")})


def _score(records: Iterable[CellRecord]) -> Number:
    """Mean and deviation of best scores, times 100."""
    some = [record for record in records if record.best is not None]
    found = summary([record.best for record in some if record.best is not None])
    return _number(found, tuple(record.cell for record in some))


def _number(found: Summary | None, cells: tuple[str, ...], scale: float = 100, digits: int = 1) -> Number:
    if found is None:
        return EMPTY
    mean = scale * found.mean
    deviation = None if found.deviation is None else scale * found.deviation
    text = f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")
    return Number(text, mean, deviation, cells)


def _average(numbers: Sequence[Number]) -> Number:
    """The mean over all columns; nothing where one is missing, which would compare different things."""
    values = [number.value for number in numbers if number.value is not None]
    if len(values) < len(numbers) or not values:
        return EMPTY
    cells = tuple(cell for number in numbers for cell in number.cells)
    return Number(f"{fmean(values):.1f}", fmean(values), None, cells)


def _with_best(rows: list[Row]) -> tuple[Row, ...]:
    """Mark the largest number of every column."""
    if not rows:
        return ()
    width = len(rows[0].numbers)
    best = [max((r.numbers[c].value or float("-inf") for r in rows), default=float("-inf")) for c in range(width)]
    return tuple(
        Row(
            row.labels,
            tuple(
                Number(n.text, n.value, n.deviation, n.cells, n.value is not None and n.value == best[c])
                for c, n in enumerate(row.numbers)
            ),
            row.group,
        )
        for row in rows
    )


def transfer_table(results: Results, method: str) -> Table | None:
    """Table II: sources in rows, targets in columns, vanilla transfer beside PanDa."""
    own = [record for record in results.done if record.method == method or record.system == "full"]
    targets = results.targets
    rows: list[Row] = []

    def add(labels: tuple[str, ...], records: Sequence[CellRecord], group: bool = False) -> Row | None:
        numbers = [_score(record for record in records if record.target == target) for target in targets]
        if all(number is EMPTY for number in numbers):
            return None
        rows.append(Row(labels, (*numbers, _average(numbers), EMPTY), group))
        return rows[-1]

    transfers = [record for record in own if record.system in ("vanilla", "panda")]
    if not transfers:
        return None
    seeds = {record.seed for record in transfers}
    add(("–", "model tuning"), [record for record in own if record.system == "full"])
    add(("–", "prompt tuning"), [r for r in own if r.system == "scratch" and r.seed in seeds and r.target in targets])
    variants = sorted({_variant(record, transfers) for record in transfers}, key=lambda name: (name != "vanilla", name))
    groups = sorted({record.sources for record in transfers}, key=lambda names: (len(names), _place(results, names)))
    for names in groups:
        vanilla: Row | None = None
        for number, variant in enumerate(variants):
            records = [r for r in transfers if r.sources == names and _variant(r, transfers) == variant]
            row = add((" + ".join(names), variant), records, group=number == 0)
            if row is None:
                continue
            if variant == "vanilla":
                vanilla = row
            elif vanilla is not None:
                rows[-1] = _with_change(row, vanilla)
    for variant in variants:
        singles = [r for r in transfers if len(r.sources) == 1 and _variant(r, transfers) == variant]
        add(("ORACLE", variant), _oracle(singles, targets), group=variant == variants[0])
        for metric in _metrics(results):
            add(
                (f"best of top {TOP} by {short(metric, list(_metrics(results)))}", variant),
                _top(results, singles, metric),
            )
    return Table(
        name=f"transfer-{_file(short(method, list(_methods(results))))}",
        title=f"Transfer with {short(method, list(_methods(results)))}",
        note="Best scores on the validation set, times 100: mean ± sample standard deviation over seeds. The change is "
        "that of the average against vanilla transfer from the same source. ORACLE takes the best source for each "
        f"target, the rows below it the best of the {TOP} sources that a similarity metric ranks first. (Paper: Table "
        "II, III, XIII to XVI.)",
        label_columns=("source", "system"),
        columns=(*targets, "average", "change"),
        rows=_with_best(rows),
    )


def _place(results: Results, names: tuple[str, ...]) -> tuple[int, ...]:
    order = {name: place for place, name in enumerate(results.sources)}
    return tuple(order.get(name, len(order)) for name in names)


def _variant(record: CellRecord, others: Sequence[CellRecord]) -> str:
    """A transfer in words: `vanilla`, or PanDa with what varies among its records."""
    if record.system == "vanilla":
        return "vanilla"
    panda = [other for other in others if other.system == "panda"]
    words = []
    for name in ("fusion", "teacher", "kd", "similarity"):
        specs = [getattr(other, name) for other in panda]
        if len(set(specs)) > 1:
            words.append(short(getattr(record, name), specs))
    for name, sign in (("lambda_", "λ"), ("learning_rate", "lr"), ("samples", "rows")):
        if len({getattr(other, name) for other in panda}) > 1:
            words.append(f"{sign} {getattr(record, name):g}")
    return "PanDa" + (f" ({', '.join(words)})" if words else "")


def _with_change(row: Row, vanilla: Row) -> Row:
    own, other = row.numbers[-2], vanilla.numbers[-2]
    if own.value is None or other.value is None:
        return row
    change = own.value - other.value
    number = Number(f"{change:+.1f}", change, None, (*own.cells, *other.cells))
    return Row(row.labels, (*row.numbers[:-1], number), row.group)


def _metrics(results: Results) -> list[str]:
    return sorted({name for record in results.of("similarity") for name in record.transferability})


def _oracle(records: Sequence[CellRecord], targets: Sequence[str]) -> list[CellRecord]:
    """The records of the source with the best mean, for every target."""
    chosen = []
    for target in targets:
        groups = _grouped([r for r in records if r.target == target], lambda r: r.sources)
        best = max(groups.values(), key=lambda some: fmean([r.best or 0.0 for r in some]), default=[])
        chosen += best
    return chosen


def _top(results: Results, records: Sequence[CellRecord], metric: str) -> list[CellRecord]:
    """For every target and seed the best of the sources that the metric ranks first."""
    values = similarity_values(results, metric)
    chosen = []
    for (target, seed), some in sorted(_grouped(records, lambda r: (r.target, r.seed)).items()):
        known = [r for r in some if (r.sources[0], target, seed) in values]
        known.sort(key=lambda r: -values[r.sources[0], target, seed])
        best = max(known[:TOP], key=lambda r: r.best or 0.0, default=None)
        if best is not None:
            chosen.append(best)
    return chosen


def similarity_values(results: Results, metric: str) -> dict[tuple[str, str, int], float]:
    """(source, target, seed) -> similarity by a metric."""
    return {
        (record.sources[0], record.target, record.seed): record.transferability[metric]
        for record in results.of("similarity")
        if metric in record.transferability
    }


def claims_table(results: Results) -> Table | None:
    """Paired differences between systems, over everything that they have in common."""
    rows = []
    panda = results.of("panda")
    single = [record for record in panda if len(record.sources) == 1]
    vanilla = {(r.method, r.target, r.sources, r.seed, r.learning_rate, r.samples): r for r in results.of("vanilla")}
    scratch = {(r.method, r.target, r.seed, r.learning_rate, r.samples): r for r in results.of("scratch")}

    def add(label: str, pairs: list[tuple[CellRecord, CellRecord]]) -> None:
        scored = [(a, b) for a, b in pairs if a.best is not None and b.best is not None]
        found = difference([(a.best or 0.0, b.best or 0.0) for a, b in scored])
        if found is None:
            return
        cells = tuple(dict.fromkeys(r.cell for pair in scored for r in pair))
        interval = EMPTY
        if found.low is not None and found.high is not None:
            interval = Number(f"{100 * found.low:+.2f} to {100 * found.high:+.2f}", None, None, cells)
        mean = Number(f"{100 * found.mean:+.2f}", 100 * found.mean, None, cells)
        rows.append(Row((label,), (mean, interval, Number(str(found.count), found.count, None, cells))))

    for variant in sorted({_variant(r, panda) for r in single}):
        own = [r for r in single if _variant(r, panda) == variant]
        pairs = [
            (r, vanilla[key])
            for r in own
            if (key := (r.method, r.target, r.sources, r.seed, r.learning_rate, r.samples)) in vanilla
        ]
        add(f"{variant} against vanilla transfer", pairs)
        values = {r.cell: r.similarities[0] for r, _ in pairs if r.similarities}
        if len(set(values.values())) > 3:
            middle = sorted(values.values())[len(values) // 2]
            add(
                f"{variant} against vanilla, less similar half", [p for p in pairs if values.get(p[0].cell, 0) < middle]
            )
            add(
                f"{variant} against vanilla, more similar half",
                [p for p in pairs if values.get(p[0].cell, 0) >= middle],
            )
    for variant in sorted({_variant(r, panda) for r in panda}):
        own = [r for r in panda if _variant(r, panda) == variant]
        add(
            f"{variant} against prompt tuning",
            [
                (r, scratch[k])
                for r in own
                if (k := (r.method, r.target, r.seed, r.learning_rate, r.samples)) in scratch
            ],
        )
    add(
        "vanilla transfer against prompt tuning",
        [
            (r, scratch[k])
            for r in results.of("vanilla")
            if (k := (r.method, r.target, r.seed, r.learning_rate, r.samples)) in scratch
        ],
    )
    if not rows:
        return None
    return Table(
        name="differences",
        title="Differences between systems",
        note="Mean difference of best scores, times 100, over pairs of the same target, source and seed, with a 95 % t "
        "interval. Pairs of one target share data, so the interval speaks of these tasks and not of tasks at large.",
        label_columns=("comparison",),
        columns=("difference", "95 % interval", "pairs"),
        rows=tuple(rows),
    )


AXES: tuple[tuple[str, str, str], ...] = (
    ("fusion", "Fusions", "Paper: Tables VI and VII."),
    ("teacher", "Teachers", "Paper: Table V."),
    ("kd", "KD losses", "Paper: Table IX."),
    ("similarity", "Similarities in the loss", "Paper: Table IV."),
    ("method", "PEFT methods", "Paper: Figure 6."),
    ("lambda_", "Weights of the KD loss (λ)", "Paper: Figure 4."),
    ("learning_rate", "Learning rates", ""),
    ("samples", "Training rows", "Paper: Figure 7."),
)
"""Attribute of a record, title, where the paper has it."""


def axis_table(results: Results, name: str, title: str, paper: str) -> Table | None:
    """PanDa's scores by one of its options, where records have several values of it."""
    records = results.of("panda")
    values = sorted({getattr(record, name) for record in records if getattr(record, name) is not None})
    if len(values) < 2:
        return None
    specs = [getattr(record, name) for record in records]
    rows = []
    for value in values:
        own = [record for record in records if getattr(record, name) == value]
        numbers = [_score(r for r in own if r.target == target) for target in results.targets]
        label = short(value, specs) if isinstance(value, str) else f"{value:g}"
        rows.append(Row((label,), (*numbers, _average(numbers))))
    return Table(
        name=f"by-{_file(name.strip('_').replace('_', '-'))}",
        title=title,
        note="PanDa's best scores, times 100: mean ± sample standard deviation over sources, seeds and all else. "
        + paper,
        label_columns=(title.lower(),),
        columns=(*results.targets, "average"),
        rows=_with_best(rows),
    )


def correlation_table(results: Results) -> Table | None:
    """Figure 5: how well a similarity metric foretells vanilla transfer after one epoch."""
    metrics = _metrics(results)
    rows = []
    for metric in metrics:
        values = similarity_values(results, metric)
        numbers = []
        for target in results.targets:
            by_seed, cells = [], []
            for _, some in sorted(_grouped(results.of("vanilla"), lambda r: r.seed).items()):
                known = [
                    r
                    for r in some
                    if r.target == target and r.first_epoch is not None and (r.sources[0], target, r.seed) in values
                ]
                found = spearman(
                    [values[r.sources[0], target, r.seed] for r in known], [r.first_epoch or 0.0 for r in known]
                )
                if found is not None:
                    by_seed.append(found)
                    cells += [r.cell for r in known]
            numbers.append(_number(summary(by_seed), tuple(cells), scale=1, digits=2))
        known_numbers = [n.value for n in numbers if n.value is not None]
        mean = EMPTY
        if known_numbers:
            cells_all = tuple(cell for n in numbers for cell in n.cells)
            mean = Number(f"{fmean(known_numbers):.2f}", fmean(known_numbers), None, cells_all)
        rows.append(Row((short(metric, list(metrics)),), (*numbers, mean)))
    if not rows or all(number is EMPTY for row in rows for number in row.numbers):
        return None
    return Table(
        name="similarity-against-transfer",
        title="Similarity against transfer",
        note="Spearman's rank correlation, over sources, of the similarity with the score of vanilla transfer after "
        "its first epoch: mean ± sample standard deviation over seeds. (Paper: Figure 5.)",
        label_columns=("similarity",),
        columns=(*results.targets, "average"),
        rows=_with_best(rows),
    )


def type_table(results: Results) -> Table | None:
    """Table X: similarity of tasks of the same type and of different types."""
    rows = []
    metrics = _metrics(results)
    for metric in metrics:
        same: list[tuple[float, str]] = []
        other: list[tuple[float, str]] = []
        for r in results.of("similarity"):
            if metric in r.transferability and r.source_types and r.source_types[0]:
                (same if r.source_types[0] == r.target_type else other).append((r.transferability[metric], r.cell))
        if same and other:
            numbers = [
                _number(summary([value for value, _ in some]), tuple(cell for _, cell in some), scale=1, digits=3)
                for some in (same, other)
            ]
            rows.append(Row((short(metric, list(metrics)),), tuple(numbers)))
    if not rows:
        return None
    return Table(
        name="same-and-different-types",
        title="Similarity within and between task types",
        note="Mean ± sample standard deviation over pairs of tasks and seeds. A good metric is higher within a type. "
        "(Paper: Table X.)",
        label_columns=("similarity",),
        columns=("same type", "different types"),
        rows=tuple(rows),
    )


def cost_table(results: Results) -> Table | None:
    """Table XII: trainable parameters and time."""
    rows = []
    records = [record for record in results.done if record.train_seconds is not None]
    everything = [record.method for record in records]
    for (system, method), some in sorted(_grouped(records, lambda r: (r.system, r.method)).items()):
        cells = tuple(r.cell for r in some)
        parameters = max(r.trainable_parameters or 0 for r in some)
        training = summary([r.train_seconds for r in some if r.train_seconds is not None])
        teachers = summary([r.teacher_seconds for r in some if r.teacher_seconds is not None])
        rows.append(
            Row(
                (system, short(method, list(everything))),
                (
                    Number(f"{parameters:,}", parameters, None, cells),
                    _number(training, cells, scale=1),
                    _number(teachers, cells, scale=1),
                    Number(str(len(some)), len(some), None, cells),
                ),
            )
        )
    if not rows:
        return None
    devices = ", ".join(sorted({f"{r.device} {r.precision}" for r in records}))
    return Table(
        name="cost",
        title="Parameters and time",
        note="Trainable numbers of a prompt, head included (the largest of all targets); seconds of training and of "
        f"making and running teachers, a cell's share of its pack ({devices}): mean ± sample standard deviation. "
        "(Paper: Table XII.)",
        label_columns=("system", "method"),
        columns=("parameters", "training, s", "teachers, s", "cells"),
        rows=tuple(rows),
    )


def _grouped(records: Iterable[CellRecord], key: Callable[[CellRecord], K]) -> dict[K, list[CellRecord]]:
    groups: dict[K, list[CellRecord]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return dict(groups)


def _file(name: str) -> str:
    """A name that is safe in a path."""
    return "".join(letter if letter.isalnum() or letter in "-_=" else "-" for letter in name)[:60]
