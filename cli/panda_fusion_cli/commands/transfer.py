"""`panda-fusion transfer`: train a prompt with the help of other tasks' prompts (PanDa)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from panda_fusion_cli.output import Output, output_options
from panda_fusion_cli.run_options import PROMPT_FILE, model_options, task_options, training_options


@click.command("transfer")
@task_options
@model_options
@click.option("--source", "source_paths", multiple=True, required=True, type=PROMPT_FILE, help="A source prompt; repeat for several.")
@click.option("--method", default=None, help="PEFT method of the student.  [default: the first source's]")
@click.option("--teacher", default="target-like", show_default=True, help="Teacher, as name:option=value.")
@click.option("--fusion", default=None, help="Fusion of several sources: early or late.  [default: single, late for several]")
@click.option("--kd", default="mse", show_default=True, help="KD loss, as name:option=value.")
@click.option("--lambda", "lambda_", type=click.FloatRange(min=0), default=0.05, show_default=True, help="Largest weight of the KD loss (eq. 4).")
@click.option("--similarity", default="panda", show_default=True, help="Similarity, as name:option=value.")
@click.option("--target-prompt", type=PROMPT_FILE, help="A prompt trained on the target; otherwise a probe is trained.")
@click.option("--probe-steps", type=click.IntRange(min=1), default=200, show_default=True, help="Steps of the probe.")
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
    source_paths: tuple[Path, ...],
    method: str | None,
    teacher: str,
    fusion: str | None,
    kd: str,
    lambda_: float,
    similarity: str,
    target_prompt: Path | None,
    probe_steps: int,
    out: Path,
    **options: Any,
) -> None:
    """Train a prompt on a task, distilling what other tasks' prompts know."""
    started = time.perf_counter()
    from panda_fusion import plugin_manager as plugins
    from panda_fusion.atomic_write import check_writable
    from panda_fusion_cli.progress import training_progress
    from panda_fusion_cli.run_options import open_backbone, open_prompt, open_task, run_settings

    check_writable(out)
    metric = plugins.similarities().create(similarity)
    chosen_fusion = fusion or ("single" if len(source_paths) == 1 else "late")

    from panda_fusion.distillation import DistillationMethods, check_methods, teacher_signal

    methods = DistillationMethods(
        teacher=plugins.teachers().create(teacher),
        fusion=plugins.fusions().create(chosen_fusion),
        kd=plugins.kd_losses().create(kd),
        lambda_=lambda_,
    )
    student_method = plugins.peft_methods().create(method) if method else None
    data = open_task(task_name, data_dir)
    check_methods(methods, len(source_paths), data.task.kind)
    backbone = open_backbone(model, device, precision)
    sources = [open_prompt(path, backbone) for path in source_paths]

    from panda_fusion.prompt_file import save_prompt
    from panda_fusion.ranking import score_sources, target_for
    from panda_fusion.run import finished_prompts, prepare, result_record, train_students
    from panda_fusion.sources import stack_sources, transfer_lineage
    from panda_fusion.students import new_students

    settings = run_settings(options)
    source_method, _ = stack_sources(sources, backbone.shape)
    student_method = student_method or source_method
    backbone.check_length(source_method.virtual_tokens(), settings.max_length)
    encoded = prepare(backbone, student_method, data, settings)
    for warning in encoded.warnings:
        output.warn(warning)
    given = open_prompt(target_prompt, backbone) if target_prompt else None
    seed = options["seed"]
    with training_progress(output) as progress:
        progress.stage("probe")
        target = target_for(metric, given, backbone, source_method, encoded, settings, steps=probe_steps, seed=seed)
        values = score_sources(backbone, metric, sources, target.prompt, encoded)
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
        )
        if signal.distillation.weight < 0:
            output.warn(
                f"the KD weight is {signal.distillation.weight:.3g} because the similarity is negative, so eq. 4 pushes the "
                "student away from the teacher; choose another source or --similarity constant"
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
    (prompt,) = finished_prompts(backbone, encoded, pack, students, settings, lineage)
    save_prompt(prompt, out)
    result = result_record(backbone, encoded, pack, 0, seed, started) | {
        "prompt": str(out),
        "sources": [
            {"path": str(path), "similarity": value}
            for path, value in zip(source_paths, values, strict=True)
        ],
        "similarity": metric.spec,
        "teacher": methods.teacher.spec,
        "fusion": methods.fusion.spec,
        "kd": methods.kd.spec,
        "lambda": lambda_,
        "kd_weight": signal.distillation.weight,
        "teacher_forward_passes": signal.forward_passes,
        "teacher_build_seconds": signal.build_seconds,
        "teacher_forward_seconds": signal.forward_seconds,
        "probe_steps": target.probe_steps,
        "probe_seconds": target.seconds,
    }

    from panda_fusion_cli.run_report import INTERRUPTED, report_run

    extra: list[tuple[str, object]] = [
        ("sources", ", ".join(f"{path} ({value:.3f})" for path, value in zip(source_paths, values, strict=True))),
        ("teacher, fusion, KD", f"{methods.teacher.spec}, {methods.fusion.spec}, {methods.kd.spec}"),
        ("lambda", f"{lambda_:g} (weight {signal.distillation.weight:.4g})"),
        ("teacher forward passes", signal.forward_passes),
    ]
    report_run(output, result, out, extra)
    if pack.interrupted:
        raise SystemExit(INTERRUPTED)
