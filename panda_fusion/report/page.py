"""The report's page: one HTML file that needs nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from panda_fusion.printable import printable
from panda_fusion.report.figures import Figure, inline
from panda_fusion.report.headlines import headlines
from panda_fusion.report.results import Results
from panda_fusion.report.table import Table

TEMPLATE = Path(__file__).parent / "page.html.j2"


def page(results: Results, tables: Sequence[Table], figures: Sequence[Figure]) -> str:
    """The page.

    Args:
        results: the records.
        tables: its tables.
        figures: its figures.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, finalize=_shown
    )
    environment.filters["anchor"] = _anchor
    environment.filters["inline"] = inline
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        headlines=headlines(results),
        tables=tables,
        figures=figures,
        cells=results.done,
        failed=results.failed,
        groups=_groups(tables),
        models=", ".join(sorted({record.model for record in (*results.done, *results.failed)})),
        damage=results.damage,
    )


def _shown(value: Any) -> Any:
    """What is printed for a value: text of records without control characters; markup is left as it is."""
    return printable(value) if type(value) is str else value


def _anchor(cells: Sequence[str]) -> str:
    """The page's name for a cell or a group of cells."""
    if len(cells) == 1:
        return f"cell-{cells[0]}"
    return f"cells-{hashlib.sha256(' '.join(cells).encode()).hexdigest()[:12]}"


def _groups(tables: Sequence[Table]) -> dict[str, tuple[str, ...]]:
    """Anchor -> the cells behind a number, for numbers of several cells."""
    groups = {}
    for table in tables:
        for row in table.rows:
            for number in row.numbers:
                if len(number.cells) > 1:
                    groups[_anchor(number.cells)] = number.cells
    return groups
