"""Where packs are worked on: one backbone on one device, with everything that packs share kept at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from panda_fusion import plugin_manager as plugins
from panda_fusion.backbone import Backbone
from panda_fusion.device import precision_name
from panda_fusion.distillation import DistillationMethods, TeacherSignal, named_methods, teacher_signal
from panda_fusion.encoded_task import EncodedTask, encode_task
from panda_fusion.errors import TrainingError
from panda_fusion.matrix.cells import Cell
from panda_fusion.matrix.results_folder import prompt_path
from panda_fusion.matrix_record import CellRecord
from panda_fusion.peft_method import PEFTMethod
from panda_fusion.prompt import Lineage, Prompt
from panda_fusion.prompt_file import check_backbone, check_stored, load_prompt, save_prompt
from panda_fusion.ranking import score_sources
from panda_fusion.rows import TaskData, load_task_data
from panda_fusion.run import RunSettings, finished_prompts, library_versions, train_students
from panda_fusion.similarity import Similarity
from panda_fusion.sources import source_info, start_from, transfer_lineage
from panda_fusion.students import new_students
from panda_fusion.task_source import resolve_task
from panda_fusion.tensor_cache import TensorCache
from panda_fusion.trainer import Distillation, Student, TrainedPack, TrainSettings

SAMPLE_SEED = 0
"""Draws the training rows of a recipe that limits them: the same ones for all systems and seeds."""


@dataclass(frozen=True)
class _Planned:
    """A cell with its student, and where the second signal came from."""

    student: Student
    lineage: Lineage
    similarities: tuple[float, ...] = ()
    signal: TeacherSignal | None = None
    shares: int = 1


class Workshop:
    """Runs packs of a matrix.

    Args:
        backbone: the frozen backbone.
        data: folder with the tasks' rows; None: the Hub.
        folder: the results folder, for prompt files.
        recipe: digest of the recipe, for the records.
        kept: cells whose prompt files are written.
        tokens: where tokens are kept for the next run (`panda_fusion.tensor_cache.TOKENS`); None: nowhere.
    """

    def __init__(
        self,
        backbone: Backbone,
        data: Path | None,
        folder: Path,
        recipe: str,
        kept: set[str],
        tokens: TensorCache | None = None,
    ) -> None:
        self.backbone = backbone
        self.data = data
        self.folder = folder
        self.recipe = recipe
        self.kept = kept
        self.tokens = tokens
        self._tasks: dict[str, TaskData] = {}
        self._encoded: dict[tuple[object, ...], EncodedTask] = {}
        self._prompts: dict[Path, Prompt] = {}

    def run(self, cells: Sequence[Cell], pack: str) -> list[CellRecord]:
        """Run the cells of one pack.

        Args:
            cells: cells that share everything that a pack shares; what they need has been done.
            pack: the pack's identifier.

        Returns:
            One record per cell. A prompt that diverged makes a failed one.

        Raises:
            PandaFusionError: the pack as a whole failed.
            KeyboardInterrupt: Ctrl-C, after the step that was under way; nothing is recorded.
        """
        if not cells[0].trains:
            return [self._compare(cell, pack) for cell in cells]
        first = cells[0]
        method = plugins.peft_methods().create(first.method)
        settings = _settings(first)
        encoded = self._task(first, method)
        planned = self._plan(cells, method, encoded, settings)
        students = [one.student for one in planned]
        trained = train_students(self.backbone, method, students, encoded, settings)
        if trained.interrupted:
            raise KeyboardInterrupt
        prompts: list[Prompt | None] = [None] * len(cells)
        if any(cell.id in self.kept for cell in cells):
            lineages = [one.lineage for one in planned]
            prompts[:] = finished_prompts(self.backbone, encoded, trained, students, settings, lineages)
        records = []
        for place, (cell, one) in enumerate(zip(cells, planned, strict=True)):
            prompt = prompts[place]
            path = None
            if prompt is not None and cell.id in self.kept and not trained.diverged[place]:
                path = prompt_path(self.folder, cell.id)
                save_prompt(prompt, path)
            records.append(self._record(cell, one, trained, place, encoded, pack, path))
        return records

    def failed(self, cell: Cell, pack: str, error: BaseException) -> CellRecord:
        """The record of a cell that could not be done."""
        text = " ".join(str(error).split()) or type(error).__name__
        known = isinstance(error, TrainingError) or type(error).__module__.startswith("panda_fusion")
        return self._base(cell, pack, 1, "failed", text if known else f"{type(error).__name__}: {text}")

    def _task_data(self, name: str) -> TaskData:
        if name not in self._tasks:
            self._tasks[name] = load_task_data(resolve_task(name, self.data), self.data)
        return self._tasks[name]

    def encoded(self, cell: Cell) -> EncodedTask:
        """The cell's target, tokenised, with as many training rows as the recipe allows."""
        return self._task(cell, plugins.peft_methods().create(cell.method))

    def _task(self, cell: Cell, method: PEFTMethod) -> EncodedTask:
        # The texts do not depend on the method: a sweep of prompt lengths keeps them once.
        key = (cell.target, cell.samples, cell.max_length, cell.select_on)
        self.backbone.check_length(method.virtual_tokens(), cell.max_length)
        if key not in self._encoded:
            data = self._task_data(cell.target)
            if cell.samples is not None and cell.samples < len(data.train):
                order = np.random.default_rng(SAMPLE_SEED).permutation(len(data.train))[: cell.samples]
                data = replace(data, train=data.train.select(sorted(order.tolist())))
            self._encoded[key] = encode_task(self.backbone, data, cell.max_length, cell.select_on, self.tokens)
        return self._encoded[key]

    def _prompt(self, path: Path) -> Prompt:
        if path not in self._prompts:
            prompt = load_prompt(path)
            check_backbone(prompt, self.backbone.info, self.backbone.name)
            check_stored(prompt, self.backbone)
            self._prompts[path] = prompt
        return self._prompts[path]

    def _sources(self, cell: Cell) -> tuple[Prompt, ...]:
        trained = iter(cell.needs)
        return tuple(
            self._prompt(Path(name) if name in cell.files else prompt_path(self.folder, next(trained)))
            for name in cell.sources
        )

    def _own(self, cell: Cell) -> Prompt | None:
        """The target's own prompt, where the cell needs one."""
        trained = sum(name not in cell.files for name in cell.sources)
        return self._prompt(prompt_path(self.folder, cell.needs[trained])) if len(cell.needs) > trained else None

    def _plan(
        self, cells: Sequence[Cell], method: PEFTMethod, encoded: EncodedTask, settings: RunSettings
    ) -> list[_Planned]:
        signals: dict[tuple[object, ...], tuple[TeacherSignal, tuple[float, ...]]] = {}
        keys = [_signal_key(cell) for cell in cells]
        distinct = len({key for cell, key in zip(cells, keys, strict=True) if cell.system == "panda"})
        planned = []
        for cell, key in zip(cells, keys, strict=True):
            start = signal = distillation = None
            similarities: tuple[float, ...] = ()
            lineage = Lineage()
            sources = self._sources(cell)
            if cell.system == "vanilla":
                start = start_from(sources[0], method, self.backbone.shape)
                lineage = Lineage(sources=tuple(source_info(source) for source in sources))
            elif cell.system == "panda":
                methods, similarity = _methods(cell)
                if key not in signals:
                    signals[key] = self._signal(cell, sources, methods, similarity, method, encoded, settings, distinct)
                signal, similarities = signals[key]
                weight = methods.lambda_ * signal.distillation.weight
                distillation = Distillation(methods.kd, signal.distillation.targets, weight)
                lineage = transfer_lineage(sources, similarities, methods, similarity)
            (student,) = new_students(
                self.backbone, encoded.task, method, [cell.seed], cell.learning_rate, start, distillation
            )
            planned.append(_Planned(student, lineage, similarities, signal, keys.count(key)))
        return planned

    def _signal(
        self,
        cell: Cell,
        sources: Sequence[Prompt],
        methods: DistillationMethods,
        similarity: Similarity,
        method: PEFTMethod,
        encoded: EncodedTask,
        settings: RunSettings,
        signals: int,
    ) -> tuple[TeacherSignal, tuple[float, ...]]:
        """The teachers' signal at lambda 1, one of the pack's `signals`, and the similarities."""
        values = tuple(score_sources(self.backbone, similarity, sources, self._own(cell), encoded))
        signal = teacher_signal(
            self.backbone,
            encoded.task,
            encoded.train,
            sources,
            values,
            replace(methods, lambda_=1.0),
            method,
            settings.training,
            cell.learning_rate,
            cell.seed,
            signals=signals,
        )
        return signal, values

    def _compare(self, cell: Cell, pack: str) -> CellRecord:
        encoded = self.encoded(cell)
        values = {
            spec: score_sources(
                self.backbone, plugins.similarities().create(spec), self._sources(cell), self._own(cell), encoded
            )[0]
            for spec in cell.metrics
        }
        return msgspec.structs.replace(
            self._base(cell, pack, 1, "done"), metric=encoded.task.metric, transferability=values
        )

    def _record(
        self,
        cell: Cell,
        planned: _Planned,
        trained: TrainedPack,
        place: int,
        encoded: EncodedTask,
        pack: str,
        path: Path | None,
    ) -> CellRecord:
        scores = trained.scores[place]
        metric = encoded.task.metric
        size = len(trained.scores)
        error = None
        if trained.diverged[place]:
            error = (
                f"The prompt diverged: its loss or gradient was not finite at learning rate {cell.learning_rate:g}; "
                "lower the rate."
            )
        seconds = None
        if planned.signal is not None:
            seconds = (planned.signal.build_seconds + planned.signal.forward_seconds) / planned.shares
        first = next((value for _, epoch, value in scores.history if 1 <= epoch < 2), None)
        return msgspec.structs.replace(
            self._base(cell, pack, size, "failed" if error else "done", error),
            metric=metric,
            best=_finite(scores.best.get(metric)),
            last=_finite(scores.last.get(metric)),
            first_epoch=_finite(first),
            best_metrics={name: value for name, value in scores.best.items() if math.isfinite(value)},
            last_metrics={name: value for name, value in scores.last.items() if math.isfinite(value)},
            best_step=scores.best_step,
            history=tuple(point for point in scores.history if math.isfinite(point[2])),
            similarities=planned.similarities,
            steps=trained.steps,
            train_seconds=trained.train_seconds / size,
            teacher_seconds=seconds,
            samples_per_second=trained.samples_per_second,
            trainable_parameters=sum(
                tensor[place].numel() for part in (trained.tensors, trained.head) for tensor in part.values()
            ),
            prompt=None if path is None else str(path.relative_to(self.folder)),
        )

    def _base(
        self, cell: Cell, pack: str, size: int, status: Literal["done", "failed"], error: str | None = None
    ) -> CellRecord:
        return CellRecord(
            cell=cell.id,
            recipe=self.recipe,
            status=status,
            error=error,
            system=cell.system,
            model=Path(cell.model).name,
            target=cell.target,
            target_type=self._type(cell.target),
            sources=cell.sources,
            source_types=tuple("" if name in cell.files else self._type(name) for name in cell.sources),
            method=cell.method,
            teacher=cell.teacher,
            fusion=cell.fusion,
            kd=cell.kd,
            lambda_=cell.lambda_,
            similarity=cell.similarity,
            learning_rate=cell.learning_rate if cell.trains else None,
            epochs=cell.epochs if cell.trains else None,
            max_steps=cell.max_steps,
            batch_size=cell.batch_size if cell.trains else None,
            samples=cell.samples,
            seed=cell.seed,
            pack=pack,
            pack_size=size,
            device=self.backbone.device.type,
            precision=precision_name(self.backbone.dtype),
            versions=library_versions(),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _type(self, name: str) -> str:
        """The task type of Table I, or the kind where it has none."""
        task = resolve_task(name, self.data)
        return task.type or task.kind


def _settings(cell: Cell) -> RunSettings:
    return RunSettings(
        training=TrainSettings(
            epochs=cell.epochs,
            max_steps=cell.max_steps,
            batch_size=cell.batch_size,
            dropout=cell.dropout,
            backbone_dropout=cell.backbone_dropout,
            eval_every=cell.eval_every,
        ),
        learning_rate=cell.learning_rate,
        max_length=cell.max_length,
        select_on=cell.select_on,
    )


def _methods(cell: Cell) -> tuple[DistillationMethods, Similarity]:
    assert cell.teacher is not None
    assert cell.fusion is not None
    assert cell.kd is not None
    assert cell.lambda_ is not None
    assert cell.similarity is not None
    methods = named_methods(cell.teacher, cell.fusion, cell.kd, cell.lambda_)
    return methods, plugins.similarities().create(cell.similarity)


def _signal_key(cell: Cell) -> tuple[object, ...]:
    """What decides the teachers' signal; lambda is not part of it."""
    return (
        cell.sources,
        cell.needs,
        cell.teacher,
        cell.fusion,
        cell.kd,
        cell.similarity,
        cell.seed,
        cell.learning_rate,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
