import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest

from panda_fusion import __version__, hookimpl
from panda_fusion.errors import DataError
from panda_fusion.plugin_manager import temporary_plugin
from panda_fusion_cli import main as main_module
from panda_fusion_cli.main import COMMANDS, main
from panda_fusion_cli.output import Output, json_value, output_options

BOOT = "import sys; from panda_fusion_cli.main import main; "


class Commands:
    """Commands that fail in every way there is."""

    @hookimpl
    def register_commands(self, cli):
        @cli.command(help="Fails as told.")
        @click.argument("how")
        @output_options
        def fail(how, output):
            raise {
                "known": DataError("File 'a' is\nempty; \x1b[31mwrite rows."),
                "unexpected": KeyError("x"),
                "interrupt": KeyboardInterrupt(),
                "usage": click.UsageError("not like this"),
                "abort": click.Abort(),
            }[how]

        @cli.command(help="Prints all there is.")
        @output_options
        def show(output):
            print("noise of a library")
            output.line("a line")
            output.table(("name", "score"), [("first", 0.123456), ("second", math.nan)], numeric=["score"])
            output.warn("look\nout")
            output.result({"score": math.nan, "path": Path("a/b"), "list": (1, np.float32(0.5))})

        @cli.command("exit-code", help="Exits with 7.")
        @click.pass_context
        def exit_code(context):
            context.exit(7)

        @cli.command("returns", help="Returns a number.")
        def returns():
            return 5


@pytest.fixture(autouse=True)
def commands(monkeypatch):
    monkeypatch.delenv("PANDA_FUSION_DEBUG", raising=False)
    with temporary_plugin(Commands(), "commands"):
        yield


def test_help_lists_every_command_without_importing_one(capsys):
    loaded = {name for name in sys.modules if name.startswith("panda_fusion_cli.commands.")}
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, lazy in COMMANDS.items():
        assert f"  {name} " in out
        assert lazy.help in out
    assert "Commands of plugins" in out
    assert "Fails as told." in out
    assert loaded == {name for name in sys.modules if name.startswith("panda_fusion_cli.commands.")}


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"panda-fusion, version {__version__}"


