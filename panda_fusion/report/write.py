"""Writing a report into a folder."""

from __future__ import annotations

from pathlib import Path

from panda_fusion.atomic_write import write_text
from panda_fusion.report.figures import all_figures, write_figures
from panda_fusion.report.page import headlines, page
from panda_fusion.report.results import Results
from panda_fusion.report.tables import Table, all_tables
from panda_fusion.report.text_files import csv_text, latex, markdown


def write_report(results: Results, folder: Path, expected: int | None = None) -> list[Table]:
    """Write index.html, report.md, a CSV and a LaTeX file per table, an SVG and a PNG file per figure.

    Args:
        results: the records.
        folder: where; made where it does not exist.
        expected: cells that the matrix has in all; None: not known.

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
    top = " · ".join(f"{one.label} {one.value} ({one.detail})" for one in headlines(results, expected))
    pictures = [f"### {figure.title}\n\n{figure.note}\n\n![{figure.title}]({figure.name}.svg)\n" for figure in figures]
    text = "\n".join(["# Transfer report\n", f"{top}\n", *map(markdown, tables), *pictures])
    write_text(folder / "report.md", text)
    write_text(folder / "index.html", page(results, tables, figures, expected))
    return tables
