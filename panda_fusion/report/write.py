"""Writing a report into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from panda_fusion.atomic_write import write_text
from panda_fusion.report.figures import Figure, all_figures, write_figures
from panda_fusion.report.headlines import headlines
from panda_fusion.report.page import page
from panda_fusion.report.results import Results
from panda_fusion.report.table import Table
from panda_fusion.report.tables import all_tables
from panda_fusion.report.text_files import csv_text, latex, markdown, markdown_text


def write_report(results: Results, folder: Path) -> list[Table]:
    """Write index.html, report.md, a CSV and a LaTeX file per table, an SVG and a PNG file per figure.

    Args:
        results: the records.
        folder: where; made where it does not exist.

    Returns:
        The tables.

    Raises:
        OutputError: a file cannot be written.
    """
    tables = all_tables(results)
    figures = all_figures(results)
    for table in tables:
        write_text(folder / f"{table.name}.csv", csv_text(table))
        write_text(folder / f"{table.name}.tex", latex(table))
    write_figures(figures, folder)
    write_text(folder / "report.md", _markdown(results, tables, figures))
    write_text(folder / "index.html", page(results, tables, figures))
    return tables


def _markdown(results: Results, tables: Sequence[Table], figures: Sequence[Figure]) -> str:
    """The report as Markdown, but for the list of finished cells."""
    parts = ["# Transfer report\n"]
    parts += [f"- {markdown_text(f'{one.label}: {one.value} ({one.detail})')}" for one in headlines(results)]
    parts += [f"- {markdown_text(f'failed: {r.cell}, {r.system} {r.target}: {r.error}')}" for r in results.failed]
    if results.damaged:
        parts.append(f"- {markdown_text(results.damage)}")
    parts += ["", *map(markdown, tables)]
    for figure in figures:
        title = markdown_text(figure.title)
        parts.append(f"### {title}\n\n{markdown_text(figure.note)}\n\n![{title}]({figure.name}.svg)\n")
    return "\n".join(parts)