def test_known_error_is_one_line_with_control_characters_escaped(capsys):
    assert main(["fail", "known"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "Error: File 'a' is empty; \\x1b[31mwrite rows.\n"
    assert captured.out == ""


def test_unexpected_error_is_one_line(capsys):
    assert main(["fail", "unexpected"]) == 1
    err = capsys.readouterr().err
    assert err == "Error: unexpected KeyError: 'x'; run again with --debug for the traceback\n"


@pytest.mark.parametrize("args", [["fail", "known", "--debug"], ["--debug", "fail", "known"]])
def test_debug_shows_the_traceback_and_the_line(capsys, args):
    assert main(args) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("Error: File 'a' is empty")


def test_debug_variable(capsys, monkeypatch):
    monkeypatch.setenv("PANDA_FUSION_DEBUG", "1")
    assert main(["fail", "unexpected"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("args", [["fail", "usage"], ["fail"], ["fail", "known", "--nonsense"], ["nonsense"]])
def test_wrong_usage_exits_with_2(capsys, args):
    assert main(args) == 2
    captured = capsys.readouterr()
    assert "Usage:" in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_misspelt_command_names_the_nearest(capsys):
    assert main(["evalute"]) == 2
    assert "No such command 'evalute'. Did you mean evaluate" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["interrupt", "abort"])
def test_interrupt_exits_with_130(capsys, how):
    assert main(["fail", how]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_exit_code_of_a_command_is_kept_and_its_return_value_is_not(capsys):
    assert main(["exit-code"]) == 7
    assert main(["returns"]) == 0


def test_json_is_the_only_thing_on_stdout(capsys):
    assert main(["show", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"score": None, "path": "a/b", "list": [1, 0.5]}
    assert captured.out.count("\n") == 1
    for text in ("noise of a library", "a line", "first", "Warning: look out"):
        assert text in captured.err


def test_without_json_people_get_lines_and_tables_on_stdout(capsys):
    assert main(["show"]) == 0
    captured = capsys.readouterr()
    assert "a line" in captured.out
    rows = [line.split() for line in captured.out.splitlines()]
    assert ["first", "0.1235"] in rows
    assert ["second", "-"] in rows
    assert captured.err == "Warning: look out\n"


def test_quiet_leaves_lines_out_and_keeps_results(capsys):
    assert main(["show", "-q"]) == 0
    out = capsys.readouterr().out
    assert "a line" not in out
    assert "first" in out
    assert main(["show", "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == "a/b"


def test_tables_are_not_cut_where_the_output_is_no_terminal(capsys):
    long = "x" * 500
    Output().table(("name",), [(long,)])
    assert long in capsys.readouterr().out


def test_table_cells_and_lines_escape_what_a_terminal_would_act_on(capsys):
    output = Output()
    output.table(("name",), [("\x1b]0;title\x07[bold]x",)])
    output.line("\x1b[2J")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[bold]x" in out


def test_a_second_result_is_a_mistake():
    output = Output(json=True)
    output.result({})
    with pytest.raises(RuntimeError):
        output.result({})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.inf, None),
        ({"a": [math.nan, {1: -math.inf}]}, {"a": [None, {"1": None}]}),
        (True, True),
        ({"b", "a"}, ["a", "b"]),
        (np.array([1.5, math.nan]), [1.5, None]),
        (np.int64(3), 3),
    ],
)
def test_json_value(value, expected):
    assert json_value(value) == expected


def test_json_value_refuses_what_it_cannot_hold():
    with pytest.raises(TypeError):
        json_value(object())


def test_a_plugin_command_cannot_replace_another_and_is_reported_once(capsys, monkeypatch):
    class Replacing:
        @hookimpl
        def register_commands(self, cli):
            @cli.command("train")
            def train():
                raise AssertionError

    monkeypatch.setattr(main_module, "_reported", set())
    with temporary_plugin(Replacing(), "replacing"):
        assert main(["--version"]) == 0
        err = capsys.readouterr().err
        assert err.count("plugin 'replacing'") == 1
        assert "'train' exists already" in err
        assert main(["--version"]) == 0
        assert "replacing" not in capsys.readouterr().err


def test_a_plugin_that_fails_to_add_commands_is_not_fatal(capsys, monkeypatch):
    class Failing:
        @hookimpl
        def register_commands(self, cli):
            raise RuntimeError("no commands today")

    monkeypatch.setattr(main_module, "_reported", set())
    with temporary_plugin(Failing(), "failing"):
        assert main(["show", "-q"]) == 0
    assert "Warning: left out plugin 'failing': register_commands failed: RuntimeError: no commands today" in (
        capsys.readouterr().err
    )


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BOOT + code],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        check=False,
    )


def test_a_bad_plugin_list_is_an_error_and_no_traceback():
    done = run("sys.exit(main(['--help']))", PANDA_FUSION_PLUGINS="no-such-plugin")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: PANDA_FUSION_PLUGINS lists 'no-such-plugin'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [["--help"], ["plugins", "list"], ["plugins", "--help"], ["tasks", "--help"]])
def test_light_commands_import_nothing_heavy(args):
    heavy = "{'torch', 'transformers', 'datasets', 'scipy', 'sklearn', 'numpy', 'safetensors'}"
    done = run(f"code = main({args!r}); print(code, sorted({heavy} & set(sys.modules)), file=sys.stderr)")
    assert done.stderr.splitlines()[-1] == "0 []"


def test_help_is_quick():
    """The best of five, so that a busy machine does not fail it; the limit is what users feel as at once."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = run("sys.exit(main(['--help']))")
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0
    assert min(seconds) < 0.4


def test_a_reader_that_goes_away_is_no_error():
    code = BOOT + "sys.exit(main(['plugins', 'list', '--json']))"
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run([sys.executable, "-c", code], stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
    assert "Exception ignored" not in done.stderr
