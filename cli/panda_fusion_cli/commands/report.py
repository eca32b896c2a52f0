"""`panda-fusion report`: tables and figures of a matrix."""

from __future__ import annotations

from pathlib import Path

import click

from panda_fusion_cli.help_sections import OUTPUT, SectionCommand, option
from panda_fusion_cli.output import Output, output_options
from panda_fusion_cli.run_options import FILE

EXAMPLES = (
    "panda-fusion report results",
    "panda-fusion report results --out report --json",
)


@click.command("report", cls=SectionCommand, examples=EXAMPLES)
@click.argument("folder", metavar="DIR", type=FILE)
@option(OUTPUT, "--out", metavar="FOLDER", type=FILE, show_default="DIR/report", help="Where the report is written.")
@output_options
def command(output: Output, folder: Path, out: Path | None) -> None:
    """Write a report on the matrix in DIR, finished or not.

    It is a page that needs nothing else, and the same as Markdown; every table also as CSV and LaTeX, every figure as
    SVG and PNG.
    """
    from panda_fusion.report.results import load_results
    from panda_fusion.report.write import write_report

    results = load_results(folder)
    if results.damaged:
        lines = ", ".join(map(str, results.damaged[:10]))
        output.warn(
            f"{len(results.damaged)} lines of {folder / 'records.jsonl'} are no records and left out (line {lines})."
        )
    target = folder / "report" if out is None else out
    tables = write_report(results, target)
    output.line(f"{len(results.done)} cells, {len(results.failed)} failed: {target / 'index.html'}")
    output.result(
        {
            "folder": str(folder),
            "report": str(target / "index.html"),
            "cells": len(results.done),
            "failed": len(results.failed),
            "tables": [table.name for table in tables],
        }
    )
