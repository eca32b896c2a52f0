"""The report's page: one HTML file that needs nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from panda_fusion.report.figures import Figure
from panda_fusion.report.results import Results
from panda_fusion.report.statistics import difference
from panda_fusion.report.tables import Table

TEMPLATE = Path(__file__).parent / "page.html.j2"


@dataclass(frozen=True)
class Headline:
    """What stands at the top of the page."""

    label: str
    value: str
    detail: str


def page(results: Results, tables: Sequence[Table], figures: Sequence[Figure], expected: int | None = None) -> str:
    """The page.

    Args:
        results: the records.
        tables: its tables.
        figures: its figures.
        expected: cells that the matrix has in all; None: not known.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["anchors"] = _anchors
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        headlines=headlines(results, expected),
        tables=tables,
        figures=figures,
        cells=results.done,
        failed=results.failed,
        groups=_number_groups(tables),
        models=", ".join(sorted({record.model for record in results.done})),
        damaged=results.damaged,
    )


def headlines(results: Results, expected: int | None) -> list[Headline]:
    """Cells, tasks and seeds, and PanDa against vanilla transfer."""
    done, failed = len(results.done), len(results.failed)
    left = "" if expected is None else f"{max(0, expected - done - failed)} to do, "
    systems = Counter(record.system for record in results.done)
    found = [
        Headline("cells", str(done), f"{left}{failed} failed"),
        Headline("targets", str(len(results.targets)), ", ".join(results.targets)),
        Headline("sources", str(len(results.sources)), ", ".join(results.sources)),
    ]
    vanilla = {(r.method, r.target, r.sources, r.seed): r.best for r in results.of("vanilla")}
    pairs = []
    for record in results.of("panda"):
        other = vanilla.get((record.method, record.target, record.sources, record.seed))
        if other is not None and record.best is not None:
            pairs.append((record.best, other))
    change = difference(pairs)
    if change is not None:
        interval = (
            ""
            if change.low is None or change.high is None
            else (f"95 % t interval {100 * change.low:+.1f} to {100 * change.high:+.1f}, {change.count} pairs")
        )
        found.append(Headline("PanDa against vanilla", f"{100 * change.mean:+.1f}", interval))
    if not change:
        found.append(Headline("systems", str(len(systems)), ", ".join(sorted(systems))))
    return found


def _anchors(cells: Sequence[str]) -> str:
    """The page's name for a group of cells."""
    import hashlib

    if len(cells) == 1:
        return f"cell-{cells[0]}"
    return f"cells-{hashlib.sha256(' '.join(cells).encode()).hexdigest()[:12]}"


def _number_groups(tables: Sequence[Table]) -> dict[str, tuple[str, ...]]:
    """Anchor -> the cells behind a number, for numbers of several cells."""
    groups = {}
    for table in tables:
        for row in table.rows:
            for number in row.numbers:
                if len(number.cells) > 1:
                    groups[_anchors(number.cells)] = number.cells
    return groups
