"""`panda-fusion train`: train a prompt, from scratch or from another prompt (vanilla transfer)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from panda_fusion_cli.help_sections import SectionCommand, option
from panda_fusion_cli.output import Output, output_options
from panda_fusion_cli.run_options import (
    FILE,
    model_options,
    out_option,
    task_length_option,
    task_options,
    training_options,
)

EXAMPLES = (
    "panda-fusion train --model tiny --task tiny/sentiment --out sentiment.safetensors",
    "panda-fusion train --model tiny --task tiny/sentiment --method prompt:length=10 \\\n"
    "    --lr 0.02 --epochs 5 --out short.safetensors",
    "panda-fusion train --model tiny --task tiny/contradiction --init sentiment.safetensors \\\n"
    "    --out vanilla.safetensors",
)


@click.command("train", cls=SectionCommand, examples=EXAMPLES)
@task_options
@task_length_option
@model_options
@option(
    "Prompt",
    "--method",
    metavar="METHOD",
    show_default="prefix, or that of --init",
    help="PEFT method, as name or name:option=value (see `panda-fusion plugins list`).",
)
@option(
    "Prompt",
    "--init",
    metavar="FILE",
    type=FILE,
    help="Start from this prompt's tensors and a new head: vanilla transfer, SPoT.",
)
@training_options
@out_option
@output_options
def command(
    output: Output,
    task_name: str,
    data_dir: Path | None,
    model: str,
    device: Any,
    precision: Any,
    method: str | None,
    init: Path | None,
    out: Path,
    **options: Any,
) -> None:
    """Train a prompt on a task; the backbone stays frozen.

    Ctrl-C ends the training and keeps the best prompt so far.
    """
    started = time.perf_counter()
    from panda_fusion.model_name import check_model_name
    from panda_fusion.plugin_manager import peft_methods
    from panda_fusion_cli.run_options import check_output, check_prompt_file, open_task, with_preset

    peft = peft_methods().create(method or "prefix")
    check_output(out, {"prompt of --init": init})
    check_model_name(model)
    if init is not None:
        described = check_prompt_file(init)
        peft = peft if method else peft_methods().create(described.method)
    data = open_task(task_name, data_dir)
    options = dict(with_preset(options, data.task.name))

    from panda_fusion.compiled import compile_layers
    from panda_fusion.prompt import Lineage
    from panda_fusion.prompt_file import load_prompt, save_prompt, shape_of
    from panda_fusion.run import finished_prompts, prepare, result_record, train_students
    from panda_fusion.sources import source_info, start_from
    from panda_fusion.students import new_students
    from panda_fusion.tensor_cache import TOKENS, user_cache
    from panda_fusion_cli.progress import training_progress
    from panda_fusion_cli.run_options import check_prompt, open_backbone, run_settings
    from panda_fusion_cli.run_report import report_run, tell_compilation

    source = None if init is None else load_prompt(init)
    start = None if source is None else start_from(source, peft, shape_of(source.backbone))
    backbone = open_backbone(model, device, precision, options["gradient_checkpointing"])
    lineage = Lineage()
    if source is not None:
        check_prompt(source, backbone)
        lineage = Lineage(sources=(source_info(source),))
    settings = run_settings(options)
    encoded = prepare(backbone, peft, data, settings, user_cache(TOKENS))
    for warning in encoded.warnings:
        output.warn(warning)
    tell_compilation(output, compile_layers(backbone, [peft], settings.training.backbone_dropout, options["compile_"]))
    students = new_students(backbone, data.task, peft, [options["seed"]], settings.learning_rate, start)
    with training_progress(output):
        pack = train_students(backbone, peft, students, encoded, settings)
    (prompt,) = finished_prompts(backbone, encoded, pack, students, settings, [lineage])
    save_prompt(prompt, out)
    result = result_record(backbone, encoded, pack, 0, options["seed"], started) | {
        "prompt": str(out),
        "init": str(init) if init else None,
    }
    report_run(output, result, out, [("started from", str(init))] if init else [])
