"""The training loop: packs against single runs, what goes wrong, what is kept, and what hooks are told."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_samples import (
    CLASSES,
    VALUES,
    accuracy,
    encoded,
    head_of,
    largest,
    logits,
    method,
    pack,
    slice_of,
)
from torch.nn import functional as F

from panda_fusion import hookimpl
from panda_fusion.backbone import Backbone
from panda_fusion.dataset import EncodedSet, epoch_batches
from panda_fusion.errors import TrainingError
from panda_fusion.peft_method import PEFTMethod
from panda_fusion.plugin_manager import kd_losses, temporary_plugin
from panda_fusion.students import new_students
from panda_fusion.task import Task
from panda_fusion.testing import MODEL_TYPES
from panda_fusion.trainer import Distillation, Student, TrainedPack, TrainSettings, train_pack

Tiny = Callable[[str], Backbone]
EXAMPLES, BATCH = 50, 8
PER_EPOCH = 7
SETTINGS = TrainSettings(epochs=2, batch_size=BATCH, dropout=0.0)
SPECS = {
    "classification": ("mse", "kl:temperature=2", None, "ce", "mse"),
    "regression": ("mse", "mse:space=logits", None, "mse", "mse"),
}
WEIGHTS = (0.5, 1.0, 0.0, 0.3, 0.05)
RATES = (1e-2, 3e-3, 5e-3, 1e-3, 2e-2)
"""Rounding alone sets the runs 1e-6 apart at these rates, and up to 5e-6 at twice to four times them."""


def varied_students(backbone: Backbone, task: Task, peft: PEFTMethod, data: EncodedSet) -> list[Student]:
    """Five prompts that share nothing: seed, rate, start (the second begins at a given prompt), KD loss, lambda."""
    generator = torch.Generator().manual_seed(5)
    students = []
    for place, (spec, weight, rate) in enumerate(zip(SPECS[task.kind], WEIGHTS, RATES, strict=True)):
        distillation = None
        if spec is not None:
            loss = kd_losses().create(spec)
            teacher = torch.randn(len(data), task.outputs, generator=generator)
            distillation = Distillation(loss, loss.targets(teacher, task.kind), weight)
        start = {n: t[0] for n, t in pack(peft, backbone, 1, 9).items()} if place == 1 else None
        students += new_students(backbone, task, peft, [3 * place + 1], rate, start, distillation)
    return students


def plain_students(backbone: Backbone, peft: PEFTMethod, rates: list[float], task: Task = CLASSES) -> list[Student]:
    return [new_students(backbone, task, peft, [seed], rate)[0] for seed, rate in enumerate(rates)]


class Recorder:
    """A plugin that writes down every lifecycle call and acts at chosen steps."""

    def __init__(self, interrupt_at: tuple[int, ...] = (), stop_at: int | None = None) -> None:
        self.interrupt_at, self.stop_at = interrupt_at, stop_at
        self.started: list[dict[str, object]] = []
        self.losses: list[torch.Tensor] = []
        self.steps: list[tuple[int, int]] = []
        self.scores: list[tuple[int, float, dict[str, list[float]]]] = []
        self.ended: list[tuple[dict[str, object], BaseException | None]] = []

    @hookimpl
    def run_started(self, run: Mapping[str, object]) -> None:
        self.started.append(dict(run))

    @hookimpl
    def step_ended(self, step: int, steps: int, losses: torch.Tensor) -> None:
        self.steps.append((step, steps))
        self.losses.append(losses.clone())
        for _ in range(self.interrupt_at.count(step)):
            signal.raise_signal(signal.SIGINT)

    @hookimpl
    def evaluated(self, step: int, epoch: float, scores: Mapping[str, list[float]]) -> bool | None:
        self.scores.append((step, epoch, dict(scores)))
        return step == self.stop_at

    @hookimpl
    def run_ended(self, run: Mapping[str, object], error: BaseException | None) -> None:
        self.ended.append((dict(run), error))


def recorded(recorder: Recorder, *arguments: Any, **named: Any) -> TrainedPack:
    with temporary_plugin(recorder):
        return train_pack(*arguments, **named)


PACKS = [
    *[(model_type, task, "prefix:length=4") for model_type in MODEL_TYPES for task in (CLASSES, VALUES)],
    ("bert", CLASSES, "prefix:length=4,projection=12"),
    ("bert", CLASSES, "prompt:length=4"),
    ("electra", VALUES, "prompt:length=4"),
]


@pytest.mark.parametrize(
    ("model_type", "task", "spec"), PACKS, ids=lambda value: value.kind if isinstance(value, Task) else value
)
def test_pack_equals_every_prompt_alone(model_type: str, task: Task, spec: str, tiny: Tiny) -> None:
    backbone, peft = tiny(model_type), method(spec)
    data = encoded(backbone, task, EXAMPLES)
    students = varied_students(backbone, task, peft, data)
    together = train_pack(backbone, peft, students, task, data, SETTINGS)
    assert (together.steps, together.samples) == (14, 2 * EXAMPLES * len(students))
    for place, student in enumerate(students):
        alone = train_pack(backbone, peft, [student], task, data, SETTINGS)
        expected = logits(backbone, peft, alone.tensors, alone.head, data)
        found = logits(backbone, peft, slice_of(together.tensors, place), slice_of(together.head, place), data)
        assert largest(found, expected) <= 2e-5
        for name, start in student.tensors.items():
            assert largest(alone.tensors[name][0], start) > 1e-3, "the prompt was not trained"


@pytest.mark.parametrize("task", [CLASSES, VALUES], ids=lambda task: task.kind)
def test_first_losses_are_task_loss_plus_weighted_kd_loss(task: Task, tiny: Tiny) -> None:
    """Eq. 1 and eq. 3 with the weight of eq. 4, from the logits of the untrained prompts."""
    backbone, peft = tiny("bert"), method("prefix:length=4")
    data = encoded(backbone, task, EXAMPLES)
    students = varied_students(backbone, task, peft, data)
    recorder = Recorder()
    recorded(recorder, backbone, peft, students, task, data, replace(SETTINGS, max_steps=1))
    assert data.labels is not None
    for place, student in enumerate(students):
        index = epoch_batches(data.lengths.numpy(), BATCH, student.seed, 0)[0]
        start = {name: tensor.unsqueeze(0) for name, tensor in student.tensors.items()}
        head = {name: tensor.unsqueeze(0) for name, tensor in student.head.items()}
        own = logits(backbone, peft, start, head, data)[0][index]
        labels = data.labels[index]
        spec = SPECS[task.kind][place]
        if task.kind == "regression":
            expected = ((own[:, 0] - labels) ** 2).mean()
            student_output = own
        else:
            expected = -own.log_softmax(-1)[range(len(index)), labels].mean()
            student_output = own.softmax(-1)
        if spec is not None:
            assert student.distillation is not None
            soft = student.distillation.targets[index]
            if spec.startswith("mse"):
                second = ((student_output - soft) ** 2).sum(-1).mean()
            elif spec == "ce":
                second = -(soft * own.log_softmax(-1)).sum(-1).mean()
            else:
                second = 4 * F.kl_div((own / 2).log_softmax(-1), soft, reduction="batchmean")
            expected = expected + WEIGHTS[place] * second
        assert float(recorder.losses[0][place]) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("spec", ["prefix:length=4", "prompt:length=4"])
@pytest.mark.parametrize("rate", [1e30, 1e38])
def test_a_diverging_prompt_does_not_touch_the_others(rate: float, spec: str, validated: bool, tiny: Tiny) -> None:
    backbone, peft = tiny("bert"), method(spec)
    data = encoded(backbone, CLASSES, EXAMPLES)
    validation = encoded(backbone, CLASSES, 20, 1) if validated else None
    healthy = plain_students(backbone, peft, [1e-2, 1e-2, 3e-3])
    mixed = [healthy[0], replace(healthy[1], learning_rate=rate), healthy[2]]
    expected = train_pack(backbone, peft, healthy, CLASSES, data, SETTINGS, validation)
    found = train_pack(backbone, peft, mixed, CLASSES, data, SETTINGS, validation)
    assert expected.diverged == [False] * 3
    assert found.diverged == [False, True, False]
    assert found.steps == 14
    for place in (0, 2):
        for name in found.tensors:
            assert torch.equal(found.tensors[name][place], expected.tensors[name][place])
        assert found.scores[place] == expected.scores[place]
    if not validated:
        return
    # What is reported of the diverged one belongs to tensors that can be used.
    for value in found.scores[1].best.values():
        assert math.isfinite(value)


@pytest.mark.parametrize("validated", [False, True])
def test_all_diverging_is_an_error_of_one_sentence(validated: bool, tiny: Tiny) -> None:
    backbone, peft = tiny("bert"), method("prefix:length=4")
    data = encoded(backbone, CLASSES, EXAMPLES)
    recorder = Recorder()
    with pytest.raises(TrainingError) as error:
        recorded(
            recorder,
            backbone,
            peft,
            plain_students(backbone, peft, [1e30, 1e30]),
            CLASSES,
            data,
            SETTINGS,
            validation=data if validated else None,
        )
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert "lower the learning rate" in text
    assert "of 14" in text
    assert recorder.ended[0][1] is error.value
    assert len(recorder.steps) < 5, "it went on although nothing could be learnt any more"


def test_no_steps_is_an_error(tiny: Tiny) -> None:
    backbone, peft = tiny("bert"), method("prefix:length=4")
    data = encoded(backbone, CLASSES, 8)
    for settings in (replace(SETTINGS, epochs=0), replace(SETTINGS, max_steps=0)):
        with pytest.raises(TrainingError, match=r"nothing to train.*\.$"):
            train_pack(backbone, peft, plain_students(backbone, peft, [1e-2]), CLASSES, data, settings)


@pytest.mark.parametrize(
    ("changes", "steps", "evaluations"),
    [
        ({}, 14, [7, 14]),
        ({"max_steps": 10}, 10, [7, 10]),
        ({"eval_every": 4}, 14, [4, 8, 12, 14]),
        ({"eval_every": 100}, 14, [14]),
        ({"epochs": 50, "max_steps": 3, "eval_every": 2}, 3, [2, 3]),
    ],
    ids=str,
)
def test_steps_and_evaluations(changes: dict[str, int], steps: int, evaluations: list[int], tiny: Tiny) -> None:
    backbone, peft = tiny("bert"), method("prefix:length=4")
    data = encoded(backbone, CLASSES, EXAMPLES)
    recorder = Recorder()
    found = recorded(
        recorder,
        backbone,
        peft,
        plain_students(backbone, peft, [1e-2, 3e-2]),
        CLASSES,
        data,
        replace(SETTINGS, **changes),
        validation=encoded(backbone, CLASSES, 20, 1),
    )
    assert (found.steps, found.steps_planned) == (steps, steps)
    assert recorder.steps == [(step, steps) for step in range(1, steps + 1)]
    assert [step for step, _, _ in recorder.scores] == evaluations
    assert [epoch for _, epoch, _ in recorder.scores] == [step / PER_EPOCH for step in evaluations]
    for place, scores in enumerate(found.scores):
        assert [entry[0] for entry in scores.history] == evaluations
        told = [values["accuracy"][place] for _, _, values in recorder.scores]
        assert [entry[2] for entry in scores.history] == told
    assert all(losses.shape == (2,) for losses in recorder.losses)
    (run,) = recorder.started
    assert run == {
        "task": "said-no",
        "model": backbone.name,
        "method": "prefix:length=4,projection=0,init=normal",
        "prompts": 2,
        "seeds": [0, 1],
        "epochs": changes.get("epochs", 2),
        "steps": steps,
        "batch_size": BATCH,
        "device": "cpu",
        "precision": "fp32",
    }
    ((ended, error),) = recorder.ended
    assert error is None
    assert ended["steps_done"] == steps
    assert isinstance(ended["wall_seconds"], float)


@pytest.mark.parametrize("selected", [False, True], ids=["validation", "selection split"])
def test_best_last_and_the_tensors_that_are_kept(selected: bool, tiny: Tiny) -> None:
    """The best tensors are those of the first step with the highest score on the split that chooses. To see the
    tensors of that step, the same run is stopped there by a plugin."""
    backbone, peft = tiny("bert"), method("prefix:length=4")
    data = encoded(backbone, CLASSES, EXAMPLES)
    validation, selection = encoded(backbone, CLASSES, 40, 1), encoded(backbone, CLASSES, 40, 2)
    students = plain_students(backbone, peft, [5e-2, 2e-2, 0.2])
    settings = replace(SETTINGS, eval_every=1)
    chooser = selection if selected else validation
    named = {"validation": validation, "selection": selection if selected else None}
    found = train_pack(backbone, peft, students, CLASSES, data, settings, **named)
    last = train_pack(backbone, peft, students, CLASSES, data, settings)
    assert last.scores[0].best == {}
    assert last.scores[0].history == ()
    assert len({scores.best_step for scores in found.scores} | {14}) > 1, "the best step is the last one"
    for place, scores in enumerate(found.scores):
        values = [value for _, _, value in scores.history]
        assert scores.best_step == 1 + values.index(max(values))
        stopped = recorded(
            Recorder(stop_at=scores.best_step),
            backbone,
            peft,
            students,
            CLASSES,
            data,
            settings,
            **named,
        )
        assert stopped.steps == scores.best_step
        for name in found.tensors:
            assert torch.equal(found.tensors[name][place], stopped.tensors[name][place])
        for name in found.head:
            assert torch.equal(found.head[name][place], stopped.head[name][place])
        best = logits(backbone, peft, slice_of(found.tensors, place), slice_of(found.head, place), chooser)
        assert accuracy(best[0], chooser) == pytest.approx(max(values))
        for reported, of in ((scores.best, found), (scores.last, last)):
            own = logits(backbone, peft, slice_of(of.tensors, place), slice_of(of.head, place), validation)
            assert reported == {"accuracy": pytest.approx(accuracy(own[0], validation))}


def test_regression_is_scored_by_correlation(tiny: Tiny) -> None:
    from scipy.stats import pearsonr, spearmanr

    backbone, peft = tiny("bert"), method("prefix:length=4")
    data, validation = encoded(backbone, VALUES, EXAMPLES), encoded(backbone, VALUES, 30, 1)
    found = train_pack(
        backbone,
        peft,
        plain_students(backbone, peft, [1e-2], VALUES),
        VALUES,
        data,
        SETTINGS,
        validation,
    )
    values = logits(backbone, peft, found.tensors, found.head, validation)[0, :, 0].numpy()
    assert validation.labels is not None
    pearson = pearsonr(values, validation.labels.numpy()).statistic
    spearman = spearmanr(values, validation.labels.numpy()).statistic
    assert found.scores[0].best == {
        "pearson_spearman": pytest.approx((pearson + spearman) / 2, abs=1e-5),
        "pearson": pytest.approx(pearson, abs=1e-5),
        "spearman": pytest.approx(spearman, abs=1e-5),
    }


def test_training_learns(tiny: Tiny) -> None:
    """Far more of the training set is right after training than the commonest class would give."""
    backbone, peft = tiny("bert"), method("prefix:length=8")
    data = encoded(backbone, CLASSES, EXAMPLES)
    found = train_pack(
        backbone, peft, plain_students(backbone, peft, [5e-2]), CLASSES, data, replace(SETTINGS, epochs=15)
    )
    right = accuracy(logits(backbone, peft, found.tensors, found.head, data)[0], data)
    assert data.labels is not None
    assert right > 0.15 + float(data.labels.bincount().max()) / EXAMPLES


def test_first_interrupt_keeps_the_best_so_far(tiny: Tiny) -> None:
    backbone, peft = tiny("bert"), method("prefix:length=4")
    data, validation = encoded(backbone, CLASSES, EXAMPLES), encoded(backbone, CLASSES, 20, 1)
    students = plain_students(backbone, peft, [1e-2, 3e-2])
    before = signal.getsignal(signal.SIGINT)
    recorder = Recorder(interrupt_at=(9,))
    found = recorded(recorder, backbone, peft, students, CLASSES, data, SETTINGS, validation)
    assert signal.getsignal(signal.SIGINT) is before
    assert found.interrupted
    assert (found.steps, found.steps_planned) == (9, 14)
    assert recorder.ended[0][1] is None
    for place, scores in enumerate(found.scores):
        assert [step for step, _, _ in scores.history] == [7, 9]
        own = logits(backbone, peft, slice_of(found.tensors, place), slice_of(found.head, place), validation)
        assert scores.best == {"accuracy": pytest.approx(accuracy(own[0], validation))}
    whole = train_pack(backbone, peft, students, CLASSES, data, SETTINGS, validation)
    assert not whole.interrupted
    assert whole.scores[0].history[0] == found.scores[0].history[0]


def test_second_interrupt_ends_at_once(tiny: Tiny) -> None:
    backbone, peft = tiny("bert"), method("prefix:length=4")
    data = encoded(backbone, CLASSES, EXAMPLES)
    before = signal.getsignal(signal.SIGINT)
    recorder = Recorder(interrupt_at=(3, 3))
    with pytest.raises(KeyboardInterrupt):
        recorded(recorder, backbone, peft, plain_students(backbone, peft, [1e-2]), CLASSES, data, SETTINGS)
    assert signal.getsignal(signal.SIGINT) is before
    assert recorder.ended[0][0]["steps_done"] == 3
    assert isinstance(recorder.ended[0][1], KeyboardInterrupt)


def test_a_plugin_can_stop_early(tiny: Tiny) -> None:
    backbone, peft = tiny("bert"), method("prefix:length=4")
    data = encoded(backbone, CLASSES, EXAMPLES)
    found = recorded(
        Recorder(stop_at=7),
        backbone,
        peft,
        plain_students(backbone, peft, [1e-2]),
        CLASSES,
        data,
        SETTINGS,
        validation=encoded(backbone, CLASSES, 20, 1),
    )
    assert (found.steps, found.steps_planned, found.interrupted) == (7, 14, False)
    assert found.scores[0].last
    assert found.scores[0].best


def result(backbone: Backbone, settings: TrainSettings, global_seed: int) -> TrainedPack:
    peft = method("prefix:length=4")
    data = encoded(backbone, CLASSES, EXAMPLES)
    torch.manual_seed(global_seed)
    return train_pack(backbone, peft, plain_students(backbone, peft, [1e-2, 3e-2]), CLASSES, data, settings)


@pytest.mark.parametrize(
    "dropout",
    [{}, {"dropout": 0.3}, {"backbone_dropout": 0.3}],
    ids=["no dropout", "dropout in the head", "dropout in the backbone"],
)
def test_the_seeds_of_the_prompts_decide_everything(dropout: dict[str, float], tiny: Tiny) -> None:
    """Whatever drew random numbers before in this process must not matter."""
    settings = replace(SETTINGS, **dropout)
    first, second = (result(tiny("bert"), settings, seed) for seed in (1, 2))
    for name in first.tensors:
        assert torch.equal(first.tensors[name], second.tensors[name])
    for name in first.head:
        assert torch.equal(first.head[name], second.head[name])


@pytest.mark.parametrize("where", ["dropout", "backbone_dropout"])
def test_dropout_acts(where: str, tiny: Tiny) -> None:
    without = result(tiny("bert"), SETTINGS, 1)
    with_it = result(tiny("bert"), replace(SETTINGS, **{where: 0.3}), 1)
    assert largest(without.tensors["key"], with_it.tensors["key"]) > 1e-3
    # And only in training: the backbone is as it was.
    again = result(tiny("bert"), SETTINGS, 1)
    assert torch.equal(without.tensors["key"], again.tensors["key"])


def test_training_leaves_the_backbone_alone(tiny: Tiny, tiny_folder: Any) -> None:
    from engine_samples import classifier

    backbone = tiny("bert")
    model = backbone._model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head = backbone.head(3)
    stored, pooled = head_of(classifier(tiny_folder("bert"), 3)), torch.ones(1, 2, 32)
    expected = head(stored, pooled)
    result(backbone, SETTINGS, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(head(stored, pooled), expected), "the frozen pooler in the head changed"


def test_given_tensors_are_not_changed(tiny: Tiny) -> None:
    backbone, peft = tiny("bert"), method("prefix:length=4")
    data = encoded(backbone, CLASSES, EXAMPLES)
    students = varied_students(backbone, CLASSES, peft, data)
    before = [{n: t.clone() for n, t in {**s.tensors, **s.head}.items()} for s in students]
    found = train_pack(backbone, peft, students, CLASSES, data, SETTINGS)
    for student, copy in zip(students, before, strict=True):
        for name, tensor in {**student.tensors, **student.head}.items():
            assert torch.equal(tensor, copy[name])
    for tensor in (*found.tensors.values(), *found.head.values()):
        assert (tensor.dtype, tensor.device.type, tensor.requires_grad) == (torch.float32, "cpu", False)
