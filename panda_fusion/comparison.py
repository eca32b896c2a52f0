"""Ways of adapting to one target beside each other: scratch, vanilla transfer, PanDa; several seeds, one pack."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from panda_fusion.distillation import DistillationMethods, TeacherSignal, teacher_signal
from panda_fusion.prompt import Lineage, Prompt
from panda_fusion.run import RunSettings, finished_prompts, train_students
from panda_fusion.sources import source_info, start_from, transfer_lineage
from panda_fusion.students import new_students
from panda_fusion.trainer import Student, TrainedPack

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.encoded_task import EncodedTask
    from panda_fusion.peft_method import PEFTMethod
    from panda_fusion.similarity import Similarity


@dataclass(frozen=True)
class System:
    """One way of getting a prompt for the target.

    Attributes:
        name: how tables call it.
        sources: none: training from scratch; without `methods` one: vanilla transfer starts from it.
        similarities: of the sources to the target.
        methods: distil the sources by these (PanDa); None: no distillation.
    """

    name: str
    sources: tuple[Prompt, ...] = ()
    similarities: tuple[float, ...] = ()
    methods: DistillationMethods | None = None


@dataclass(frozen=True)
class SystemResult:
    """What came of a system, one entry per seed.

    Attributes:
        system: the system.
        best: main metric on the validation set at the best step.
        last: the same after the last step.
        prompts: the trained prompts.
        signal: the teachers' signal and its cost; None without distillation.
    """

    system: System
    best: tuple[float, ...]
    last: tuple[float, ...]
    prompts: tuple[Prompt, ...]
    signal: TeacherSignal | None


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (0 for a single value)."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one or more values."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.deviation:.1f}"


@dataclass(frozen=True)
class Comparison:
    """All systems' results and the packs that they were trained in."""

    results: tuple[SystemResult, ...]
    packs: tuple[TrainedPack, ...]


def compare(
    backbone: Backbone,
    method: PEFTMethod,
    encoded: EncodedTask,
    systems: Sequence[System],
    similarity: Similarity,
    seeds: Sequence[int],
    settings: RunSettings,
    largest_pack: int = 64,
) -> Comparison:
    """Train every system with every seed on one target, side by side.

    A system's teachers are built once, with the first seed, and serve all of its seeds.

    Args:
        backbone: the frozen backbone.
        method: PEFT method of all prompts.
        encoded: the target task.
        systems: what to compare.
        similarity: where the systems' similarities come from (recorded in the prompts).
        seeds: one prompt per system and seed.
        settings: of every prompt.
        largest_pack: train at most this many prompts in one forward pass; the results do not depend on it.

    Raises:
        KeyboardInterrupt: Ctrl-C; systems cut short at different steps could not be compared.
    """
    count = sum(system.methods is not None for system in systems)
    signals = [_signal(backbone, method, encoded, system, settings, seeds[0], count) for system in systems]
    students: list[Student] = []
    for system, signal in zip(systems, signals, strict=True):
        start = None
        if system.methods is None and system.sources:
            start = start_from(system.sources[0], method, backbone.shape)
        students += new_students(
            backbone,
            encoded.task,
            method,
            seeds,
            settings.learning_rate,
            start,
            None if signal is None else signal.distillation,
        )
    lineages = [_lineage(system, similarity) for system in systems for _ in seeds]
    packs: list[TrainedPack] = []
    prompts: list[Prompt] = []
    scores = []
    for first in range(0, len(students), largest_pack):
        part = students[first : first + largest_pack]
        pack = train_students(backbone, method, part, encoded, settings)
        packs.append(pack)
        scores += pack.scores
        prompts += finished_prompts(backbone, encoded, pack, part, settings, lineages[first : first + largest_pack])
        if pack.interrupted:
            raise KeyboardInterrupt
    metric = encoded.task.metric
    results = []
    for place, (system, signal) in enumerate(zip(systems, signals, strict=True)):
        own = slice(place * len(seeds), (place + 1) * len(seeds))
        results.append(
            SystemResult(
                system=system,
                best=tuple(score.best.get(metric, math.nan) for score in scores[own]),
                last=tuple(score.last.get(metric, math.nan) for score in scores[own]),
                prompts=tuple(prompts[own]),
                signal=signal,
            )
        )
    return Comparison(tuple(results), tuple(packs))


def _signal(
    backbone: Backbone,
    method: PEFTMethod,
    encoded: EncodedTask,
    system: System,
    settings: RunSettings,
    seed: int,
    count: int,
) -> TeacherSignal | None:
    if system.methods is None:
        return None
    return teacher_signal(
        backbone,
        encoded.task,
        encoded.train,
        system.sources,
        system.similarities,
        system.methods,
        method,
        settings.training,
        settings.learning_rate,
        seed,
        signals=count,
    )


def _lineage(system: System, similarity: Similarity) -> Lineage:
    if system.methods is not None:
        return transfer_lineage(system.sources, system.similarities, system.methods, similarity)
    return Lineage(sources=tuple(source_info(s) for s in system.sources))
