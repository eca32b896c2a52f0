"""What commands print: tables and lines for people, one JSON object for programs."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import IO, Any

import click

from panda_fusion.printable import printable

WIDE = 10_000
"""Width in columns where the output is no terminal: tables keep their natural width and nothing is cut."""


@dataclass
class ErrorMode:
    """Click's context object: whether a failure shows its traceback."""

    debug: bool = False


@dataclass
class Output:
    """Where a command's output goes.

    Without `--json`, tables and lines go to stdout. With it, stdout gets exactly one JSON object, the result,
    and everything else goes to stderr.

    Attributes:
        json: print the result as JSON.
        quiet: leave out lines; tables (unless `json`), results and warnings stay.
        stdout: where results go.
    """

    json: bool = False
    quiet: bool = False
    stdout: IO[str] = field(default_factory=lambda: sys.stdout)
    _done: bool = field(default=False, init=False, repr=False)

    def line(self, text: str = "") -> None:
        """One line of information; characters that a terminal would act on are escaped."""
        if not self.quiet:
            click.echo(printable(text), file=self._people())

    def warn(self, text: str) -> None:
        """One line `Warning: ...` on stderr."""
        click.echo(f"Warning: {printable(' '.join(text.split()))}", err=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        title: str | None = None,
        numeric: Iterable[str] = (),
    ) -> None:
        """A table; the columns named in `numeric` are aligned to the right."""
        if self.json and self.quiet:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        right = set(numeric)
        table = Table(
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
        )
        for column in columns:
            table.add_column(Text(column), justify="right" if column in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(_cell(value)) for value in row))
        if title:  # a title of rich's own is cut to the width of its table
            self._print(Text(title))
        self._print(table)

    def result(self, values: Mapping[str, object]) -> None:
        """The command's result: with `--json` the one JSON object on stdout, otherwise nothing (print a table
        or lines for people). Call it once. Numbers that JSON cannot hold (NaN, infinities) become null."""
        if self._done:
            raise RuntimeError("a command has one result")
        self._done = True
        if self.json:
            click.echo(json.dumps(json_value(values), allow_nan=False), file=self.stdout)

    def _people(self) -> IO[str]:
        return sys.stderr if self.json else self.stdout

    def _print(self, renderable: object) -> None:
        from rich.console import Console

        stream = self._people()
        console = Console(file=stream, width=None if stream.isatty() else WIDE, highlight=False, markup=False)
        with console.capture() as capture:
            console.print(renderable)
        # Tables are padded to their width, which in a file is nothing but trailing blanks.
        click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()), file=stream)


def json_value(value: object) -> Any:
    """A value as JSON holds it: NaN and infinities become None, paths text, tuples and sets lists,
    structs and data classes objects, arrays and tensors lists or numbers.

    Raises:
        TypeError: JSON cannot hold the value.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return [json_value(item) for item in sorted(value)]
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    if isinstance(value, PurePath):
        return printable(str(value))
    if hasattr(value, "tolist"):
        return json_value(value.tolist())
    import msgspec

    built_in = msgspec.to_builtins(value)
    if built_in is value:
        raise TypeError(f"JSON cannot hold a {type(value).__name__}")
    return json_value(built_in)


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json`, `-q/--quiet` and `--debug` to a command and pass `output`, an `Output`, to it.

    Put it under the command's own options, next to the function. With `--json` whatever libraries print
    on stdout while the command runs goes to stderr.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, json_flag: bool, quiet: bool, **kwargs: Any) -> Any:
        output = Output(json=json_flag, quiet=quiet)
        with redirect_stdout(sys.stderr) if json_flag else nullcontext():
            return function(*args, output=output, **kwargs)

    for option in reversed(
        (
            click.option("--json", "json_flag", is_flag=True, help="Print one JSON object on stdout."),
            click.option("-q", "--quiet", is_flag=True, help="Print results only."),
            debug_option,
        )
    ):
        option(wrapper)
    return wrapper


def debug_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--debug`, which lets a failing command show its traceback."""
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_debug,
        help="Show the traceback of an error (also PANDA_FUSION_DEBUG=1).",
    )(function)


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(ErrorMode).debug = True


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "-"
    return printable(str(value))
