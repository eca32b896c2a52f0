"""One worker of a matrix: loads the backbone on its device and works on whatever no other worker has claimed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from panda_fusion.backbone import Backbone, load_backbone
from panda_fusion.device import DeviceName, PrecisionName, choose_device, choose_precision
from panda_fusion.heap import kept_heap
from panda_fusion.matrix.plan import Plan
from panda_fusion.matrix.results_folder import State, kept
from panda_fusion.matrix.runner import Progress, run_packs
from panda_fusion.matrix.workshop import Workshop


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


def work(job: WorkerJob, backbone: Backbone | None = None, report: Callable[[Progress], None] = lambda _: None) -> None:
    """Work until every pack of the matrix is done; the body of an executor's job."""
    recipe = job.plan.recipe
    cells = list(job.plan.cells)
    workshop = Workshop(
        open_worker_backbone(job) if backbone is None else backbone,
        None if recipe.data is None else Path(recipe.data),
        job.folder,
        job.state.recipe,
        kept(recipe, cells),
    )
    with kept_heap():  # from one pack to the next, too
        run_packs(job.plan.packs(job.state.pack_size), job.folder, workshop, report, job.retry_failed)
