"""Tables as Markdown, CSV and LaTeX. Names in records come from strangers' files and are escaped for each format."""

from __future__ import annotations

import csv
import io
import re

from panda_fusion.printable import printable
from panda_fusion.report.table import Number, Table

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
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    # At the start of a row the \\ before it would take these for its own arguments.
    "[": "{[}",
    "*": "{*}",
    "±": r"$\pm$",
    "−": "$-$",
    "λ": r"$\lambda$",
    "–": "--",
}


def markdown(table: Table) -> str:
    """A table with its title and note."""
    heads = [*table.label_columns, *table.columns]
    lines = [f"### {markdown_text(table.title)}", "", markdown_text(table.note), ""]
    lines.append("| " + " | ".join(map(markdown_text, heads)) + " |")
    lines.append("|" + "---|" * len(table.label_columns) + "---:|" * len(table.columns))
    for row in table.rows:
        numbers = [f"**{markdown_text(n.text)}**" if n.best else markdown_text(n.text) for n in row.numbers]
        lines.append("| " + " | ".join([*map(markdown_text, row.labels), *numbers]) + " |")
    return "\n".join(lines) + "\n"


def markdown_text(text: str) -> str:
    """Text in one line of Markdown, with nothing in it that Markdown, or GitHub's kind of it, would act on."""
    escaped = re.sub(r"([\\`*_\[\]<>|#!&~$])", r"\\\1", one_line(text))
    return re.sub(r"(?i)(://|www\.|@)", lambda m: m[0][:-1] + "\\" + m[0][-1], escaped)


def csv_text(table: Table) -> str:
    """One line per number: labels, column, value, deviation, cells."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*table.label_columns, "column", "value", "deviation", "text", "cells"])
    for row in table.rows:
        for column, number in zip(table.columns, row.numbers, strict=True):
            values = ["" if v is None else repr(v) for v in (number.value, number.deviation)]
            texts = map(_csv, (column, number.text, " ".join(number.cells)))
            column_text, text, cells = texts
            writer.writerow([*map(_csv, row.labels), column_text, *values, text, cells])
    return out.getvalue()


def latex(table: Table) -> str:
    """A `tabular` for the package booktabs."""
    form = "l" * len(table.label_columns) + "r" * len(table.columns)
    lines = [f"% {one_line(table.title)}", rf"\begin{{tabular}}{{{form}}}", r"\toprule"]
    lines.append(" & ".join(map(_tex, [*table.label_columns, *table.columns])) + r" \\")
    lines.append(r"\midrule")
    for number, row in enumerate(table.rows):
        if row.group and number:
            lines.append(r"\midrule")
        lines.append(" & ".join([*map(_tex, row.labels), *map(_tex_number, row.numbers)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def one_line(text: str) -> str:
    """Text without line ends and other characters that are not shown."""
    return printable(" ".join(text.split()))


def _tex_number(number: Number) -> str:
    text = re.sub(r"-(?=\d)", "$-$", _tex(number.text))
    return rf"\textbf{{{text}}}" if number.best else text


def _tex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in one_line(text))


def _csv(text: str) -> str:
    """Text that a spreadsheet would take for a formula is marked as text."""
    line = one_line(text)
    if re.fullmatch(r"[+-]\d+(\.\d+)?", line):
        return line
    return f"'{line}" if line.startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")) else line
