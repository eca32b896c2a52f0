"""The example distribution works through the command line as any installed third party's does."""

import importlib.metadata
import json

import pytest

from panda_fusion_cli.main import main

NAME = "panda-fusion-example"


def installed() -> bool:
    try:
        importlib.metadata.distribution(NAME)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


pytestmark = pytest.mark.skipif(not installed(), reason=f"{NAME} is not installed (pip install -e examples/{NAME})")


def run(capsys, *args: str) -> dict:
    assert main([*args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_methods_are_listed_with_their_distribution(capsys):
    rows = {row["name"]: row for row in run(capsys, "plugins", "list")["methods"]}
    assert (rows["js"]["kind"], rows["js"]["distribution"]) == ("KD loss", NAME)
    assert (rows["layer-affine"]["kind"], rows["layer-affine"]["distribution"]) == ("PEFT method", NAME)


def test_options_are_shown(capsys):
    (method,) = run(capsys, "plugins", "show", "js")["methods"]
    assert [option["name"] for option in method["options"]] == ["temperature"]


def test_it_passes_the_conformance_checks(capsys):
    found = run(capsys, "plugins", "check", NAME)
    assert found["failed"] == 0
    assert {row["name"] for row in found["checks"]} == {"js", "layer-affine"}


def test_bad_option_is_one_line(capsys):
    from panda_fusion.errors import OptionError
    from panda_fusion.plugin_manager import kd_losses

    with pytest.raises(OptionError, match=r"'temperature' of KD loss 'js' must be .*, found '0'"):
        kd_losses().create("js:temperature=0")
