"""`panda-fusion rank`: which prompts should help a target task."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from panda_fusion_cli.output import Output, output_options
from panda_fusion_cli.run_options import PROMPT_FILE, model_options, task_options, training_options


@click.command("rank")
@click.argument("prompts", nargs=-1, required=True, type=PROMPT_FILE)
@task_options
@model_options
@click.option("--similarity", default="panda", show_default=True, help="Similarity, as name:option=value.")
@click.option("--target-prompt", type=PROMPT_FILE, help="A prompt trained on the target; otherwise a probe is trained.")
@click.option("--probe-steps", type=click.IntRange(min=1), default=200, show_default=True, help="Steps of the probe.")
@training_options
@output_options
def command(
    output: Output,
    prompts: tuple[Path, ...],
    task_name: str,
    data_dir: Path | None,
    model: str,
    device: Any,
    precision: Any,
    similarity: str,
    target_prompt: Path | None,
    probe_steps: int,
    **options: Any,
) -> None:
    """Rank PROMPTS by how well they should transfer to a task, before paying for any transfer."""
    started = time.perf_counter()
    from panda_fusion.plugin_manager import similarities
    from panda_fusion_cli.progress import training_progress
    from panda_fusion_cli.run_options import open_backbone, open_prompt, open_task, run_settings

    metric = similarities().create(similarity)
    data = open_task(task_name, data_dir)
    backbone = open_backbone(model, device, precision)
    sources = [open_prompt(path, backbone) for path in prompts]

    from panda_fusion.plugin_manager import peft_methods
    from panda_fusion.ranking import ranked, score_sources, target_for
    from panda_fusion.run import prepare

    settings = run_settings(options)
    method = peft_methods().create(sources[0].method)
    encoded = prepare(backbone, method, data, settings)
    for warning in encoded.warnings:
        output.warn(warning)
    given = open_prompt(target_prompt, backbone) if target_prompt else None
    with training_progress(output) as progress:
        progress.stage("probe")
        target = target_for(
            metric, given, backbone, method, encoded, settings, steps=probe_steps, seed=options["seed"]
        )
    order = ranked(sources, score_sources(backbone, metric, sources, target.prompt, encoded))
    output.table(
        ("", "prompt", "task", "similarity"),
        [
            (place, one.prompt.path, one.prompt.task.name, f"{one.similarity:.4f}")
            for place, one in enumerate(order, 1)
        ],
        title=f"{data.task.name}: {metric.spec}",
        numeric=("", "similarity"),
    )
    output.result(
        {
            "similarity": metric.spec,
            "target": {
                "task": data.task.name,
                "prompt": str(target_prompt) if target_prompt else None,
                "probe_steps": target.probe_steps,
                "probe_seconds": target.seconds,
            },
            "ranking": [{"prompt": one.prompt.path, "task": one.prompt.task.name, "similarity": one.similarity} for one in order],
            "model": backbone.name,
            "wall_seconds": time.perf_counter() - started,
        }
    )
