"""`panda-fusion evaluate`: score a prompt on a task's validation set."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from panda_fusion_cli.help_sections import TASK, SectionCommand
from panda_fusion_cli.output import Output, output_options
from panda_fusion_cli.run_options import FILE, max_length_option, model_options, task_options

EXAMPLES = (
    "panda-fusion evaluate sentiment.safetensors --model tiny --task tiny/sentiment",
    "panda-fusion evaluate sentiment.safetensors --model tiny --task ./reviews --json",
)


@click.command("evaluate", cls=SectionCommand, examples=EXAMPLES)
@click.argument("prompt_path", metavar="PROMPT", type=FILE)
@task_options
@max_length_option(TASK, None, "what PROMPT was trained with")
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
    max_length: int | None,
) -> None:
    """Score PROMPT on the validation set of a task with the labels that it was trained on."""
    started = time.perf_counter()
    from panda_fusion.model_name import check_model_name
    from panda_fusion.prompt_match import check_same_labels
    from panda_fusion_cli.run_options import check_prompt_file, open_validation, trained_length

    check_model_name(model)
    described = check_prompt_file(prompt_path)
    task, validation = open_validation(task_name, data_dir)
    check_same_labels(
        str(prompt_path),
        described.task,
        task,
        "evaluate it on a task with the same labels, or transfer it first",
    )
    max_length = max_length or trained_length(described)

    from panda_fusion.device import precision_name
    from panda_fusion.evaluation import evaluate_prompt
    from panda_fusion.prompt_file import load_prompt
    from panda_fusion.tensor_cache import TOKENS, user_cache
    from panda_fusion_cli.run_options import check_prompt, open_backbone

    prompt = load_prompt(prompt_path)
    backbone = open_backbone(model, device, precision)
    check_prompt(prompt, backbone)
    scored = evaluate_prompt(backbone, prompt, task, validation, max_length, user_cache(TOKENS))
    value = scored.metrics[task.metric]
    output.table(
        ("field", "value"),
        [
            ("prompt", str(prompt_path)),
            ("task", task.name),
            ("examples", scored.examples),
            *((name, f"{number:.4f}") for name, number in scored.metrics.items()),
        ],
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
