"""`panda-fusion evaluate`: score a prompt on a task's validation set."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from panda_fusion_cli.output import Output, output_options
from panda_fusion_cli.run_options import PROMPT_FILE, model_options, task_options


@click.command("evaluate")
@click.argument("prompt_path", metavar="PROMPT", type=PROMPT_FILE)
@task_options
@model_options
@output_options
def command(
    output: Output,
    prompt_path: Path,
    task_name: str,
    data_dir: Path | None,
    model: str,
    device: Any,
    precision: Any,
    max_length: int,
) -> None:
    """Score PROMPT on a task whose labels are those that it was trained on."""
    started = time.perf_counter()
    from panda_fusion_cli.run_options import open_backbone, open_prompt, open_validation

    task, validation = open_validation(task_name, data_dir)
    backbone = open_backbone(model, device, precision)
    prompt = open_prompt(prompt_path, backbone)

    from panda_fusion.device import precision_name
    from panda_fusion.evaluation import evaluate_prompt

    scored = evaluate_prompt(backbone, prompt, task, validation, max_length)
    value = scored.metrics[task.metric]
    output.table(
        ("metric", "value"),
        [(name, f"{number:.4f}") for name, number in scored.metrics.items()],
        title=f"{prompt_path} on {task.name}: {scored.examples} examples",
        numeric=("value",),
    )
    output.result(
        {
            "task": task.name,
            "model": backbone.name,
            "method": prompt.method,
            "metric": task.metric,
            "score": value,
            "best": value,
            "last": value,
            "metrics": scored.metrics,
            "examples": scored.examples,
            "steps": prompt.training.get("steps"),
            "samples_per_second": scored.examples / scored.seconds,
            "wall_seconds": time.perf_counter() - started,
            "device": backbone.device.type,
            "precision": precision_name(backbone.dtype),
            "seed": prompt.training.get("seed"),
            "prompt": str(prompt_path),
        }
    )
