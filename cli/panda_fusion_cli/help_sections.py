"""Help texts for people: options in sections, examples at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

TASK, BACKBONE, TRAINING, OUTPUT = "Task", "Backbone", "Training", "Output"
"""Sections that several commands share; options without a section stand under `OUTPUT`, the last."""


class SectionOption(click.Option):
    """An option that says in which section of the help it stands."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class SectionCommand(click.Command):
    """A command whose help lists its options by section, in the order in which they were declared.

    Attributes:
        examples: command lines, printed as they are.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        last: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                section = parameter.section if isinstance(parameter, SectionOption) else OUTPUT
                (last if section == OUTPUT else sections.setdefault(section, [])).append(record)
        sections[OUTPUT] = last
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    for line in example.splitlines():
                        formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def option(section: str, *names: str, **settings: Any) -> Callable[[Decorated], Decorated]:
    """`click.option` in a section of the help."""
    return click.option(*names, cls=SectionOption, section=section, **settings)


def stacked(*options: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    """Several decorators as one, in the order in which they would be written above the function."""

    def decorate(function: Decorated) -> Decorated:
        for one in reversed(options):
            function = one(function)
        return function

    return decorate
