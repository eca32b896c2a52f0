"""Options that several commands share, and what they are turned into.

Commands check in this order: options and methods, output path, prompt headers and model name, rows. All of
that takes no torch, so mistakes show in a fraction of a second; only then prompts and backbone are loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from panda_fusion_cli.help_sections import BACKBONE, OUTPUT, TASK, TRAINING, option, stacked

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.device import DeviceName, PrecisionName
    from panda_fusion.prompt import Prompt
    from panda_fusion.prompt_metadata import PromptMetadata
    from panda_fusion.rows import Split, TaskData
    from panda_fusion.run import RunSettings
    from panda_fusion.task import Task

FILE = click.Path(path_type=Path)
"""A file; that it is there and sound is checked when it is used, with a better message."""
MAX_LENGTH = 128
"""Tokens kept of a text unless the user or the prompt says otherwise."""
LENGTHS = click.IntRange(4, 2**20)


class FiniteFloat(click.FloatRange):
    """A range of numbers without NaN and infinities, which every comparison with a bound lets through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def max_length_option(section: str, default: int | None, shown: str | bool = True) -> Any:
    """`--max-length`; None as default stands for what the prompt was trained with."""
    return option(
        section,
        "--max-length",
        metavar="N",
        type=LENGTHS,
        default=default,
        show_default=shown,
        help="Tokens kept of a text.",
    )


checkpointing_option = option(
    BACKBONE,
    "--gradient-checkpointing",
    is_flag=True,
    help="Compute layers again in the backward pass: less memory, about a third more time.",
)
compile_option = option(
    BACKBONE,
    "--compile",
    "compile_",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Compile the frozen layers for prefix and prompt; auto does not, since it did not pay where it was measured.",
)
device_options = stacked(
    option(
        BACKBONE,
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to run; auto takes CUDA where there is one.",
    ),
    option(
        BACKBONE,
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16"]),
        default="auto",
        show_default=True,
        help="Of the frozen backbone; prompts, heads and losses always are fp32.",
    ),
)
"""`--device` and `--precision`."""

model_options = stacked(
    option(
        BACKBONE,
        "--model",
        metavar="NAME",
        required=True,
        help="'tiny', a transformers folder, or a name on the Hub.",
    ),
    device_options,
)
"""`--model`, `--device` and `--precision`."""

task_options = stacked(
    option(
        TASK,
        "--task",
        "task_name",
        metavar="TASK",
        required=True,
        help="A registered task (see `panda-fusion tasks`) or a folder with a task.toml.",
    ),
    option(
        TASK,
        "--data",
        "data_dir",
        metavar="DIR",
        type=FILE,
        help="Folder with DIR/<task>/train.jsonl and validation.jsonl; without it, a registered task comes"
        " from the Hub.",
    ),
)
"""`--task` and `--data`."""

task_length_option = max_length_option(TASK, MAX_LENGTH)
"""`--max-length` of commands that train."""

_SEED = option(
    TRAINING,
    "--seed",
    metavar="N",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Draws the prompt, the head and the order of the data.",
)
_BATCH_SIZE = option(
    TRAINING,
    "--batch-size",
    metavar="N",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Rows per step.",
)
_LEARNING_RATE = option(
    TRAINING,
    "--lr",
    metavar="X",
    type=FiniteFloat(0, min_open=True),
    default=None,
    show_default="that of the method",
    help="Peak learning rate; it falls linearly to 0.",
)

probe_options = stacked(_SEED, _BATCH_SIZE, _LEARNING_RATE)
"""What a probe can be told: `--seed`, `--batch-size` and `--lr`."""

