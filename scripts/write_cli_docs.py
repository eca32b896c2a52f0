"""Write docs/cli.md from the help texts of the commands, or check that it is up to date.

python scripts/write_cli_docs.py            # write
python scripts/write_cli_docs.py --check    # exit code 1 if it would change
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from panda_fusion_cli.main import COMMANDS, make_cli

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
WIDTH = 100
"""Columns of a help text in the page, whatever terminal the script runs in."""

INTRODUCTION = """\
# Command line

<!-- Written by scripts/write_cli_docs.py from the commands' own help; change the help and run it again. -->

`panda-fusion COMMAND --help` prints what stands here. The examples run offline, on the backbone (`--model
tiny`) and the tasks (`--task tiny/...`) that ship inside the package.

**Output.** Results go to stdout, progress and warnings to stderr: a progress bar on a terminal, plain lines
otherwise. `--json` prints exactly one JSON object on stdout, and everything else, tables included, goes to
stderr; numbers that JSON cannot hold are `null`. `-q` leaves out progress and remarks; tables, results and
warnings stay.

**Errors.** Exit code 0; 1 for an error, told in one line `Error: ...` on stderr; 2 for wrong usage; 130 after
Ctrl-C. `--debug` (or `PANDA_FUSION_DEBUG=1`) adds the traceback. Whatever can be known without loading the
model is checked first: options and methods, the output path, prompt files, data files. Files are written
whole or not at all.

**Methods** are named as `name` or `name:option=value,option=value`, for example `prefix:length=20` or
`kl:temperature=4`. `panda-fusion plugins list` shows what is installed and `panda-fusion plugins show NAME`
the options of one method.

**Tasks** are registered names (`panda-fusion tasks` lists them) or folders with a `task.toml`. With `--data
DIR` the rows come from `DIR/<task>/train.jsonl` and `DIR/<task>/validation.jsonl`, and nothing is downloaded.

**Ctrl-C** during the training of `train` and `transfer` ends it after the current step; the best prompt so
far is written, and the exit code is 130. A second Ctrl-C stops at once and writes nothing.

| command | what it does |
|---|---|
"""


def page() -> str:
    """The whole page."""
    rows = [f"| [`{name}`](#panda-fusion-{name}) | {lazy.help} |\n" for name, lazy in COMMANDS.items()]
    return INTRODUCTION + "".join(rows) + "".join(_sections())


def _sections() -> Iterator[str]:
    cli = make_cli()
    root = click.Context(cli, info_name="panda-fusion", terminal_width=WIDTH, **cli.context_settings)
    for name in COMMANDS:  # not the commands of plugins, which differ between machines
        command = cli.get_command(root, name)
        assert command is not None
        yield from _command(command, name, root)


def _command(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH)
    lines = command.get_help(context).splitlines()
    text = "\n".join(line.rstrip() for line in lines)
    yield f"\n## {context.command_path}\n\n```text\n{text}\n```\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from _command(found, child, context)


def main() -> int:
    """Write or check; the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/cli.md from the commands' help.")
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    if parser.parse_args().check:
        fresh = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
        print(f"docs/{PAGE.name} is {'up to date' if fresh else 'out of date'}")
        return 0 if fresh else 1
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote docs/{PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
