"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

import panda_fusion.backbone
from panda_fusion.errors import DataError
from panda_fusion_cli.main import main
from panda_fusion_cli.run_options import training_options, with_preset


@click.command()
@click.argument("task")
@training_options
def show(task: str, **options: Any) -> None:
    chosen = with_preset(options, task)
    click.echo(json.dumps([chosen["lr"], chosen["batch_size"], chosen["epochs"]]))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("cb", [None, 32, 10]),
        ("cb --preset paper", [1e-2, 16, 100]),
        ("rte --preset paper", [1e-2, 32, 60]),
        ("cb --preset paper --epochs 10", [1e-2, 16, 10]),
        ("cb --preset paper --lr 0.5 --batch-size 32", [0.5, 32, 100]),
    ],
)
def test_the_preset_gives_what_the_user_has_not_said(words: str, expected: list[object]) -> None:
    """Learning rate, batch size and epochs as the paper's Table I prints them."""
    assert json.loads(CliRunner().invoke(show, words.split()).output) == expected


def test_a_task_that_the_paper_does_not_have() -> None:
    with pytest.raises(DataError, match="no settings for task 'tiny/nli'"):
        CliRunner().invoke(show, ["tiny/nli", "--preset", "paper"], catch_exceptions=False)


def test_gradient_checkpointing_reaches_the_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Callable[[str], Path]
) -> None:
    """And the prompt is the one that training without it gives."""
    from panda_fusion.prompt_file import load_prompt

    loaded = []
    load = panda_fusion.backbone.load_backbone

    def spy(*args: Any, **named: Any) -> Any:
        loaded.append(load(*args, **named))
        return loaded[-1]

    monkeypatch.setattr(panda_fusion.backbone, "load_backbone", spy)
    line = "train --task tiny/sentiment --max-steps 3 --precision fp32 --device cpu --method prefix:length=3 --quiet"
    words = [*line.split(), "--model", str(tiny_folder("bert")), "--max-length", "24"]
    for name, flag in (("without", []), ("with", ["--gradient-checkpointing"])):
        assert main([*words, *flag, "--out", str(tmp_path / f"{name}.safetensors")]) == 0
    assert [backbone.gradient_checkpointing for backbone in loaded] == [False, True]
    without, made = (load_prompt(tmp_path / f"{name}.safetensors") for name in ("without", "with"))
    for name, tensor in without.tensors.items():
        assert torch.allclose(tensor, made.tensors[name], atol=1e-5)