training_options = stacked(
    checkpointing_option,
    compile_option,
    option(
        TRAINING,
        "--preset",
        type=click.Choice(["paper"]),
        show_default="none",
        help="Learning rate, batch size and epochs of the task from the paper's Table I, where they are not given.",
    ),
    option(
        TRAINING,
        "--epochs",
        metavar="N",
        type=click.IntRange(min=1),
        default=10,
        show_default=True,
        help="Passes over the training set.",
    ),
    option(
        TRAINING,
        "--max-steps",
        metavar="N",
        type=click.IntRange(min=1),
        show_default="no limit",
        help="Stop after so many steps, whatever the epochs.",
    ),
    _BATCH_SIZE,
    _LEARNING_RATE,
    option(
        TRAINING,
        "--dropout",
        metavar="X",
        type=FiniteFloat(0, 1, max_open=True),
        default=0.1,
        show_default=True,
        help="Dropout in front of the head.",
    ),
    option(
        TRAINING,
        "--backbone-dropout",
        metavar="X",
        type=FiniteFloat(0, 1, max_open=True),
        default=0.0,
        show_default=True,
        help="Dropout inside the frozen backbone; slow.",
    ),
    option(
        TRAINING,
        "--eval-every",
        metavar="N",
        type=click.IntRange(min=1),
        show_default="an epoch",
        help="Steps between evaluations.",
    ),
    option(
        TRAINING,
        "--select-on",
        type=click.Choice(["validation", "train-split"]),
        default="validation",
        show_default=True,
        help="What chooses the best step: the validation set, or a tenth of the training set, which is then"
        " left out of the training.",
    ),
    _SEED,
)
"""`--seed`, `--epochs`, `--max-steps`, `--batch-size`, `--lr`, ... of commands that train."""

target_prompt_option = option(
    "Similarity",
    "--target-prompt",
    metavar="FILE",
    type=FILE,
    help="A prompt trained on the target; without it a short probe is trained.",
)
probe_steps_option = option(
    "Similarity",
    "--probe-steps",
    metavar="N",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Training steps of the probe.",
)
similarity_option = option(
    "Similarity",
    "--similarity",
    metavar="METHOD",
    default="panda",
    show_default=True,
    help="How a source is compared with the target.",
)
cache_option = option(
    "Similarity",
    "--no-cache",
    is_flag=True,
    help="Make tokens, task embeddings and teachers' predictions anew, and keep none for the next time.",
)
similarity_options = stacked(similarity_option, target_prompt_option, probe_steps_option, cache_option)
"""`--similarity`, `--target-prompt`, `--probe-steps` and `--no-cache`."""

out_option = option(
    OUTPUT, "--out", metavar="FILE", type=FILE, required=True, help="The prompt file to write (.safetensors)."
)


