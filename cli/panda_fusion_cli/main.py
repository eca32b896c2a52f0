"""The `panda-fusion` program: its commands, and what errors look like.

Exit codes: 0, 1 for an error (one line `Error: ...` on stderr), 2 for wrong usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

import click

from panda_fusion import __version__
from panda_fusion.errors import PandaFusionError
from panda_fusion.plugin_manager import BrokenPlugin, load_plugins
from panda_fusion.printable import printable
from panda_fusion_cli.lazy_group import LazyCommand, LazyGroup
from panda_fusion_cli.output import ErrorMode, debug_option

DEBUG_VARIABLE = "PANDA_FUSION_DEBUG"

COMMANDS = {
    name: LazyCommand(f"panda_fusion_cli.commands.{name}", help)
    for name, help in {
        "demo": "Try transfer on the tiny built-in tasks, offline.",
        "train": "Train a prompt on a task.",
        "rank": "Rank prompts by how well they should transfer to a task.",
        "transfer": "Train a prompt with the help of prompts of other tasks (PanDa).",
        "evaluate": "Score a prompt on a task's validation set.",
        "predict": "Predict the labels of rows with a prompt.",
        "matrix": "Run sources x targets x methods x seeds from a recipe.",
        "report": "Make tables and figures of a matrix.",
        "prompt": "Show, verify, export and import prompt files.",
        "tasks": "List the tasks, or show one.",
        "plugins": "List, show and check plugins and their methods.",
    }.items()
}
"""The built-in commands. The help stands here, so that `--help` imports none of them."""


def make_cli() -> click.Group:
    """The command group with the commands of all plugins.

    Raises:
        PluginError: PANDA_FUSION_PLUGINS names something that is not installed.
    """
    cli = LazyGroup(
        name="panda-fusion",
        table=COMMANDS,
        help="Transfer soft prompts between tasks of one frozen language model.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    click.version_option(__version__, prog_name="panda-fusion")(cli)
    debug_option(cli)
    load_plugins().call_each("register_commands", lambda _: {"cli": cli})
    return cli


def main(args: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Args:
        args: command line arguments; None takes those of the process.
    """
    mode = ErrorMode(debug=os.environ.get(DEBUG_VARIABLE, "") not in ("", "0"))
    try:
        cli = make_cli()
        _report_broken(load_plugins().broken)
        code = cli.main(
            args=None if args is None else list(args),
            prog_name="panda-fusion",
            standalone_mode=False,
            obj=mode,
        )
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return 130
    except (BrokenPipeError, SystemExit):
        # Click and rich exit with 1 where the reader of a pipe has gone. Python flushes stdout once more at
        # its end, which must not fail again.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except PandaFusionError as error:
        return _fail(str(error), mode)
    except Exception as error:  # the last place to turn a traceback into one line
        hint = "" if mode.debug else "; run again with --debug for the traceback"
        return _fail(f"unexpected {type(error).__name__}: {error}{hint}", mode)


_reported: set[BrokenPlugin] = set()


def _report_broken(broken: Sequence[BrokenPlugin]) -> None:
    """Print what was left out, each part once per process."""
    for item in broken:
        if item not in _reported:
            _reported.add(item)
            click.echo(f"Warning: left out {printable(str(item))}", err=True)


def _fail(message: str, mode: ErrorMode) -> int:
    if mode.debug:
        traceback.print_exc()
    click.echo(f"Error: {printable(' '.join(message.split()))}", err=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
