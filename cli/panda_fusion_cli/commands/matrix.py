"""`panda-fusion matrix`: sources x targets x methods x seeds, as a recipe describes them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from panda_fusion_cli.help_sections import OUTPUT, SectionCommand, option
from panda_fusion_cli.output import Output, output_options
from panda_fusion_cli.run_options import FILE, checkpointing_option, compile_option, device_options

if TYPE_CHECKING:
    from panda_fusion.matrix.plan import Plan
    from panda_fusion.matrix.work import WorkerJob

EXAMPLES = (
    "panda-fusion matrix recipes/tiny.toml --out results",
    "panda-fusion matrix recipes/tiny.toml --out results --dry-run",
    "panda-fusion matrix recipes/small/study.toml --model MODEL --data DATA --out study",
)
MATRIX = "Matrix"


@click.command("matrix", cls=SectionCommand, examples=EXAMPLES)
@click.argument("recipe_path", metavar="RECIPE", type=FILE)
@option(
    OUTPUT, "--out", metavar="DIR", type=FILE, required=True, help="The folder of results; made, or taken up again."
)
@option(MATRIX, "--model", metavar="MODEL", help="Stands in for the recipe's `model`.")
@option(MATRIX, "--data", "data_dir", metavar="DIR", type=FILE, help="Stands in for the recipe's `data`.")
@option(MATRIX, "--dry-run", is_flag=True, help="Show the plan and what it costs, and run nothing.")
@option(MATRIX, "--no-probe", is_flag=True, help="With --dry-run: do not load the backbone to estimate the time.")
@option(MATRIX, "--retry-failed", is_flag=True, help="Run failed cells again.")
@option(
    MATRIX,
    "--pack-size",
    metavar="N",
    type=click.IntRange(1, 1024),
    show_default="from memory",
    help="Prompts that are trained side by side at most; a folder keeps what it was begun with.",
)
@option(
    MATRIX,
    "--executor",
    metavar="METHOD",
    default="local",
    show_default=True,
    help="Where packs run, for example local:processes=2.",
)
@device_options
@checkpointing_option
@compile_option
@output_options
def command(
    output: Output,
    recipe_path: Path,
    out: Path,
    model: str | None,
    data_dir: Path | None,
    dry_run: bool,
    no_probe: bool,
    retry_failed: bool,
    pack_size: int | None,
    executor: str,
    device: Any,
    precision: Any,
    gradient_checkpointing: bool,
    compile_: Any,
) -> None:
    """Run every cell of RECIPE and write a record of each into the folder of results.

    Stopped at any moment and started again with the same command, it goes on where it was; several processes may
    work on one folder.
    """
    started = time.perf_counter()
    from panda_fusion.matrix.plan import check_backbone, make_plan
    from panda_fusion.matrix.recipe import read_recipe
    from panda_fusion.plugin_manager import executors

    chosen = executors().create(executor)
    plan = make_plan(read_recipe(recipe_path, model, data_dir))
    how = {"device": device, "precision": precision, "gradient_checkpointing": gradient_checkpointing}
    if dry_run:
        _show_plan(output, plan, pack_size, None if no_probe else how, chosen.workers())
        return
    from panda_fusion.matrix.records import read_records
    from panda_fusion.matrix.results_folder import open_folder
    from panda_fusion.matrix.work import WorkerJob, compile_for, open_worker_backbone, work
    from panda_fusion_cli.matrix_progress import matrix_progress
    from panda_fusion_cli.run_report import tell_compilation

    job = WorkerJob(plan, out, None, retry_failed=retry_failed, compile=compile_, **how)  # type: ignore[arg-type]
    backbone = open_worker_backbone(job)
    check_backbone(plan, backbone)
    if pack_size is None:
        from panda_fusion.matrix.estimate import pack_size as fitting

        pack_size = fitting(backbone, plan.cells, chosen.workers())
    state = open_folder(out, plan.recipe, pack_size)
    job = replace(job, state=state)
    before = read_records(out)
    if before.damaged:
        lines = ", ".join(map(str, before.damaged[:10]))
        output.warn(
            f"{len(before.damaged)} lines of {out / 'records.jsonl'} are no records (line {lines}); "
            "their cells run again."
        )
    with matrix_progress(output, plan, before) as progress:
        if chosen.workers() == 1:
            tell_compilation(output, compile_for(job, backbone))
            work(job, backbone, progress.report)
        else:
            del backbone
            _run_workers(output, chosen, job, progress)
    records = read_records(out)
    cells = {cell.id for cell in plan.cells}
    failed = [record for id, record in records.failed.items() if id in cells]
    for record in failed[:10]:
        output.warn(f"Cell {record.cell} ({record.system}, {record.target}, seed {record.seed}): {record.error}")
    output.line(f"{len(cells & set(records.done))} of {len(cells)} cells done, {len(failed)} failed, in {out}")
    output.result(
        {
            "recipe": str(recipe_path),
            "out": str(out),
            "cells": len(cells),
            "done": len(cells & set(records.done)),
            "failed": [{"cell": record.cell, "error": record.error} for record in failed],
            "pack_size": state.pack_size,
            "wall_seconds": time.perf_counter() - started,
        }
    )
    if failed:
        from panda_fusion.errors import TrainingError

        raise TrainingError(f"{len(failed)} of {len(cells)} cells failed; --retry-failed runs them again.")


def _run_workers(output: Output, chosen: Any, job: WorkerJob, progress: Any) -> None:
    """Several workers on one folder; this process watches the records."""
    import threading

    from panda_fusion.matrix.records import read_records
    from panda_fusion.matrix.work import work
    from panda_fusion_cli.run_report import tell_compilation

    ended = threading.Event()
    watcher = threading.Thread(target=progress.watch, args=(job.folder, ended), daemon=True)
    watcher.start()
    jobs = [replace(job, number=number, workers=chosen.workers()) for number in range(chosen.workers())]
    errors = []
    try:
        for _, result in chosen.run(work, jobs):
            if isinstance(result, BaseException):
                errors.append(result)
            elif result is not None:
                tell_compilation(output, result)
    finally:
        ended.set()
        watcher.join()
    if errors:
        records = read_records(job.folder)
        if {cell.id for cell in job.plan.cells} - set(records.done) - set(records.failed):
            raise errors[0]
        output.warn(f"A worker ended early, and the others did its work: {errors[0]}")


def _show_plan(output: Output, plan: Plan, pack_size: int | None, probe: dict[str, Any] | None, workers: int) -> None:
    """The plan, and an estimate of its time from a probe: device, precision and checkpointing, or None."""
    from panda_fusion.matrix.packs import LARGEST

    seconds = rate = None
    size = pack_size or LARGEST
    if probe is not None:
        from panda_fusion.matrix import estimate
        from panda_fusion.matrix.plan import check_backbone
        from panda_fusion.matrix.work import WorkerJob, open_worker_backbone
        from panda_fusion.matrix.workshop import Workshop
        from panda_fusion.tensor_cache import TOKENS, user_cache

        backbone = open_worker_backbone(WorkerJob(plan, Path(), None, **probe))  # type: ignore[arg-type]
        check_backbone(plan, backbone)
        size = pack_size or estimate.pack_size(backbone, plan.cells, workers)
        data = None if plan.recipe.data is None else Path(plan.recipe.data)
        cell = next(cell for cell in plan.cells if cell.trains)
        workshop = Workshop(backbone, data, Path(), "", set(), user_cache(TOKENS))
        rate = estimate.rows_per_second(backbone, workshop.encoded(cell), cell)
        seconds = estimate.seconds(plan, rate)
    packs = plan.packs(size)
    systems: dict[str, int] = {}
    for one in plan.cells:
        name = one.system if one.asked else "needed by others"
        systems[name] = systems.get(name, 0) + 1
    rows = sum(plan.training_rows(one) for one in plan.cells)
    output.table(("cells", "number"), [*systems.items(), ("in all", len(plan.cells))], numeric=("number",))
    output.line(f"{len(packs)} packs of at most {size} prompts")
    output.line(f"{rows} rows forward and backward, {plan.teacher_passes()} passes of teachers over a training set")
    if seconds is not None and rate is not None:
        output.line(
            f"about {_duration(seconds)}, from {rate:.0f} rows a second in a short probe; evaluations come on top"
        )
    output.result(
        {
            "cells": len(plan.cells),
            "systems": systems,
            "packs": len(packs),
            "pack_size": size,
            "training_rows": rows,
            "teacher_passes": plan.teacher_passes(),
            "rows_per_second": rate,
            "estimated_seconds": seconds,
        }
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
