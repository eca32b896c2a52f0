"""A click group whose commands are imported when they are used, and listed without being imported."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import click

from panda_fusion.errors import PluginError
from panda_fusion.nearest import nearest_names


class LazyCommand(NamedTuple):
    """A command that has not been imported.

    Attributes:
        module: the module with the click command `command`.
        help: one line for the group's `--help`.
    """

    module: str
    help: str


class LazyGroup(click.Group):
    """A group with a table of lazy commands; plugins add theirs with `add_command` or `@cli.command`."""

    def __init__(self, *args: Any, table: Mapping[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command.

        Raises:
            PluginError: there is a command of this name already.
        """
        name = name or cmd.name or ""
        if name in self.table or name in self.commands:
            raise PluginError(f"Command {name!r} exists already; register it under another name.")
        super().add_command(cmd, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.table, *sorted(self.commands)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return super().get_command(ctx, cmd_name)
        command = importlib.import_module(self.table[cmd_name].module).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = nearest_names(args[0], known)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, lazy.help) for name, lazy in self.table.items()]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)
        plugin_rows = [
            (name, self.commands[name].get_short_help_str(100))
            for name in sorted(self.commands)
            if not self.commands[name].hidden
        ]
        if plugin_rows:
            with formatter.section("Commands of plugins"):
                formatter.write_dl(plugin_rows)

    def invoke(self, ctx: click.Context) -> None:
        """Run the command. What it returns is dropped, so that only `ctx.exit(code)` sets an exit code."""
        super().invoke(ctx)
