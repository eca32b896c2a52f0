"""The training loop: G prompts in one forward and backward pass of one frozen backbone."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from panda_fusion.dataset import EncodedSet, epoch_batches
from panda_fusion.errors import TrainingError
from panda_fusion.heap import kept_heap
from panda_fusion.inference import predict_logits
from panda_fusion.injection import Rows
from panda_fusion.interrupt import stop_on_interrupt
from panda_fusion.mask_pool import MaskPool, dropout_from
from panda_fusion.optimizer import PackedAdamW, PackedParameters
from panda_fusion.readout import cut_targets, labels_and_mask, logits_shape, masked, read
from panda_fusion.scoring import score_outputs
from panda_fusion.task_loss import task_losses

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.kd_loss import KDLoss
    from panda_fusion.large_tensor import LargeTensor
    from panda_fusion.peft_method import PEFTMethod
    from panda_fusion.task import Task

Tensors = Mapping[str, torch.Tensor]
_PEFT, _HEAD = "peft.", "head."
EVALUATION_BYTES = 2**30
"""Logits of an evaluation that are held at once; prompts of a large pack are evaluated in turn beyond that."""
DEAD_CHECK_STEPS = 50
"""On a GPU, steps between two looks at whether any prompt still trains (each look waits for the device)."""


@dataclass(frozen=True)
class Distillation:
    """The second supervision signal of a student (PanDa eq. 4 to 6).

    Attributes:
        loss: the KD loss.
        targets: [M, ...] float32 soft targets for the training set, in its order; in memory they go to the device as a
            whole, from a file a batch's rows at a time.
        weight: lambda, times the similarity where the fusion says so.
    """

    loss: KDLoss
    targets: torch.Tensor | LargeTensor
    weight: float


@dataclass(frozen=True)
class Student:
    """One prompt to train.

    Attributes:
        tensors: trainable tensors of the PEFT method, no pack axis.
        head: head parameters, no pack axis.
        seed: seeds the order of the data.
        learning_rate: peak learning rate.
        distillation: soft targets, or None for the task loss alone (eq. 1).
    """

    tensors: Tensors
    head: Tensors
    seed: int
    learning_rate: float
    distillation: Distillation | None = None


@dataclass(frozen=True)
class TrainSettings:
    """What all prompts of a pack share.

    Attributes:
        epochs: passes over the training set.
        max_steps: stop after this many steps whatever the epochs; None: no limit.
        batch_size: rows per prompt and step.
        dropout: probability in the head.
        backbone_dropout: probability in the frozen backbone; 0 (default) is several times faster.
        eval_every: steps between evaluations; None: after every epoch.
    """

    epochs: int = 10
    max_steps: int | None = None
    batch_size: int = 32
    dropout: float = 0.1
    backbone_dropout: float = 0.0
    eval_every: int | None = None

    def steps(self, examples: int) -> tuple[int, int]:
        """(steps in an epoch, steps in all) for a training set of this size."""
        per_epoch = -(-examples // self.batch_size)
        total = self.epochs * per_epoch
        return per_epoch, total if self.max_steps is None else min(total, self.max_steps)


@dataclass(frozen=True)
class Scores:
    """Scores of one prompt on the validation set.

    Attributes:
        best: metrics at the step that the selection split chose.
        last: metrics after the last step.
        best_step: that step.
        history: (step, epoch, value of the main metric on the selection split).
    """

    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    history: tuple[tuple[int, float, float], ...] = ()


@dataclass(frozen=True)
class TrainedPack:
    """What comes out of `train_pack`. Tensors are float32 on the CPU with the pack axis G in front.

    Attributes:
        method: PEFT method of the prompts.
        tensors: trainable tensors at the best step (the last one where nothing was evaluated).
        head: head parameters at the same step.
        scores: one per prompt; empty metrics where nothing was evaluated.
        steps: steps done.
        steps_planned: steps that were to be done.
        train_seconds: wall-clock seconds of the training steps, evaluations left out.
        samples: training rows seen, all prompts together.
        diverged: per prompt, whether it stopped learning on a loss or gradient that was not finite.
        interrupted: whether Ctrl-C ended the training.
    """

    method: PEFTMethod
    tensors: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]
    scores: list[Scores]
    steps: int
    steps_planned: int
    train_seconds: float
    samples: int
    diverged: list[bool]
    interrupted: bool

    @property
    def samples_per_second(self) -> float:
        """Training rows per second over all prompts of the pack."""
        return self.samples / self.train_seconds if self.train_seconds > 0 else 0.0


def train_pack(
    backbone: Backbone,
    method: PEFTMethod,
    students: Sequence[Student],
    task: Task,
    train: EncodedSet,
    settings: TrainSettings,
    validation: EncodedSet | None = None,
    selection: EncodedSet | None = None,
) -> TrainedPack:
    """Train G prompts side by side; without dropout each comes out as it would alone.

    Args:
        backbone: the frozen backbone.
        method: PEFT method of all prompts.
        students: the prompts; learning rates, seeds, starts and distillations may differ.
        task: the target task.
        train: its training set.
        settings: what all share.
        validation: what scores are reported on; None: no evaluation, and the last step is the result.
        selection: the split that chooses the best step; None: the validation set does.

    Raises:
        TrainingError: the loss of every prompt stopped being finite before anything was evaluated, or a PEFT method
            that trains alone was given a pack.
    """
    if len(students) > 1 and not method.packable:
        raise TrainingError(
            f"PEFT method {method.name!r} changes the backbone itself, so its prompts train one at a time; "
            f"{len(students)} were given as one pack."
        )
    return _Run(backbone, method, students, task, train, settings, validation, selection).train()


class _Run:
    """State of one call of `train_pack`."""

    def __init__(
        self,
        backbone: Backbone,
        method: PEFTMethod,
        students: Sequence[Student],
        task: Task,
        train: EncodedSet,
        settings: TrainSettings,
        validation: EncodedSet | None,
        selection: EncodedSet | None,
    ) -> None:
        self.backbone, self.method, self.task = backbone, method, task
        self.students, self.settings = students, settings
        self.data, self.validation, self.selection = train, validation, selection
        self.per_epoch, self.total = settings.steps(len(train))
        if self.total < 1:
            raise TrainingError("There is nothing to train: epochs and max steps must be at least 1.")
        named = [
            {_PEFT + k: v for k, v in s.tensors.items()} | {_HEAD + k: v for k, v in s.head.items()} for s in students
        ]
        self.parameters = PackedParameters(named, backbone.device)
        self.optimizer = PackedAdamW(self.parameters.flat, [s.learning_rate for s in students], self.total)
        self.head = backbone.head(task.outputs, task.kind)
        self.rows = Rows(len(students))
        self.distillers = _group_distillations(students, backbone.device)
        self.best_flat = self.parameters.flat.detach().clone()
        self.best_value = [-float("inf")] * len(students)
        self.best_step = [0] * len(students)
        self.best_metrics: list[dict[str, float]] = [{} for _ in students]
        self.last_metrics: list[dict[str, float]] = [{} for _ in students]
        self.history: list[list[tuple[int, float, float]]] = [[] for _ in students]
        self.evaluated_at = 0
        self.masks: MaskPool | None = None

    def train(self) -> TrainedPack:
        """The loop."""
        from panda_fusion.plugin_manager import hooks

        hook = hooks()
        run = self._description()
        started = time.perf_counter()
        training_seconds = 0.0
        samples = step = 0
        error: BaseException | None = None
        interrupted = False
        hook.run_started(run=run)
        try:
            with stop_on_interrupt() as interrupt, kept_heap(), self._seeded_dropout():
                mark = time.perf_counter()
                for index, width in self._steps():
                    losses = self._step(index, width)
                    step += 1
                    samples += index.numel()
                    hook.step_ended(step=step, steps=self.total, losses=losses)
                    stop = interrupt.requested or (self._time_to_look(step) and self._all_dead())
                    if stop or self._evaluation_due(step):
                        self._wait()
                        training_seconds += time.perf_counter() - mark
                        interrupted = interrupt.requested
                        if self.validation is not None and not self._nothing_to_show():
                            scores = self._evaluate(step)
                            epoch = step / self.per_epoch
                            answers = hook.evaluated(step=step, epoch=epoch, scores=scores)
                            stop = stop or any(answer is True for answer in answers) or self._all_dead()
                        mark = time.perf_counter()
                        if stop:
                            break
                else:
                    self._wait()
                    training_seconds += time.perf_counter() - mark
            if self._nothing_to_show():
                raise TrainingError(
                    f"The loss was not finite at step {step} of {self.total}, before anything was evaluated; lower the "
                    f"learning rate (it is {max(s.learning_rate for s in self.students):g})."
                )
            return self._result(step, training_seconds, samples, interrupted)
        except BaseException as raised:
            error = raised
            raise
        finally:
            ended = run | {"steps_done": step, "wall_seconds": time.perf_counter() - started}
            hook.run_ended(run=ended, error=error)

    @contextmanager
    def _seeded_dropout(self) -> Iterator[None]:
        """Draw dropout from the first prompt's seed, and leave the caller's random state as it was."""
        cuda = self.backbone.device.type == "cuda"
        with torch.random.fork_rng(devices=[self.backbone.device] if cuda else []):
            torch.manual_seed(self.students[0].seed)
            if cuda or not self.settings.backbone_dropout:
                yield
                return
            self.masks = MaskPool(self.settings.backbone_dropout, self.backbone.dtype)
            with dropout_from(self.masks):
                yield

    def _steps(self) -> Iterator[tuple[torch.Tensor, int]]:
        """([G, B] example indices on the device, longest row) of every step."""
        lengths = self.data.example_lengths()
        done = epoch = 0
        while done < self.total:
            plans = [epoch_batches(lengths, self.settings.batch_size, s.seed, epoch) for s in self.students]
            # One transfer per epoch; a step then takes a slice.
            flat = torch.from_numpy(np.stack([np.concatenate(plan) for plan in plans])).to(self.backbone.device)
            start = 0
            for parts in zip(*plans, strict=True):
                if done == self.total:
                    return
                size = len(parts[0])
                yield flat[:, start : start + size], max(int(lengths[part].max()) for part in parts)
                start += size
                done += 1
            epoch += 1

    def _step(self, index: torch.Tensor, width: int) -> torch.Tensor:
        """One update of every prompt; the losses [G], detached."""
        if self.masks is not None:
            self.masks.refresh()
        losses = self._losses(index, width)
        losses.sum().backward()
        detached = losses.detach()
        self.optimizer.step(detached)
        return detached

    def _losses(self, index: torch.Tensor, width: int) -> torch.Tensor:
        """Eq. 4 to 6 for every prompt: task loss plus weighted KD loss, [G]."""
        tensors = self.parameters.tensors()
        injection = self.method.inject(_part(tensors, _PEFT), self.backbone.shape)
        features = read(self.backbone, self.data, index, width, injection, self.rows, self.settings.backbone_dropout)
        logits = self.head(_part(tensors, _HEAD), features, self.settings.dropout, injection.weights)
        logits = masked(logits, self.data, index)
        labels, mask = labels_and_mask(self.data, index, width)
        losses = task_losses(logits, labels, self.data.kind, mask)
        for distiller in self.distillers:
            losses = distiller.add(losses, logits, index, self.data.kind, mask)
        return losses

    def _time_to_look(self, step: int) -> bool:
        return self.backbone.device.type != "cuda" or step % DEAD_CHECK_STEPS == 0

    def _all_dead(self) -> bool:
        return not bool(self.optimizer.alive.any())

    def _nothing_to_show(self) -> bool:
        """No prompt is alive and none was evaluated while it was."""
        return not self.evaluated_at and self._all_dead()

    def _evaluation_due(self, step: int) -> bool:
        if self.validation is None:
            return False
        return step % (self.settings.eval_every or self.per_epoch) == 0 or step == self.total

    def _wait(self) -> None:
        if self.backbone.device.type == "cuda":
            torch.cuda.synchronize(self.backbone.device)

    def _score(self, flat: torch.Tensor, data: EncodedSet) -> list[dict[str, float]]:
        tensors = self.parameters.tensors(flat)
        peft, head = _part(tensors, _PEFT), _part(tensors, _HEAD)
        each = 4 * len(data) * math.prod(logits_shape(data, self.task.outputs))
        size = max(1, EVALUATION_BYTES // each)
        scores = []
        for first in range(0, len(self.students), size):
            some = slice(first, first + size)
            logits = predict_logits(
                self.backbone,
                data,
                self.method,
                {name: tensor[some] for name, tensor in peft.items()},
                {name: tensor[some] for name, tensor in head.items()},
                self.task.outputs,
            )
            scores += [self._metrics(row, data) for row in logits.cpu().numpy()]
        return scores

    def _metrics(self, logits: np.ndarray, data: EncodedSet) -> dict[str, float]:
        """Scores of one prompt; NaN for one whose outputs are not finite, which the others must not feel."""
        if np.isfinite(logits).all():
            return score_outputs(self.task, data, logits)
        return dict.fromkeys(score_outputs(self.task, data, np.zeros_like(logits)), float("nan"))

    def _evaluate(self, step: int) -> dict[str, list[float]]:
        """Score all prompts on the selection split and keep those that got better."""
        chooser = self.validation if self.selection is None else self.selection
        assert chooser is not None
        flat = self.parameters.flat.detach()
        metrics = self._score(flat, chooser)
        values = [next(iter(metric.values())) for metric in metrics]
        finite = torch.tensor([math.isfinite(value) for value in values], device=self.backbone.device)
        self.optimizer.alive &= finite
        alive = self.optimizer.alive.tolist()
        for g, (metric, value) in enumerate(zip(metrics, values, strict=True)):
            self.history[g].append((step, step / self.per_epoch, value))
            self.last_metrics[g] = metric
            # Not finite compares as false. A diverged prompt stands still: only its first score is news.
            if value > self.best_value[g] and (alive[g] or not self.best_metrics[g]):
                self.best_value[g], self.best_step[g] = value, step
                self.best_metrics[g] = metric
                self.best_flat[g] = flat[g]
        if bool(finite.any()):
            self.evaluated_at = step
        return {name: [metric[name] for metric in metrics] for name in metrics[0]}

    def _result(self, step: int, seconds: float, samples: int, interrupted: bool) -> TrainedPack:
        flat = self.parameters.flat.detach()
        if self.validation is None or not self.evaluated_at:
            best, scores = flat, [Scores() for _ in self.students]
        else:
            best = self.best_flat
            best_metrics, last_metrics = self.best_metrics, self.last_metrics
            if self.selection is not None:
                best_metrics = self._score(best, self.validation)
                last_metrics = self._score(flat, self.validation)
            scores = [
                Scores(best_metrics[g], last_metrics[g], self.best_step[g], tuple(self.history[g]))
                for g in range(len(self.students))
            ]
        tensors = {name: tensor.cpu().clone() for name, tensor in self.parameters.tensors(best).items()}
        return TrainedPack(
            method=self.method,
            tensors=_part(tensors, _PEFT),
            head=_part(tensors, _HEAD),
            scores=scores,
            steps=step,
            steps_planned=self.total,
            train_seconds=seconds,
            samples=samples,
            diverged=[not alive for alive in self.optimizer.alive.tolist()],
            interrupted=interrupted,
        )

    def _description(self) -> dict[str, object]:
        """What lifecycle hooks are told of the run."""
        from panda_fusion.device import precision_name

        return {
            "task": self.task.name,
            "model": self.backbone.name,
            "method": self.method.spec,
            "prompts": len(self.students),
            "seeds": [s.seed for s in self.students],
            "epochs": self.settings.epochs,
            "steps": self.total,
            "batch_size": self.settings.batch_size,
            "device": self.backbone.device.type,
            "precision": precision_name(self.backbone.dtype),
        }


@dataclass(frozen=True)
class _Distiller:
    """G prompts of the pack that share a KD loss.

    Attributes:
        loss: it.
        members: [G] their places in the pack.
        weights: [G] of the KD loss.
        signals: [G] which of `targets` each follows.
        targets: [signals, M, ...] on the device, or one by one where any is in a file.
    """

    loss: KDLoss
    members: torch.Tensor
    weights: torch.Tensor
    signals: torch.Tensor
    targets: torch.Tensor | list[torch.Tensor | LargeTensor]

    def add(
        self, losses: torch.Tensor, logits: torch.Tensor, index: torch.Tensor, kind: str, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Losses [G] with the members' weighted KD losses added; over real tokens only (`mask`)."""
        own = index[self.members]
        targets = cut_targets(self._rows(own), logits)
        counts = None if mask is None else mask[self.members]
        values = self.loss.loss(logits[self.members], targets, kind, counts)
        return losses.index_add(0, self.members, self.weights * values)

    def _rows(self, index: torch.Tensor) -> torch.Tensor:
        """Soft targets [G, B, ...] of examples [G, B]."""
        if isinstance(self.targets, torch.Tensor):
            return self.targets[self.signals[:, None], index]
        signals = self.signals.tolist()
        rows = [self.targets[signal][own].cpu() for signal, own in zip(signals, index.cpu(), strict=True)]
        return torch.stack(rows).to(index.device)


