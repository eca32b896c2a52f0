"""Options that several commands share, and what they are turned into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.device import DeviceName, PrecisionName
    from panda_fusion.prompt import Prompt
    from panda_fusion.rows import Split, TaskData
    from panda_fusion.run import RunSettings
    from panda_fusion.task import Task

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
PROMPT_FILE = click.Path(path_type=Path)
"""A file to read; that it is there and sound is checked when it is loaded, with a better message."""


def model_options(function: Decorated) -> Decorated:
    """`--model`, `--device` and `--precision`."""
    for option in (
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16"]),
            default="auto",
            show_default=True,
            help="Of the frozen backbone; prompts and losses always are fp32.",
        ),
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="Where to run.",
        ),
        click.option(
            "--model",
            required=True,
            help="Backbone: 'tiny', a transformers folder, or a name on the Hub.",
        ),
    ):
        function = option(function)
    return function


def task_options(function: Decorated) -> Decorated:
    """`--task`, `--data` and `--max-length`."""
    for option in (
        click.option(
            "--max-length",
            type=click.IntRange(min=4),
            default=128,
            show_default=True,
            help="Tokens kept of a text.",
        ),
        click.option(
            "--data",
            "data_dir",
            type=click.Path(path_type=Path),
            help="Folder with <task>/{train,validation}.jsonl; without it, the Hub.",
        ),
        click.option("--task", "task_name", required=True, help="A registered task or a folder with a task.toml."),
    ):
        function = option(function)
    return function


def training_options(function: Decorated) -> Decorated:
    """`--seed`, `--epochs`, `--max-steps`, `--batch-size`, `--lr`, ... of commands that train."""
    for option in (
        click.option(
            "--select-on",
            type=click.Choice(["validation", "train-split"]),
            default="validation",
            show_default=True,
            help="The split that chooses the best step: the validation set, or a tenth of the training set.",
        ),
        click.option(
            "--eval-every",
            type=click.IntRange(min=1),
            help="Steps between evaluations.  [default: one epoch]",
        ),
        click.option(
            "--backbone-dropout",
            type=click.FloatRange(0, 1, max_open=True),
            default=0.0,
            show_default=True,
            help="Dropout inside the frozen backbone (slow).",
        ),
        click.option(
            "--dropout",
            type=click.FloatRange(0, 1, max_open=True),
            default=0.1,
            show_default=True,
            help="Dropout in the head.",
        ),
        click.option(
            "--lr",
            type=click.FloatRange(0, min_open=True),
            default=1e-2,
            show_default=True,
            help="Peak learning rate; it falls linearly to 0.",
        ),
        click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Rows per step."),
        click.option("--max-steps", type=click.IntRange(min=1), help="Stop after so many steps."),
        click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True, help="Passes over the data."),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**32 - 1),
            default=0,
            show_default=True,
            help="Seeds prompt, head and data order.",
        ),
    ):
        function = option(function)
    return function


def run_settings(options: dict[str, Any]) -> RunSettings:
    """`RunSettings` from the values of `training_options` and `task_options`."""
    from panda_fusion.run import RunSettings
    from panda_fusion.trainer import TrainSettings

    return RunSettings(
        training=TrainSettings(
            epochs=options["epochs"],
            max_steps=options["max_steps"],
            batch_size=options["batch_size"],
            dropout=options["dropout"],
            backbone_dropout=options["backbone_dropout"],
            eval_every=options["eval_every"],
        ),
        learning_rate=options["lr"],
        max_length=options["max_length"],
        select_on=options["select_on"],
    )


def open_backbone(model: str, device: DeviceName, precision: PrecisionName) -> Backbone:
    """Load the backbone that the options name."""
    from panda_fusion.backbone import load_backbone
    from panda_fusion.device import choose_device, choose_precision

    chosen = choose_device(device)
    return load_backbone(model, device=chosen, dtype=choose_precision(precision, chosen))


def open_task(task_name: str, data_dir: Path | None) -> TaskData:
    """Load the task that the options name, and its rows."""
    from panda_fusion.rows import load_task_data
    from panda_fusion.task_source import resolve_task

    return load_task_data(resolve_task(task_name, data_dir), data_dir)


def open_prompt(path: Path, backbone: Backbone) -> Prompt:
    """Load a prompt and check that it belongs to the backbone, head included."""
    from panda_fusion.prompt_file import check_backbone, check_head, load_prompt

    prompt = load_prompt(path)
    check_backbone(prompt, backbone.info)
    outputs = max(1, len(prompt.task.labels))
    check_head(str(path), prompt.head, backbone.head(outputs).shapes)
    return prompt


def open_validation(task_name: str, data_dir: Path | None) -> tuple[Task, Split]:
    """The task that the options name and its validation rows."""
    from panda_fusion.rows import load_split
    from panda_fusion.task_source import resolve_task

    task = resolve_task(task_name, data_dir)
    return task, load_split(task, "validation", data_dir)
