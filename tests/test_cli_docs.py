"""The help texts: complete, short enough, with examples that work; docs/cli.md says the same."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

from panda_fusion.plugin_manager import tasks
from panda_fusion_cli.help_sections import SectionCommand
from panda_fusion_cli.main import COMMANDS, main, make_cli

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "write_cli_docs.py"
WITH_SECTIONS = ("train", "rank", "transfer", "evaluate", "predict")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_cli_docs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every built-in command, subcommands as `prompt show`."""
    cli = make_cli()
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {child}", command.commands[child]) for child in command.commands)


def test_the_page_is_up_to_date(script: ModuleType) -> None:
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run: python scripts/write_cli_docs.py"


def test_the_page_does_not_depend_on_the_terminal(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    page = script.page()
    monkeypatch.setenv("COLUMNS", "40")
    assert script.page() == page


def test_the_page_is_narrow_and_names_every_option(script: ModuleType) -> None:
    page = script.page()
    assert max(map(len, page.splitlines())) <= 110
    for name, command in commands():
        section = page.split(f"\n## panda-fusion {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert all(text in section for text in parameter.opts), (name, parameter.name)


@pytest.mark.parametrize("name", WITH_SECTIONS)
def test_defaults_are_shown(name: str) -> None:
    """Every option has a help, and is a flag, required, shows its default, or is an optional file."""
    command = dict(commands())[name]
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help
        if isinstance(parameter, click.Option) and not parameter.is_flag and not parameter.required:
            optional_file = isinstance(parameter.type, click.Path)
            assert optional_file or parameter.show_default, parameter.name


@pytest.mark.parametrize("name", WITH_SECTIONS)
def test_examples_can_be_typed(name: str) -> None:
    """Options exist and have good values; the tasks are registered; a shell reads the lines as meant."""
    command = dict(commands())[name]
    assert isinstance(command, SectionCommand)
    assert command.examples
    for example in command.examples:
        program, own_name, *words = shlex.split(example.replace("\\\n", " "))
        assert (program, own_name) == ("panda-fusion", name)
        parameters = command.make_context(name, words).params
        task = parameters.get("task_name")
        assert task is None or task.startswith("./") or task in tasks().names()
        assert parameters["model"] == "tiny"


@pytest.mark.parametrize("name", WITH_SECTIONS)
def test_help_has_sections_in_order(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    sections = [line.removesuffix(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert sections[-2:] == ["Output", "Examples"]
    assert "Backbone" in sections
    assert len(sections) == len(set(sections))