def _group_distillations(students: Sequence[Student], device: torch.device) -> list[_Distiller]:
    groups: dict[tuple[type, str], list[int]] = {}
    for place, student in enumerate(students):
        if student.distillation is not None:
            groups.setdefault((type(loss := student.distillation.loss), loss.spec), []).append(place)
    made = []
    for places in groups.values():
        parts = [d for p in places if (d := students[p].distillation) is not None]
        # Students of one signal hold the same object: its targets are needed once.
        targets = list({id(part.targets): part.targets for part in parts}.values())
        signals = [next(n for n, one in enumerate(targets) if one is part.targets) for part in parts]
        in_memory = [one for one in targets if isinstance(one, torch.Tensor)]
        made.append(
            _Distiller(
                loss=parts[0].loss,
                members=torch.tensor(places, device=device),
                weights=torch.tensor([part.weight for part in parts], device=device),
                signals=torch.tensor(signals, device=device),
                targets=_stacked(in_memory, device) if len(in_memory) == len(targets) else targets,
            )
        )
    return made


def _stacked(tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """On a device along a new first axis; a single one without a copy."""
    moved = [tensor.to(device) for tensor in tensors]
    return moved[0].unsqueeze(0) if len(moved) == 1 else torch.stack(moved)


def _part(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
