"""One worker of a matrix: loads the backbone on its device and works on whatever no other worker has claimed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from panda_fusion.backbone import Backbone, load_backbone
from panda_fusion.compiled import Compilation, CompileName, compile_layers
from panda_fusion.device import DeviceName, PrecisionName, choose_device, choose_precision
from panda_fusion.heap import kept_heap
from panda_fusion.matrix.plan import Plan
from panda_fusion.matrix.results_folder import State, kept
from panda_fusion.matrix.runner import Progress, run_packs
from panda_fusion.matrix.workshop import Workshop
from panda_fusion.plugin_manager import peft_methods
from panda_fusion.tensor_cache import TOKENS, user_cache


@dataclass(frozen=True)
class WorkerJob:
    """What a worker is told.

    Attributes:
        plan: the matrix.
        folder: its results folder.
        state: what the folder remembers.
        device: as the user named it.
        precision: likewise.
        retry_failed: run failed cells again.
        gradient_checkpointing: compute layers again in the backward pass.
        compile: whether layers are compiled.
        number: which worker, from 0.
        workers: how many there are; they spread over the GPUs, or share the cores.
    """

    plan: Plan
    folder: Path
    state: State
    device: DeviceName
    precision: PrecisionName
    retry_failed: bool = False
    gradient_checkpointing: bool = False
    compile: CompileName = "auto"
    number: int = 0
    workers: int = 1


def open_worker_backbone(job: WorkerJob) -> Backbone:
    """The backbone on this worker's device."""
    device = choose_device(job.device)
    if device.type == "cuda":
        device = torch.device("cuda", job.number % torch.cuda.device_count())
    elif job.workers > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // job.workers))
    dtype = choose_precision(job.precision, device)
    return load_backbone(
        job.plan.recipe.model or "", device=device, dtype=dtype, gradient_checkpointing=job.gradient_checkpointing
    )


def compile_for(job: WorkerJob, backbone: Backbone) -> Compilation:
    """Compile the layers if the user wants it and any cell trains in a way that uses them."""
    cells = [cell for cell in job.plan.cells if cell.trains]
    dropout = min((cell.backbone_dropout for cell in cells), default=0.0)
    specs = sorted({cell.method for cell in cells if cell.backbone_dropout == dropout})
    return compile_layers(backbone, [peft_methods().create(spec) for spec in specs], dropout, job.compile)


def work(
    job: WorkerJob, backbone: Backbone | None = None, report: Callable[[Progress], None] = lambda _: None
) -> Compilation | None:
    """Work until every pack of the matrix is done; the body of an executor's job.

    Returns:
        What became of compiling, where the backbone was not given but loaded here.
    """
    recipe = job.plan.recipe
    cells = list(job.plan.cells)
    compilation = None
    if backbone is None:
        backbone = open_worker_backbone(job)
        compilation = compile_for(job, backbone)
    workshop = Workshop(
        backbone,
        None if recipe.data is None else Path(recipe.data),
        job.folder,
        job.state.recipe,
        kept(recipe, cells),
        user_cache(TOKENS),
    )
    with kept_heap():  # from one pack to the next, too
        run_packs(job.plan.packs(job.state.pack_size), job.folder, workshop, report, job.retry_failed)
    return compilation
