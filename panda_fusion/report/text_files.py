"""Tables as Markdown, CSV and LaTeX. Names in records come from strangers' files and are escaped for each format."""

from __future__ import annotations

import csv
import io
import re

from panda_fusion.report.tables import Number, Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "λ": r"$\lambda$",
    "–": "--",
}


def markdown(table: Table) -> str:
    """A table with its title and note."""
    heads = [*table.label_columns, *table.columns]
    lines = [f"### {_md(table.title)}", "", _md(table.note), ""]
    lines.append("| " + " | ".join(map(_md, heads)) + " |")
    lines.append("|" + "---|" * len(table.label_columns) + "---:|" * len(table.columns))
    for row in table.rows:
        numbers = [f"**{_md(n.text)}**" if n.best else _md(n.text) for n in row.numbers]
        lines.append("| " + " | ".join([*map(_md, row.labels), *numbers]) + " |")
    return "\n".join(lines) + "\n"


def csv_text(table: Table) -> str:
    """One line per number: labels, column, value, deviation, cells."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*table.label_columns, "column", "value", "deviation", "text", "cells"])
    for row in table.rows:
        for column, number in zip(table.columns, row.numbers, strict=True):
            values = ["" if v is None else repr(v) for v in (number.value, number.deviation)]
            cells = " ".join(number.cells)
            writer.writerow([*map(_csv, row.labels), _csv(column), *values, _csv(number.text), cells])
    return out.getvalue()


def latex(table: Table) -> str:
    """A `tabular` for the package booktabs."""
    form = "l" * len(table.label_columns) + "r" * len(table.columns)
    lines = [f"% {_one_line(table.title)}", rf"\begin{{tabular}}{{{form}}}", r"\toprule"]
    lines.append(" & ".join(map(_tex, [*table.label_columns, *table.columns])) + r" \\")
    lines.append(r"\midrule")
    for number, row in enumerate(table.rows):
        if row.group and number:
            lines.append(r"\midrule")
        lines.append(" & ".join([*map(_tex, row.labels), *map(_tex_number, row.numbers)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex_number(number: Number) -> str:
    return rf"\textbf{{{_tex(number.text)}}}" if number.best else _tex(number.text)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _tex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in _one_line(text))


def _md(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#!])", r"\\\1", _one_line(text))


def _csv(text: str) -> str:
    """Text that a spreadsheet would take for a formula is marked as text."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
