"""`panda-fusion transfer`: train a prompt with the help of other tasks' prompts (PanDa)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from panda_fusion_cli.help_sections import SectionCommand, option
from panda_fusion_cli.output import Output, output_options
from panda_fusion_cli.run_options import (
    FILE,
    FiniteFloat,
    model_options,
    out_option,
    similarity_options,
    task_length_option,
    task_options,
    training_options,
)

EXAMPLES = (
    "panda-fusion transfer --model tiny --task tiny/contradiction --source sentiment.safetensors \\\n"
    "    --out contradiction.safetensors",
    "panda-fusion transfer --model tiny --task tiny/contradiction --source nli.safetensors \\\n"
    "    --source sentiment.safetensors --fusion early:normalize=true --kd kl:temperature=2 \\\n"
    "    --lambda 0.1 --out contradiction.safetensors",
)
TRANSFER = "Transfer"


@click.command("transfer", cls=SectionCommand, examples=EXAMPLES)
@task_options
@task_length_option
@model_options
@option(
    TRANSFER,
    "--source",
    "source_paths",
    metavar="FILE",
    multiple=True,
    required=True,
    type=FILE,
    help="A source prompt; repeat for several.",
)
@option(
    TRANSFER,
    "--method",
    metavar="METHOD",
    show_default="that of the sources",
    help="PEFT method of the student.",
)
@option(
    TRANSFER,
    "--teacher",
    metavar="METHOD",
    default="target-like",
    show_default=True,
    help="How sources become teachers: such as target-like, source or random.",
)
@option(
    TRANSFER,
    "--fusion",
    metavar="METHOD",
    show_default="single for one source, late for several",
    help="How teachers become one: single, early or late.",
)
@option(
    TRANSFER,
    "--kd",
    metavar="METHOD",
    default="mse",
    show_default=True,
    help="Loss between student and teacher, such as mse, kl or ce.",
)
@option(
    TRANSFER,
    "--lambda",
    "lambda_",
    metavar="X",
    type=FiniteFloat(min=0),
    default=0.05,
    show_default=True,
    help="Largest weight of the KD loss (eq. 4); 0 leaves it out.",
)
@similarity_options
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
    source_paths: tuple[Path, ...],
    method: str | None,
    teacher: str,
    fusion: str | None,
    kd: str,
    lambda_: float,
    similarity: str,
    target_prompt: Path | None,
    probe_steps: int,
    no_cache: bool,
    out: Path,
    **options: Any,
) -> None:
    """Train a prompt on a task, distilling what other tasks' prompts know (PanDa).

    Methods are given as name or name:option=value,option=value; `panda-fusion plugins list` shows all, and
    `panda-fusion plugins show NAME` the options of one. Ctrl-C ends the training of the student and keeps the
    best prompt so far.
    """
    started = time.perf_counter()
    from panda_fusion import plugin_manager as plugins
    from panda_fusion.model_name import check_model_name
    from panda_fusion.prompt_match import check_one_method
    from panda_fusion_cli.run_options import (
        check_output,
        check_prompt_file,
        check_target_prompt,
        open_task,
        with_preset,
    )

    metric = plugins.similarities().create(similarity)
    teaching = plugins.teachers().create(teacher)
    fusing = plugins.fusions().create(fusion or ("single" if len(source_paths) == 1 else "late"))
    loss = plugins.kd_losses().create(kd)
    student_method = plugins.peft_methods().create(method) if method else None
    fusing.check_sources(len(source_paths))
    check_output(out, {"target's prompt": target_prompt} | {f"source {path}": path for path in source_paths})
    check_model_name(model)
    described = [(str(path), check_prompt_file(path)) for path in source_paths]
    check_one_method([(path, metadata.method) for path, metadata in described])
    data = open_task(task_name, data_dir)
    options = dict(with_preset(options, data.task.name))
    loss.check_kind(data.task.kind)
    check_target_prompt(target_prompt, data.task)

    from panda_fusion.compiled import compile_layers
    from panda_fusion.distillation import DistillationMethods, teacher_signal
    from panda_fusion.prompt_file import load_prompt, save_prompt
    from panda_fusion.ranking import score_sources, target_for
    from panda_fusion.run import finished_prompts, prepare, result_record, train_students
    from panda_fusion.sources import stack_sources, transfer_lineage
    from panda_fusion.students import new_students
    from panda_fusion.tensor_cache import EMBEDDINGS, TEACHER_OUTPUTS, TOKENS, user_cache
    from panda_fusion_cli.progress import training_progress
    from panda_fusion_cli.run_options import check_prompt, open_backbone, run_settings
    from panda_fusion_cli.run_report import report_run, tell_compilation

    methods = DistillationMethods(teacher=teaching, fusion=fusing, kd=loss, lambda_=lambda_)
    sources = [load_prompt(path) for path in source_paths]
    given = load_prompt(target_prompt) if target_prompt else None
    backbone = open_backbone(model, device, precision, options["gradient_checkpointing"])
    for prompt in (*sources, *([given] if given else [])):
        check_prompt(prompt, backbone)
    settings = run_settings(options)
    source_method, _ = stack_sources(sources, backbone.shape)
    student_method = student_method or source_method
    backbone.check_length(source_method.virtual_tokens(), settings.max_length)
    encoded = prepare(backbone, student_method, data, settings, None if no_cache else user_cache(TOKENS))
    for warning in encoded.warnings:
        output.warn(warning)
    seed, dropout = options["seed"], settings.training.backbone_dropout
    tell_compilation(output, compile_layers(backbone, [source_method, student_method], dropout, options["compile_"]))
    with training_progress(output) as progress:
        progress.stage("probe")
        target = target_for(
            metric, sources, given, backbone, source_method, encoded, settings, steps=probe_steps, seed=seed
        )
        cache = None if no_cache else user_cache(EMBEDDINGS)
        values = score_sources(backbone, metric, sources, target.prompt, encoded, cache)
        for path, value in zip(source_paths, values, strict=True):
            output.line(f"similarity of {path}: {value:.4f}")
        progress.stage("teacher")
        signal = teacher_signal(
            backbone,
            data.task,
            encoded.train,
            sources,
            values,
            methods,
            student_method,
            settings.training,
            settings.learning_rate,
            seed,
            None if no_cache else user_cache(TEACHER_OUTPUTS),
        )
        if min(values) < 0:
            worst = source_paths[values.index(min(values))]
            output.warn(
                f"the similarity of {worst} is negative ({min(values):.3g}), so the student is pushed away from what"
                " that source knows; leave it out, or use --similarity constant"
            )
        progress.stage("student")
        students = new_students(
            backbone,
            data.task,
            student_method,
            [seed],
            settings.learning_rate,
            distillation=signal.distillation,
        )
        pack = train_students(backbone, student_method, students, encoded, settings)
    lineage = transfer_lineage(sources, values, methods, metric)
    (prompt,) = finished_prompts(backbone, encoded, pack, students, settings, [lineage])
    save_prompt(prompt, out)
    result = result_record(backbone, encoded, pack, 0, seed, started) | {
        "prompt": str(out),
        "sources": [{"path": str(path), "similarity": value} for path, value in zip(source_paths, values, strict=True)],
        "similarity": metric.spec,
        "teacher": methods.teacher.spec,
        "fusion": methods.fusion.spec,
        "kd": methods.kd.spec,
        "lambda": lambda_,
        "kd_weight": signal.distillation.weight,
        "teacher_forward_passes": signal.forward_passes,
        "teacher_build_seconds": signal.build_seconds,
        "teacher_forward_seconds": signal.forward_seconds,
        "target_prompt": str(target_prompt) if target_prompt else None,
        "probe_steps": target.probe_steps,
        "probe_seconds": target.seconds,
    }
    extra: list[tuple[str, object]] = [
        *(("source", f"{path} (similarity {value:.3f})") for path, value in zip(source_paths, values, strict=True)),
        ("teacher, fusion, KD", f"{methods.teacher.spec}, {methods.fusion.spec}, {methods.kd.spec}"),
        ("lambda", f"{lambda_:g} (weight {signal.distillation.weight:.4g})"),
        ("teacher forward passes", signal.forward_passes),
    ]
    report_run(output, result, out, extra)
