"""Whether a similarity depends on how it is measured: the same metric under several values of one option."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, pstdev

from panda_fusion.errors import OptionError
from panda_fusion.matrix_record import CellRecord
from panda_fusion.method_string import parse_method
from panda_fusion.report.file_names import file_name
from panda_fusion.report.pairs import compared
from panda_fusion.report.results import Results
from panda_fusion.report.statistics import summary
from panda_fusion.report.table import EMPTY, Number, Row, Table, grouped, number
from panda_fusion.report.tables.similarity import metric_label

USED = 100
"""The number of samples that the paper works with; the others are compared with it (Table IX)."""


@dataclass(frozen=True)
class Family:
    """A metric that was computed with several values of an option that takes whole numbers.

    Attributes:
        name: the metric.
        option: the option.
        specs: its values, in order, and the method strings that have them; they differ in nothing else.
    """

    name: str
    option: str
    specs: dict[int, str]


def families(metrics: list[str]) -> list[Family]:
    """The families among some similarity method strings; strings that do not parse belong to none."""
    found: dict[tuple[str, str, tuple[tuple[str, str], ...]], dict[int, str]] = {}
    for spec in metrics:
        try:
            name, options = parse_method(spec)
        except OptionError:
            continue
        for option, value in options.items():
            if value.isascii() and value.isdigit() and len(value) < 10:
                others = tuple(sorted(item for item in options.items() if item[0] != option))
                found.setdefault((name, option, others), {})[int(value)] = spec
    return [
        Family(name, option, dict(sorted(specs.items())))
        for (name, option, _), specs in found.items()
        if len(specs) > 1
    ]


def sampling_tables(results: Results) -> list[Table]:
    """Tables VIII and IX of every family and PEFT method."""
    tables: list[Table] = []
    for family in families(results.metrics):
        for method in results.methods:
            records = list(compared(results, method).values())
            records = [r for r in records if any(spec in r.transferability for spec in family.specs.values())]
            if records:
                name = metric_label(results, family.name, method)
                tables += [_values_table(results, family, records, name), _spread_table(results, family, records, name)]
    return [table for table in tables if table.rows]


def _values_table(results: Results, family: Family, records: list[CellRecord], name: str) -> Table:
    rows: list[Row] = []
    for source in results.sources:
        own = [record for record in records if record.sources[0] == source]
        block: list[Row] = []
        for value, spec in family.specs.items():
            some = [record for record in own if spec in record.transferability]
            if some:
                numbers = tuple(_similarity(some, spec, target) for target in results.targets)
                block.append(Row((source, str(value)), numbers, group=not block))
        rows += block
    return Table(
        name=file_name("similarity-by", family.option, name),
        title=f"Similarity {name} by {family.option}",
        note=f"Similarity of a source and each target for every value of the option {family.option}: mean ± sample "
        "standard deviation over seeds. (Paper: Table VIII, for the number of samples.)",
        label_columns=("source", family.option),
        columns=tuple(results.targets),
        rows=tuple(rows),
    )


def _similarity(records: list[CellRecord], spec: str, target: str) -> Number:
    some = [record for record in records if record.target == target]
    return number(summary([r.transferability[spec] for r in some]), [r.cell for r in some], digits=3)


def _spread_table(results: Results, family: Family, records: list[CellRecord], name: str) -> Table:
    """For every source the deviation along the option, and the distance of what is used from the mean of all."""
    complete = [r for r in records if all(spec in r.transferability for spec in family.specs.values())]
    rows = []
    by_source = grouped(complete, lambda r: r.sources[0])
    for source in [source for source in results.sources if source in by_source]:
        some = by_source[source]
        cells = tuple(record.cell for record in some)
        values = [{n: r.transferability[spec] for n, spec in family.specs.items()} for r in some]
        deviation = fmean(pstdev(one.values()) for one in values)
        numbers = [Number(f"{deviation:.5f}", deviation, None, cells), EMPTY]
        if USED in family.specs:
            distance = fmean(abs(one[USED] - fmean(one.values())) for one in values)
            numbers[1] = Number(f"{distance:.5f}", distance, None, cells)
        rows.append(Row((source,), tuple(numbers)))
    return Table(
        name=file_name("spread-by", family.option, name),
        title=f"Spread of similarity {name} by {family.option}",
        note="Standard deviation (dividing by n, as the paper does) over the values "
        f"{', '.join(map(str, family.specs))} of the option {family.option}, and distance of the similarity at {USED} "
        "from their mean: means over targets and seeds. (Paper: Table IX, for the number of samples.)",
        label_columns=("source",),
        columns=("standard deviation", f"|{USED} − mean|"),
        rows=tuple(rows),
    )
