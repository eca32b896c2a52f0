"""`panda-fusion rank`: which prompts should help a target task."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from panda_fusion_cli.help_sections import SectionCommand
from panda_fusion_cli.output import Output, output_options
from panda_fusion_cli.run_options import (
    FILE,
    model_options,
    probe_options,
    similarity_options,
    task_length_option,
    task_options,
)

EXAMPLES = (
    "panda-fusion rank --model tiny --task tiny/contradiction nli.safetensors sentiment.safetensors",
    "panda-fusion rank --model tiny --task tiny/contradiction --similarity eavg *.safetensors",
    "panda-fusion rank --model tiny --task tiny/contradiction --similarity panda:samples=target *.safetensors",
)


@click.command("rank", cls=SectionCommand, examples=EXAMPLES)
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True, type=FILE)
@task_options
@task_length_option
@model_options
@similarity_options
@probe_options
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
    no_cache: bool,
    **options: Any,
) -> None:
    """Rank PROMPTs by how well they should transfer to a task, before paying for any transfer.

    The target is represented by --target-prompt, or by a probe that is trained for a few steps with the
    first prompt's PEFT method. Sources cost nothing more where task embeddings are compared that are in their files;
    panda:samples=target takes one pass over 100 samples per prompt, and none for prompts that it has seen before.
    """
    started = time.perf_counter()
    from panda_fusion.model_name import check_model_name
    from panda_fusion.plugin_manager import peft_methods, similarities
    from panda_fusion_cli.run_options import check_prompt_file, check_target_prompt, open_task

    metric = similarities().create(similarity)
    check_model_name(model)
    described = [check_prompt_file(path) for path in prompts]
    method = peft_methods().create(described[0].method)
    data = open_task(task_name, data_dir)
    check_target_prompt(target_prompt, data.task)

    from panda_fusion.device import precision_name
    from panda_fusion.prompt_file import load_prompt
    from panda_fusion.ranking import ranked, score_sources, target_for
    from panda_fusion.run import prepare
    from panda_fusion.tensor_cache import EMBEDDINGS, TOKENS, user_cache
    from panda_fusion_cli.progress import training_progress
    from panda_fusion_cli.run_options import check_prompt, open_backbone, run_settings

    sources = [load_prompt(path) for path in prompts]
    given = load_prompt(target_prompt) if target_prompt else None
    backbone = open_backbone(model, device, precision)
    for prompt in (*sources, *([given] if given else [])):
        check_prompt(prompt, backbone)
    settings = run_settings(options)
    encoded = prepare(backbone, method, data, settings, None if no_cache else user_cache(TOKENS))
    for warning in encoded.warnings:
        output.warn(warning)
    with training_progress(output) as progress:
        progress.stage("probe")
        target = target_for(
            metric, sources, given, backbone, method, encoded, settings, steps=probe_steps, seed=options["seed"]
        )
    cache = None if no_cache else user_cache(EMBEDDINGS)
    order = ranked(sources, score_sources(backbone, metric, sources, target.prompt, encoded, cache))
    output.line(f"similarity to {data.task.name}: {metric.spec}")
    output.table(
        ("rank", "prompt", "task", "similarity"),
        [(place, one.prompt.path, one.prompt.task.name, f"{one.similarity:.4f}") for place, one in enumerate(order, 1)],
        numeric=("rank", "similarity"),
    )
    if cache is not None and cache.found + cache.missed:
        output.line(f"task embeddings: {cache.missed} computed, {cache.found} found in {cache.folder}")
    output.result(
        {
            "similarity": metric.spec,
            "target": {
                "task": data.task.name,
                "prompt": str(target_prompt) if target_prompt else None,
                "probe_steps": target.probe_steps,
                "probe_seconds": target.seconds,
            },
            "ranking": [
                {"prompt": one.prompt.path, "task": one.prompt.task.name, "similarity": one.similarity} for one in order
            ],
            "embeddings": None if cache is None else {"computed": cache.missed, "found": cache.found},
            "model": backbone.name,
            "device": backbone.device.type,
            "precision": precision_name(backbone.dtype),
            "seed": options["seed"],
            "wall_seconds": time.perf_counter() - started,
        }
    )
