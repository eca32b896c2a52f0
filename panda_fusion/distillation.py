"""From source prompts to soft targets: teacher, fusion, KD space (PanDa III-C2 and III-C3).

A teacher is frozen and deterministic, so its outputs for the training set are computed once and kept; the
student's training costs no teacher pass at all, however many epochs it takes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from panda_fusion import plugin_manager as plugins
from panda_fusion.errors import TrainingError
from panda_fusion.fusion import Fusion, PredictionFusion, PromptFusion, TrainingView
from panda_fusion.head_fit import fit_heads
from panda_fusion.inference import head_features, head_features_shape, pooled_vectors, write_logits
from panda_fusion.large_tensor import LargeTensor
from panda_fusion.readout import logits_shape, masked
from panda_fusion.students import heads_for
from panda_fusion.teacher import TeacherContext, TeacherPrompts
from panda_fusion.tensor_cache import TEACHER_OUTPUTS, cache_key, digest_samples, digest_tensors
from panda_fusion.trainer import Distillation, Student, TrainedPack, TrainSettings, train_pack

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from panda_fusion.backbone import Backbone
    from panda_fusion.dataset import EncodedSet
    from panda_fusion.kd_loss import KDLoss
    from panda_fusion.peft_method import PEFTMethod
    from panda_fusion.prompt import Prompt
    from panda_fusion.task import Task
    from panda_fusion.teacher import Teacher
    from panda_fusion.tensor_cache import TensorCache


FEATURE_BYTES = 2**30
"""Most memory for the states that a teacher's head is fitted on."""
TARGET_BYTES = 2**30
"""Most memory for teachers' predictions, and for the soft targets made of them; what is larger lies in a file.
Whole-row tasks stay far below (MNLI, K = 3: 14 MB), tagging and QA do not (SQuAD, 384 tokens, K = 3: 0.8 GB). Targets
in memory are also on the training device, beside backbone and activations, and reading a batch from a file costs
little, so there is no reason to allow more."""
FUSED_BYTES = 2**26
"""Predictions of K teachers that are made into targets and fused at a time."""


@dataclass(frozen=True)
class DistillationMethods:
    """Which methods make the second supervision signal.

    Attributes:
        teacher: makes teacher prompts from the sources.
        fusion: makes one signal of several sources.
        kd: compares student and teacher.
        lambda_: the largest weight of the KD loss (eq. 4); 0.05 in the paper.
    """

    teacher: Teacher
    fusion: Fusion
    kd: KDLoss
    lambda_: float


@dataclass(frozen=True)
class TeacherSignal:
    """The second supervision signal and what it cost.

    Attributes:
        distillation: for the students.
        forward_passes: passes over the training set for the teachers' predictions; 0 where the cache had them.
        build_seconds: wall-clock seconds of making the teachers (short training, fitting of heads).
        forward_seconds: wall-clock seconds of their passes over the training set.
    """

    distillation: Distillation
    forward_passes: int
    build_seconds: float
    forward_seconds: float


def named_methods(teacher: str, fusion: str, kd: str, lambda_: float = 0.05) -> DistillationMethods:
    """The methods of these method strings.

    Raises:
        PandaFusionError: a method does not exist or has wrong options.
    """
    return DistillationMethods(
        teacher=plugins.teachers().create(teacher),
        fusion=plugins.fusions().create(fusion),
        kd=plugins.kd_losses().create(kd),
        lambda_=lambda_,
    )


def check_methods(methods: DistillationMethods, sources: int, kind: str) -> None:
    """Refuse combinations that cannot work, before anything is computed.

    Raises:
        OptionError: the fusion does not take this number of sources, or the KD loss is not defined for the
            task kind.
    """
    methods.fusion.check_sources(sources)
    methods.kd.check_kind(kind)