def with_preset(options: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    """The options with what `--preset` says of the task, where the user has given nothing.

    Raises:
        DataError: the paper has no settings for this task.
    """
    if options.get("preset") is None:
        return options
    from click.core import ParameterSource

    from panda_fusion.paper_presets import preset

    chosen = preset(task)
    context = click.get_current_context()
    values = {"lr": chosen.learning_rate, "batch_size": chosen.batch_size, "epochs": chosen.epochs}
    said = {name for name in values if context.get_parameter_source(name) != ParameterSource.DEFAULT}
    return {**options, **{name: value for name, value in values.items() if name not in said}}


def run_settings(options: Mapping[str, Any]) -> RunSettings:
    """`RunSettings` from the values of `training_options` (or `probe_options`) and `--max-length`."""
    from panda_fusion.run import RunSettings
    from panda_fusion.trainer import TrainSettings

    names = ("epochs", "max_steps", "batch_size", "dropout", "backbone_dropout", "eval_every")
    return RunSettings(
        training=TrainSettings(**{name: options[name] for name in names if name in options}),
        learning_rate=options["lr"],
        max_length=options["max_length"],
        select_on=options.get("select_on", "validation"),
    )


def check_output(out: Path, inputs: Mapping[str, Path | None]) -> None:
    """Find out now whether `out` can be written later.

    Args:
        out: the file to write.
        inputs: what a file is (`source`, `input`) -> the file; it must not be overwritten.

    Raises:
        OutputError: it cannot, or it is one of the files that are read.
    """
    from panda_fusion.atomic_write import check_writable
    from panda_fusion.errors import OutputError
    from panda_fusion.printable import printable

    check_writable(out)
    for what, path in inputs.items():
        if path is not None and out.exists() and path.exists() and out.samefile(path):
            raise OutputError(f"--out {printable(str(out))} would overwrite the {what}; name another file.")


def check_prompt_file(path: Path) -> PromptMetadata:
    """Check everything that a prompt file's header tells, without torch: format, metadata, shapes, head.

    Raises:
        PromptFileError: what does not fit.
    """
    import msgspec

    from panda_fusion.plugin_manager import peft_methods
    from panda_fusion.printable import printable
    from panda_fusion.prompt_file import check_tensors
    from panda_fusion.prompt_metadata import decode_metadata
    from panda_fusion.safetensors_header import read_header

    where = printable(str(path))
    header = read_header(path)
    metadata = decode_metadata(where, header.metadata)
    check_tensors(where, metadata, {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()})
    # As `load_prompt` gives it: with options that the method has got since the file was written.
    return msgspec.structs.replace(metadata, method=peft_methods().create(metadata.method).spec)


def check_target_prompt(path: Path | None, task: Task) -> None:
    """Check that a file given with --target-prompt is a prompt for the target task. None passes.

    Raises:
        PromptFileError: it is no sound prompt file.
        DataError: it was trained on other labels.
    """
    from panda_fusion.prompt_match import check_same_labels

    if path is not None:
        described = check_prompt_file(path)
        advice = "--target-prompt takes a prompt trained on the target itself"
        check_same_labels(str(path), described.task, task, advice)


def trained_length(metadata: PromptMetadata) -> int:
    """The `--max-length` that a prompt was trained with, as far as its file says so."""
    recipe = metadata.training.get("recipe")
    length = recipe.get("max_length") if isinstance(recipe, dict) else None
    return length if type(length) is int and LENGTHS.min <= length <= LENGTHS.max else MAX_LENGTH  # type: ignore[operator]


def open_backbone(
    model: str, device: DeviceName, precision: PrecisionName, gradient_checkpointing: bool = False
) -> Backbone:
    """Load the backbone that the options name."""
    from panda_fusion.device import choose_device, choose_precision

    chosen = choose_device(device)
    dtype = choose_precision(precision, chosen)
    from panda_fusion.backbone import load_backbone

    return load_backbone(model, device=chosen, dtype=dtype, gradient_checkpointing=gradient_checkpointing)


def open_task(task_name: str, data_dir: Path | None) -> TaskData:
    """Load the task that the options name, and its rows."""
    from panda_fusion.rows import load_task_data
    from panda_fusion.task_source import resolve_task

    return load_task_data(resolve_task(task_name, data_dir), data_dir)


def open_validation(task_name: str, data_dir: Path | None) -> tuple[Task, Split]:
    """The task that the options name and its validation rows."""
    from panda_fusion.rows import load_split
    from panda_fusion.task_source import resolve_task

    task = resolve_task(task_name, data_dir)
    return task, load_split(task, "validation", data_dir)


def check_prompt(prompt: Prompt, backbone: Backbone) -> None:
    """Check that a prompt belongs to the backbone, head included.

    Raises:
        PromptFileError: it was trained on another one, or its head is another architecture's.
    """
    from panda_fusion.printable import printable
    from panda_fusion.prompt_file import check_backbone, check_head, check_stored
    from panda_fusion.task import head_outputs

    check_backbone(prompt, backbone.info, backbone.name)
    check_stored(prompt, backbone)
    check_head(
        printable(prompt.path),
        prompt.head,
        backbone.head(head_outputs(prompt.task.kind, prompt.task.labels), prompt.task.kind).shapes,
    )
