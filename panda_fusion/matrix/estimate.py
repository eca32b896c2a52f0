"""What a matrix will cost: how many prompts fit into a pack, and how many rows a second can be trained on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from panda_fusion.matrix.packs import LARGEST

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.encoded_task import EncodedTask
    from panda_fusion.matrix.cells import Cell
    from panda_fusion.matrix.plan import Plan

CPU_LARGEST = 16
"""Prompts in a pack on a CPU, which is busy with one already; larger packs would only lose more to an interruption."""
PROBE_STEPS = 3


def pack_size(backbone: Backbone, cells: tuple[Cell, ...], workers: int = 1) -> int:
    """Prompts that can be trained side by side in half of the memory that is free, texts being as long as they may.

    Every PEFT method is probed on the largest batch that any of its cells has; the other half of the memory is for
    what a backward pass needs on the way, for data and for what other programs take meanwhile.

    Args:
        backbone: the frozen backbone, already loaded.
        cells: the cells that are to be trained.
        workers: processes that share the memory, spread over the GPUs.
    """
    from panda_fusion.activation_memory import activation_bytes
    from panda_fusion.plugin_manager import peft_methods

    batches: dict[str, tuple[int, int]] = {}
    for cell in cells:
        if cell.trains:
            batch = (cell.batch_size, cell.max_length)
            batches[cell.method] = max(batch, batches.get(cell.method, batch), key=lambda sizes: sizes[0] * sizes[1])
    largest = 1
    for spec, (rows, tokens) in batches.items():
        method = peft_methods().create(spec)
        if method.packable:
            largest = max(largest, activation_bytes(backbone, method, rows, tokens))
    if backbone.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(backbone.device)
        free //= -(-workers // torch.cuda.device_count())
        return int(max(1, min(LARGEST, free // 2 // largest)))
    import psutil

    return int(max(1, min(CPU_LARGEST, psutil.virtual_memory().available // workers // 2 // largest)))


def rows_per_second(backbone: Backbone, encoded: EncodedTask, cell: Cell) -> float:
    """Training rows a second of one prompt, from a few real steps on a task.

    Args:
        backbone: the frozen backbone.
        encoded: the task's data.
        cell: a cell on this task that trains.
    """
    from panda_fusion.plugin_manager import peft_methods
    from panda_fusion.students import new_students
    from panda_fusion.trainer import TrainSettings, train_pack

    method = peft_methods().create(cell.method)
    students = new_students(backbone, encoded.task, method, [0], 1e-3)
    for steps in (1, PROBE_STEPS):  # the first one warms up
        started = time.perf_counter()
        settings = TrainSettings(epochs=PROBE_STEPS, max_steps=steps, batch_size=cell.batch_size)
        pack = train_pack(backbone, method, students, encoded.task, encoded.train, settings)
    return pack.samples / (time.perf_counter() - started)


def seconds(plan: Plan, rate: float) -> float:
    """A rough time for a plan: training rows at `rate` rows a second, and a third of that for rows that pass forward
    only (teachers; evaluations are not counted)."""
    return (sum(plan.training_rows(cell) for cell in plan.cells) + plan.teacher_rows() / 3) / rate
