import json
from typing import Annotated, Literal

import pytest
from msgspec import Meta

from panda_fusion import hookimpl
from panda_fusion.kd_loss import KDLoss, mean_per_prompt
from panda_fusion.method import Options
from panda_fusion.plugin_manager import temporary_plugin
from panda_fusion.similarity import Similarity
from panda_fusion.task import Task
from panda_fusion_cli.main import main


class DoubleOptions(Options, frozen=True, kw_only=True):
    factor: Annotated[float, Meta(gt=0, description="how much")] = 2.0
    mode: Annotated[Literal["one", "two"], Meta(description="which way")] = "one"


class DoubleLoss(KDLoss):
    """Squared error, times a factor."""

    Options = DoubleOptions

    def targets(self, logits, kind):
        return logits

    def loss(self, student, targets, kind, mask=None):
        return self.options.factor * mean_per_prompt((student - targets).square().sum(-1), mask)


class DoubleSimilarity(Similarity):
    """Two for everything."""

    needs_target = False

    def score(self, source, target, context):
        return 2.0


class BrokenSimilarity(DoubleSimilarity):
    def score(self, source, target, context):
        return "two"


class Plugin:
    @hookimpl
    def register_kd_losses(self, register):
        register("double", DoubleLoss, help="twice the error")

    @hookimpl
    def register_similarities(self, register):
        register("double", DoubleSimilarity, help="always two")
        register("broken", BrokenSimilarity, help="not a number")
        register("absent", "no_such_module_here:X", help="cannot be imported")

    @hookimpl
    def register_tasks(self, register):
        register(
            Task(
                name="mine",
                kind="classification",
                inputs=("text",),
                labels=("no", "yes"),
                description="a task",
            )
        )


@pytest.fixture(autouse=True)
def plugin():
    with temporary_plugin(Plugin(), "tester"):
        yield


def read(capsys, *args: str) -> tuple[int, dict]:
    code = main([*args, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_list_has_methods_tasks_and_broken_plugins(capsys):
    code, found = read(capsys, "plugins", "list")
    assert code == 0
    rows = {(row["kind"], row["name"]): row for row in found["methods"]}
    assert rows["KD loss", "double"]["plugin"] == "tester"
    assert rows["KD loss", "double"]["help"] == "twice the error"
    assert rows["PEFT method", "prefix"]["distribution"] == "panda-fusion"
    assert rows["PEFT method", "prefix"]["version"]
    assert {"name": "mine", "kind": "classification", "help": "a task"}.items() <= next(
        row for row in found["tasks"] if row["name"] == "mine"
    ).items()
    assert found["broken"] == []


def test_list_for_people(capsys):
    assert main(["plugins", "list"]) == 0
    out = capsys.readouterr().out
    assert "twice the error" in out
    assert "classification" in out


def test_list_shows_what_was_left_out(capsys):
    class Colliding:
        @hookimpl
        def register_kd_losses(self, register):
            register("double", DoubleLoss, help="")

    with temporary_plugin(Colliding(), "second"):
        _, found = read(capsys, "plugins", "list")
        assert [(row["plugin"], "'tester'" in row["error"]) for row in found["broken"]] == [("second", True)]
        assert main(["plugins", "list"]) == 0
        assert "Left out" in capsys.readouterr().out


def test_show_shows_every_kind_of_that_name(capsys):
    code, found = read(capsys, "plugins", "show", "double")
    assert code == 0
    assert [method["kind"] for method in found["methods"]] == ["KD loss", "similarity"]
    loss = found["methods"][0]
    assert loss["documentation"] == "Squared error, times a factor."
    assert loss["file"] == __file__
    assert loss["options"] == [
        {"name": "factor", "type": "a number above 0", "default": "2.0", "description": "how much"},
        {"name": "mode", "type": "one of one, two", "default": "one", "description": "which way"},
    ]


def test_show_for_people(capsys):
    assert main(["plugins", "show", "double"]) == 0
    out = capsys.readouterr().out
    for text in ("twice the error", "always two", "a number above 0", "It takes no options.", __file__):
        assert text in out


def test_show_a_task(capsys):
    code, found = read(capsys, "plugins", "show", "mine")
    assert code == 0
    assert found["tasks"][0]["labels"] == ["no", "yes"]


def test_show_an_unknown_name(capsys):
    assert main(["plugins", "show", "duoble"]) == 1
    assert "nearest: double" in capsys.readouterr().err


def test_check_passes_and_counts(capsys):
    code, found = read(capsys, "plugins", "check", "double")
    assert code == 0
    assert found["failed"] == 0
    assert found["passed"] == len(found["checks"]) > 40
    assert {row["kind"] for row in found["checks"]} == {"KD loss", "similarity"}
    assert any(row["check"].startswith("mode=two: ") for row in found["checks"])


def test_check_fails_with_the_first_failure_in_the_error(capsys):
    assert main(["plugins", "check", "broken"]) == 1
    captured = capsys.readouterr()
    assert "FAIL  score is a finite float" in captured.out
    assert "score returns a str; expected a float" in captured.out
    assert captured.err.startswith("Error: ")
    assert "(first: similarity broken: score is a finite float)" in captured.err
    assert captured.err.count("\n") == 1


def test_check_of_a_method_that_does_not_import(capsys):
    code, found = read(capsys, "plugins", "check", "absent")
    assert code == 1
    assert [(row["check"], row["passed"]) for row in found["checks"]] == [("loads", False)]
    assert "no_such_module_here" in found["checks"][0]["message"]


def test_check_by_plugin_takes_all_its_methods(capsys):
    code, found = read(capsys, "plugins", "check", "tester")
    assert code == 1
    assert {row["name"] for row in found["checks"]} == {"double", "broken", "absent"}


def test_check_an_unknown_name(capsys):
    assert main(["plugins", "check", "panda-fusoin"]) == 1
    assert "nearest: panda-fusion" in capsys.readouterr().err
