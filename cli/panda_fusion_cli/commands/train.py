"""`panda-fusion train`: train a prompt, from scratch or from another prompt (vanilla transfer)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from panda_fusion_cli.output import Output, output_options
from panda_fusion_cli.run_options import PROMPT_FILE, model_options, task_options, training_options


@click.command("train")
@task_options
@model_options
@click.option("--method", default=None, help="PEFT method, as name:option=value.  [default: prefix, or the one of --init]")
@click.option("--init", type=PROMPT_FILE, help="Start from this prompt's tensors and a new head (SPoT).")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The prompt file to write.")
@training_options
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
    """Train a prompt on a task; the backbone stays frozen."""
    started = time.perf_counter()
    from panda_fusion.atomic_write import check_writable
    from panda_fusion.plugin_manager import peft_methods
    from panda_fusion.prompt import Lineage, SourceInfo
    from panda_fusion.prompt_file import load_prompt, save_prompt
    from panda_fusion_cli.progress import training_progress
    from panda_fusion_cli.run_options import open_backbone, open_prompt, open_task, run_settings

    check_writable(out)
    peft = peft_methods().create(method or (load_prompt(init).method if init else "prefix"))
    data = open_task(task_name, data_dir)
    backbone = open_backbone(model, device, precision)
    source = open_prompt(init, backbone) if init else None

    from panda_fusion.run import finished_prompts, prepare, result_record, train_students
    from panda_fusion.sources import start_from
    from panda_fusion.students import new_students

    settings = run_settings(options)
    encoded = prepare(backbone, peft, data, settings)
    for warning in encoded.warnings:
        output.warn(warning)
    start = None if source is None else start_from(source, peft, backbone.shape)
    students = new_students(backbone, data.task, peft, [options["seed"]], settings.learning_rate, start)
    with training_progress(output):
        pack = train_students(backbone, peft, students, encoded, settings)
    lineage = Lineage()
    if source is not None:
        lineage = Lineage(sources=(SourceInfo(path=source.path, sha256=source.sha256, task=source.task.name),))
    (prompt,) = finished_prompts(backbone, encoded, pack, students, settings, lineage)
    save_prompt(prompt, out)
    result = result_record(backbone, encoded, pack, 0, options["seed"], started) | {
        "prompt": str(out),
        "init": str(init) if init else None,
    }

    from panda_fusion_cli.run_report import INTERRUPTED, report_run

    report_run(output, result, out, [("started from", str(init))] if init else [])
    if pack.interrupted:
        raise SystemExit(INTERRUPTED)