def teacher_signal(
    backbone: Backbone,
    task: Task,
    train: EncodedSet,
    sources: Sequence[Prompt],
    similarities: Sequence[float],
    methods: DistillationMethods,
    student_method: PEFTMethod,
    settings: TrainSettings,
    learning_rate: float | None,
    seed: int,
    cache: TensorCache | None = None,
    signals: int = 1,
) -> TeacherSignal:
    """Build the teachers, run each once over the training set, and fuse.

    Predictions, and soft targets, of more than TARGET_BYTES are kept in a temporary file in the cache's folder (without
    a cache in the system's folder for such files), which is gone with the signal. The numbers are the same.

    Args:
        backbone: the frozen backbone.
        task: the target task.
        train: its training set of M examples.
        sources: K source prompts.
        similarities: their similarity to the target, K numbers.
        methods: teacher, fusion, KD loss, lambda.
        student_method: the student's PEFT method, for teachers that start from nothing.
        settings: the run's settings, for teachers that train.
        learning_rate: likewise; None: that of the method that is trained.
        seed: likewise.
        cache: where to look for the teachers' predictions and keep them; None: nowhere.
        signals: how many signals the caller holds at a time; they share TARGET_BYTES.

    Raises:
        OptionError: the methods cannot work together, or not with these sources.
        TrainingError: a teacher that was trained on the target diverged.
        OutputError: no disk has room for what is too large for memory.
    """
    check_methods(methods, len(sources), task.kind)
    started = time.perf_counter()
    weights = torch.tensor(list(similarities), dtype=torch.float32)
    fit = _Fit(backbone, task, train, settings, learning_rate, seed)
    prompts = methods.teacher.build(
        TeacherContext(
            backbone=backbone,
            train=train,
            sources=sources,
            method=student_method,
            seed=seed,
            steps_per_epoch=settings.steps(len(train))[0],
            fit=fit,
        )
    )
    if isinstance(methods.fusion, PromptFusion):
        fused = methods.fusion.fuse(prompts.tensors, weights)
        prompts = TeacherPrompts(prompts.method, {name: t.unsqueeze(0) for name, t in fused.items()})
    built = time.perf_counter() - started
    room = _Room(TARGET_BYTES // signals, None if cache is None else cache.folder)
    shape = (len(next(iter(prompts.tensors.values()))), len(train), *logits_shape(train, task.outputs))
    key = "" if cache is None else _outputs_key(backbone, task, train, prompts, seed)
    logits: torch.Tensor | LargeTensor | None = None
    if cache is not None:
        logits = cache.get(key) if room.holds(shape) else cache.get_large(key)
    forward_passes, forward_seconds, head_seconds = 0, 0.0, 0.0
    if logits is None:
        logits = room.tensor(shape)
        forward_seconds, head_seconds = _write_teacher_logits(backbone, task, train, prompts, seed, logits)
        forward_passes = shape[0]
        if cache is not None:
            if isinstance(logits, LargeTensor):
                cache.put_large(key, logits)
            else:
                cache.put({key: logits})
    view = None
    if isinstance(methods.fusion, PredictionFusion) and methods.fusion.needs_training_view:
        assert train.labels is not None
        view = TrainingView(pooled_vectors(backbone, train)[0].cpu(), train.labels.cpu(), task.kind)
    fused_targets = _soft_targets(logits, methods, task.kind, weights, view, room)
    scale = methods.fusion.kd_scale(similarities)
    return TeacherSignal(
        distillation=Distillation(methods.kd, fused_targets, methods.lambda_ * scale),
        forward_passes=forward_passes,
        build_seconds=built + head_seconds,
        forward_seconds=forward_seconds,
    )


def _outputs_key(backbone: Backbone, task: Task, train: EncodedSet, prompts: TeacherPrompts, seed: int) -> str:
    """Name of the teachers' predictions in the cache: of the whole pack, since it is one pass."""
    data = {
        name: tensor
        for name in ("labels", "words", "answerable")
        if (tensor := getattr(train, name)) is not None  # a head may be fitted on them
    }
    head = {} if prompts.head is None else {f"head.{name}": tensor for name, tensor in prompts.head.items()}
    fitted = f"fitted with seed {seed}" if prompts.head is None else "given"
    return cache_key(
        TEACHER_OUTPUTS,
        backbone,
        digest_tensors(f"{prompts.method.spec};head {fitted}", {**prompts.tensors, **head}),
        digest_samples(train),
        digest_tensors(f"{task.kind};{task.outputs}", data),
    )


@dataclass(frozen=True)
class _Room:
    """How much may be in memory, and in which folder the rest goes."""

    memory: int
    folder: Path | None

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape is to be in memory."""
        return 4 * math.prod(shape) <= self.memory

    def tensor(self, shape: tuple[int, ...]) -> torch.Tensor | LargeTensor:
        """A new tensor, of which every element is still to be written."""
        return torch.empty(shape) if self.holds(shape) else LargeTensor.temporary(shape, self.folder)


def _soft_targets(
    logits: torch.Tensor | LargeTensor,
    methods: DistillationMethods,
    kind: str,
    weights: torch.Tensor,
    view: TrainingView | None,
    room: _Room,
) -> torch.Tensor | LargeTensor:
    """[M, ...] soft targets of [K, M, ...] logits, some examples at a time where the fusion can do that."""
    fusion = methods.fusion
    examples = logits.shape[1]
    at_once = examples
    if not isinstance(fusion, PredictionFusion) or (fusion.by_example and view is None):
        at_once = max(1, FUSED_BYTES * examples // (4 * math.prod(logits.shape)))
    result = room.tensor((examples, *logits.shape[2:]))
    for first in range(0, examples, at_once):
        some = slice(first, first + at_once)
        targets = methods.kd.targets(logits[:, some], kind)
        result[some] = fusion.fuse(targets, weights, view) if isinstance(fusion, PredictionFusion) else targets[0]
    return result


def _write_teacher_logits(
    backbone: Backbone,
    task: Task,
    train: EncodedSet,
    prompts: TeacherPrompts,
    seed: int,
    into: torch.Tensor | LargeTensor,
) -> tuple[float, float]:
    """Write [K, M, ...] logits `into` memory or a file; (seconds of the pass, seconds of fitting heads).

    A head that must be fitted is fitted on the features of that same pass, or, where those of the whole training set
    would not fit into memory, on those of a part of it, before the pass. Prompts that cannot share a pass take turns.
    """
    if not prompts.method.packable and len(next(iter(prompts.tensors.values()))) > 1:
        seconds = [
            _write_teacher_logits(backbone, task, train, one, seed, _part(into, place))
            for place, one in enumerate(_singly(prompts))
        ]
        return sum(forward for forward, _ in seconds), sum(head for _, head in seconds)
    started = time.perf_counter()
    if prompts.head is not None:
        write_logits(backbone, train, prompts.method, prompts.tensors, prompts.head, task.outputs, into)
        return time.perf_counter() - started, 0.0
    examples = _examples_to_fit_on(backbone, train, len(next(iter(prompts.tensors.values()))))
    some = train if examples is None else train.subset(examples)
    features = head_features(backbone, some, prompts.method, prompts.tensors)
    forward_seconds = time.perf_counter() - started
    heads = fit_heads(backbone, features, some, task.outputs, seed)
    if examples is None:
        on_device = {name: tensor.to(backbone.device) for name, tensor in heads.items()}
        everything = torch.arange(len(train), device=backbone.device).expand(len(features), -1)
        with torch.inference_mode():
            logits = backbone.head(task.outputs, task.kind)(on_device, features)
            into[:] = masked(logits, train, everything).cpu()
        return forward_seconds, time.perf_counter() - started - forward_seconds
    fitted = time.perf_counter()
    del features  # up to FEATURE_BYTES, of no use in the pass over the whole set
    write_logits(backbone, train, prompts.method, prompts.tensors, heads, task.outputs, into)
    passes = forward_seconds + time.perf_counter() - fitted
    return passes, time.perf_counter() - started - passes


def _part(tensor: torch.Tensor | LargeTensor, place: int) -> torch.Tensor | LargeTensor:
    """One prompt's place in a tensor of all, to write to."""
    part = slice(place, place + 1)
    return tensor.part(part) if isinstance(tensor, LargeTensor) else tensor[part]


def _singly(prompts: TeacherPrompts) -> list[TeacherPrompts]:
    """Each prompt of a pack as a pack of one."""

    def one(tensors: Mapping[str, torch.Tensor], place: int) -> dict[str, torch.Tensor]:
        return {name: tensor[place : place + 1] for name, tensor in tensors.items()}

    count = len(next(iter(prompts.tensors.values())))
    return [
        TeacherPrompts(
            prompts.method, one(prompts.tensors, place), None if prompts.head is None else one(prompts.head, place)
        )
        for place in range(count)
    ]


def _joined(packs: Sequence[TrainedPack]) -> TrainedPack:
    """Packs of one method that were trained one after the other, as one."""
    first = packs[0]
    return replace(
        first,
        tensors={name: torch.cat([pack.tensors[name] for pack in packs]) for name in first.tensors},
        head={name: torch.cat([pack.head[name] for pack in packs]) for name in first.head},
        scores=[score for pack in packs for score in pack.scores],
        train_seconds=sum(pack.train_seconds for pack in packs),
        samples=sum(pack.samples for pack in packs),
        diverged=[diverged for pack in packs for diverged in pack.diverged],
        interrupted=any(pack.interrupted for pack in packs),
    )


def _examples_to_fit_on(backbone: Backbone, train: EncodedSet, prompts: int) -> np.ndarray | None:
    """Evenly spaced examples whose features fit into memory; None: all of them do.

    States of every word or token, as the heads of tagging and QA read them, are a hundred times those of a
    pooled vector.
    """
    shape = head_features_shape(backbone, train)
    most = max(1, FEATURE_BYTES // (4 * prompts * math.prod(shape)))
    return None if len(train) <= most else np.linspace(0, len(train) - 1, most).astype(np.int64)


@dataclass(frozen=True)
class _Fit:
    """The `fit` of a TeacherContext: short training on the target, all K prompts side by side where they can."""

    backbone: Backbone
    task: Task
    train: EncodedSet
    settings: TrainSettings
    learning_rate: float | None
    seed: int

    def __call__(
        self,
        method: PEFTMethod,
        tensors: Mapping[str, torch.Tensor],
        *,
        epochs: int,
        max_steps: int | None,
    ) -> TrainedPack:
        count = next(iter(tensors.values())).shape[0]
        rate = method.learning_rate if self.learning_rate is None else self.learning_rate
        heads = heads_for(self.backbone, self.task, [self.seed] * count)
        students = [
            Student(
                tensors={name: tensor[k] for name, tensor in tensors.items()},
                head=heads[k],
                seed=self.seed,
                learning_rate=rate,
            )
            for k in range(count)
        ]
        settings = replace(self.settings, epochs=epochs, max_steps=max_steps)
        groups = [students] if method.packable else [[student] for student in students]
        pack = _joined([train_pack(self.backbone, method, group, self.task, self.train, settings) for group in groups])
        if pack.interrupted:  # half a teacher teaches nothing
            raise KeyboardInterrupt
        if any(pack.diverged):
            raise TrainingError(
                f"Teacher {pack.diverged.index(True) + 1} of {count} diverged while it was trained on the target; "
                f"lower the learning rate (it is {rate:g}) or use --teacher source."
            )
        return pack
