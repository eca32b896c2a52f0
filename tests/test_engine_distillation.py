"""KD losses, fusions and teachers: each against numbers worked out here, then all of them end to end."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from engine_samples import CLASSES, VALUES, encoded, largest, logits, method, pack
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from torch.nn import functional as F

from panda_fusion import hookimpl
from panda_fusion.backbone import Backbone
from panda_fusion.dataset import EncodedSet, epoch_batches
from panda_fusion.distillation import DistillationMethods, TeacherSignal, check_methods, teacher_signal
from panda_fusion.errors import OptionError, PromptFileError, TrainingError
from panda_fusion.fusion import PredictionFusion, PromptFusion
from panda_fusion.head_fit import fit_heads
from panda_fusion.inference import pooled_vectors
from panda_fusion.kd_loss import KDLoss
from panda_fusion.plugin_manager import fusions, kd_losses, teachers, temporary_plugin
from panda_fusion.prompt import Prompt
from panda_fusion.random_streams import random_stream
from panda_fusion.run import task_info
from panda_fusion.students import new_students
from panda_fusion.task import Task
from panda_fusion.teacher import TeacherContext
from panda_fusion.tensor_cache import TensorCache
from panda_fusion.trainer import Student, TrainSettings, train_pack

Tiny = Callable[[str], Backbone]
EXAMPLES, BATCH, SEED = 30, 8, 4
SETTINGS = TrainSettings(epochs=2, batch_size=BATCH, dropout=0.0)
RATE = 1e-2


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2


def loss_of(spec: str) -> KDLoss:
    return kd_losses().create(spec)


# --- KD losses -------------------------------------------------------------------------------------------


def test_mse_by_hand() -> None:
    """Eq. 3: logits (0, ln 3) are probabilities (1/4, 3/4), (0, 0) are (1/2, 1/2), (ln 4, 0) are (4/5, 1/5)."""
    loss = loss_of("mse")
    soft = loss.targets(torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]), "classification")
    assert soft.tolist() == [pytest.approx([0.25, 0.75]), pytest.approx([0.5, 0.5])]
    student = torch.tensor([[[0.0, 0.0], [math.log(4), 0.0]]])
    # Summed over classes: 2 * (1/4)^2 = 1/8 and 2 * (3/10)^2 = 18/100; averaged over the two rows.
    assert loss.loss(student, soft[None], "classification").tolist() == pytest.approx([(0.125 + 0.18) / 2])


def test_mse_of_logits_and_of_values_by_hand() -> None:
    student, teacher = torch.tensor([[[1.0, 2.0], [0.0, -1.0]]]), torch.tensor([[0.0, 4.0], [3.0, -1.0]])
    loss = loss_of("mse:space=logits")
    soft = loss.targets(teacher, "classification")
    assert loss.loss(student, soft[None], "classification").tolist() == pytest.approx([(1 + 4 + 9) / 2])
    for spec in ("mse", "mse:space=logits"):
        loss = loss_of(spec)
        soft = loss.targets(torch.tensor([[1.0], [5.0]]), "regression")
        student = torch.tensor([[[2.0], [2.0]]])
        assert loss.loss(student, soft[None], "regression").tolist() == pytest.approx([(1 + 9) / 2])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_equals_torch_and_scipy(temperature: float) -> None:
    loss = loss_of(f"kl:temperature={temperature}")
    student, teacher = drawn(1, 3, 6, 4), drawn(2, 3, 6, 4)
    found = loss.loss(student, loss.targets(teacher, "classification"), "classification")
    for place in range(3):
        soft = (teacher[place] / temperature).softmax(-1)
        expected = F.kl_div((student[place] / temperature).log_softmax(-1), soft, reduction="batchmean")
        assert float(found[place]) == pytest.approx(temperature**2 * float(expected), rel=1e-5)
        p, q = (softmax(x[place].double().numpy() / temperature, axis=-1) for x in (teacher, student))
        assert float(found[place]) == pytest.approx(temperature**2 * entropy(p, q, axis=-1).mean(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_ce_equals_torch_and_scipy(temperature: float) -> None:
    loss = loss_of(f"ce:temperature={temperature}")
    student, teacher = drawn(1, 3, 6, 4), drawn(2, 3, 6, 4)
    found = loss.loss(student, loss.targets(teacher, "classification"), "classification")
    for place in range(3):
        soft = (teacher[place] / temperature).softmax(-1)
        expected = F.cross_entropy(student[place] / temperature, soft)
        assert float(found[place]) == pytest.approx(temperature**2 * float(expected), rel=1e-5)
        p, q = (x[place].double().numpy() / temperature for x in (teacher, student))
        by_hand = -(softmax(p, axis=-1) * log_softmax(q, axis=-1)).sum(-1).mean()
        assert float(found[place]) == pytest.approx(temperature**2 * by_hand, rel=1e-5)


@pytest.mark.parametrize("spec", ["mse", "mse:space=logits", "kl:temperature=2", "ce"])
def test_a_mask_leaves_rows_and_tokens_out(spec: str) -> None:
    """The mean over what counts, as if the rest were not there; a prompt without anything left has loss 0."""
    loss = loss_of(spec)
    student, teacher = drawn(1, 3, 5, 4, 2), drawn(2, 3, 5, 4, 2)
    soft = loss.targets(teacher, "token-classification")
    mask = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[2] = False
    found = loss.loss(student, soft, "token-classification", mask)
    for place in range(2):
        kept = mask[place]
        rows = (student[place][kept][None], soft[place][kept][None])
        expected = loss.loss(*rows, "token-classification")[0]
        assert float(found[place]) == pytest.approx(float(expected), rel=1e-5)
    assert float(found[2]) == 0.0


@pytest.mark.parametrize("spec", ["kl", "ce"])
def test_regression_has_no_distribution(spec: str) -> None:
    with pytest.raises(OptionError, match=rf"^KD loss '{spec}' is not defined for a regression task .* use mse\.$"):
        loss_of(spec).check_kind("regression")
    methods = DistillationMethods(teachers().create("source"), fusions().create("late"), loss_of(spec), 0.05)
    with pytest.raises(OptionError):
        check_methods(methods, 2, "regression")
    check_methods(replace(methods, kd=loss_of("mse")), 2, "regression")


# --- Fusions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["early", "late"])
@pytest.mark.parametrize(
    ("options", "expected"), [("", [1 / 2 * (0.5 * 2 + 0.25 * 8)]), (":normalize=true", [(0.5 * 2 + 0.25 * 8) / 0.75])]
)
def test_fusions_by_hand(name: str, options: str, expected: list[float]) -> None:
    """Eq. 5 and 6 as printed, 1/n sum of sim_i x_i with x = 2 and 8; normalised, the sum over the similarities."""
    assert fuse(name + options, torch.tensor([[2.0], [8.0]]), [0.5, 0.25]).tolist() == pytest.approx(expected)


def fuse(spec: str, stacked: torch.Tensor, similarities: Sequence[float]) -> torch.Tensor:
    fusion, weights = fusions().create(spec), torch.tensor(similarities)
    if isinstance(fusion, PromptFusion):
        return fusion.fuse({"embedding": stacked}, weights)["embedding"]
    assert isinstance(fusion, PredictionFusion)
    return fusion.fuse(stacked, weights)


@pytest.mark.parametrize("name", ["early", "late"])
def test_fusions_equal_numpy(name: str) -> None:
    stacked, weights = drawn(5, 4, 3, 2, 5), np.array([0.9, -0.2, 0.4, 0.05])
    expected = np.einsum("k,k...->...", weights, stacked.double().numpy())
    plain = fuse(name, stacked, weights.tolist())
    assert np.abs(plain.numpy() - expected / 4).max() <= 1e-6
    normal = fuse(f"{name}:normalize=true", stacked, weights.tolist())
    assert np.abs(normal.numpy() - expected / weights.sum()).max() <= 1e-6


@pytest.mark.parametrize("name", ["early", "late"])
def test_similarities_that_sum_to_zero_cannot_be_normalised(name: str) -> None:
    stacked = drawn(5, 2, 3)
    with pytest.raises(OptionError, match=r"^The similarities sum to 0, so .* --similarity constant\.$"):
        fuse(f"{name}:normalize=true", stacked, [0.4, -0.4])
    assert largest(fuse(name, stacked, [0.4, -0.4]), 0.2 * (stacked[0] - stacked[1])) <= 1e-6


def test_single_takes_one_source_and_weighs_lambda() -> None:
    """Eq. 4: the targets stay as they are, the similarity goes into the weight of the loss."""
    single = fusions().create("single")
    assert single.kd_scale([0.3]) == 0.3
    assert torch.equal(fuse("single", torch.tensor([[2.0, 5.0]]), [0.3]), torch.tensor([2.0, 5.0]))
    with pytest.raises(OptionError, match=r"^Fusion 'single' takes exactly one source, but 2 were given; .*\.$"):
        single.check_sources(2)
    for name in ("early", "late"):
        fusions().create(name).check_sources(3)
        assert fusions().create(name).kd_scale([0.3, 0.4]) == 1.0


# --- Teachers, end to end --------------------------------------------------------------------------------


def source(backbone: Backbone, seed: int, spec: str = "prefix:length=4") -> Prompt:
    peft = method(spec)
    tensors = {name: tensor[0] for name, tensor in pack(peft, backbone, 1, 100 + seed).items()}
    return Prompt(
        method=peft.spec,
        tensors=tensors,
        head=backbone.head(3).create(torch.Generator().manual_seed(seed)),
        embedding=torch.ones(backbone.shape.hidden),
        backbone=backbone.info,
        task=task_info(CLASSES),
        path=f"source-{seed}.safetensors",
    )


def signal_for(
    backbone: Backbone,
    teacher: str,
    fusion: str,
    *,
    kd: str = "mse",
    similarities: Sequence[float] = (0.5, 0.25),
    task: Task = CLASSES,
    settings: TrainSettings = SETTINGS,
    data: EncodedSet | None = None,
    spec: str = "prefix:length=4",
    cache: TensorCache | None = None,
) -> TeacherSignal:
    methods = DistillationMethods(teachers().create(teacher), fusions().create(fusion), loss_of(kd), 0.05)
    return teacher_signal(
        backbone,
        task,
        encoded(backbone, task, EXAMPLES) if data is None else data,
        [source(backbone, seed, spec) for seed in range(len(similarities))],
        similarities,
        methods,
        method(spec),
        settings,
        RATE,
        SEED,
        cache,
    )


@contextmanager
def counted_rows(backbone: Backbone) -> Iterator[list[int]]:
    """Rows of every forward pass that the frozen model really makes."""
    rows: list[int] = []

    def count(_module: Any, _args: Any, named: dict[str, torch.Tensor]) -> None:
        rows.append(len(named["position_ids"]))

    handle = backbone._model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("fusion", "similarities", "passes"),
    [("single", (0.5,), 1), ("early", (0.5, 0.25), 1), ("late", (0.5, 0.25), 2), ("late", (0.5, 0.1, 0.2), 3)],
    ids=["single", "early", "late of two", "late of three"],
)
def test_teachers_run_once_whatever_the_epochs(
    fusion: str, similarities: tuple[float, ...], passes: int, tiny: Tiny
) -> None:
    """Passes reported are passes made, and a student's training adds none."""
    backbone, peft = tiny("bert"), method("prefix:length=4")
    data = encoded(backbone, CLASSES, EXAMPLES)
    for epochs in (1, 4):
        settings = replace(SETTINGS, epochs=epochs)
        with counted_rows(backbone) as rows:
            signal = signal_for(backbone, "source", fusion, similarities=similarities, settings=settings)
        assert signal.forward_passes == passes
        assert sum(rows) == passes * EXAMPLES
        for distillation in (None, signal.distillation):
            students = new_students(backbone, CLASSES, peft, [0, 1], RATE, distillation=distillation)
            with counted_rows(backbone) as rows:
                train_pack(backbone, peft, students, CLASSES, data, settings)
            assert sum(rows) == 2 * epochs * EXAMPLES


def reference_targets(
    backbone: Backbone, data: EncodedSet, prompts: dict[str, torch.Tensor], spec: str = "prefix:length=4"
) -> torch.Tensor:
    """[K, M, C] probabilities of teachers whose heads are fitted, worked out prompt by prompt."""
    features = torch.cat(
        [
            pooled_vectors(backbone, data, method(spec), {n: t[k : k + 1] for n, t in prompts.items()})
            for k in range(len(next(iter(prompts.values()))))
        ]
    )
    heads = fit_heads(backbone, features, data, 3, SEED)
    return backbone.head(3)(heads, features).softmax(-1).detach()


def stacked_sources(backbone: Backbone, count: int) -> dict[str, torch.Tensor]:
    each = [source(backbone, seed).tensors for seed in range(count)]
    return {name: torch.stack([tensors[name] for tensors in each]) for name in each[0]}


def test_single_early_and_late_targets_of_the_source_teacher(tiny: Tiny) -> None:
    """What the students get, against eq. 4, 5 and 6 worked out from the parts."""
    backbone = tiny("bert")
    data = encoded(backbone, CLASSES, EXAMPLES)
    both = stacked_sources(backbone, 2)
    probabilities = reference_targets(backbone, data, both)

    single = signal_for(backbone, "source", "single", similarities=[0.5]).distillation
    assert single.weight == pytest.approx(0.05 * 0.5)
    assert largest(single.targets, reference_targets(backbone, data, stacked_sources(backbone, 1))[0]) <= 1e-4

    late = signal_for(backbone, "source", "late").distillation
    assert late.weight == pytest.approx(0.05)
    assert largest(late.targets, (0.5 * probabilities[0] + 0.25 * probabilities[1]) / 2) <= 1e-4

    early = signal_for(backbone, "source", "early").distillation
    assert early.weight == pytest.approx(0.05)
    average = {name: ((0.5 * tensor[0] + 0.25 * tensor[1]) / 2)[None] for name, tensor in both.items()}
    assert largest(early.targets, reference_targets(backbone, data, average)[0]) <= 1e-4
    assert largest(early.targets, late.targets) > 1e-2


@pytest.mark.parametrize("fusion", ["early", "late"])
@pytest.mark.parametrize("teacher", ["source", "target-like", "random"])
@pytest.mark.parametrize("task", [CLASSES, VALUES], ids=lambda task: task.kind)
def test_teachers_are_deterministic_and_leave_sources_and_backbone_alone(
    task: Task, teacher: str, fusion: str, tiny: Tiny
) -> None:
    backbone = tiny("bert")
    before = {name: tensor.clone() for name, tensor in backbone._model.state_dict().items()}
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        # Dropout is for students; a teacher's predictions have none.
        settings = replace(SETTINGS, dropout=0.0 if teacher == "target-like" else 0.5)
        found.append(signal_for(backbone, teacher, fusion, task=task, settings=settings).distillation.targets)
    assert torch.equal(*found)
    assert found[0].shape == (EXAMPLES, task.outputs)
    assert (found[0].dtype, found[0].requires_grad) == (torch.float32, False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone._model.state_dict().items())


def test_fitted_heads_are_reproducible_and_each_its_own(tiny: Tiny) -> None:
    """Three prompts side by side give the heads that each gives alone, and the heads fit the labels."""
    backbone = tiny("bert")
    data = encoded(backbone, CLASSES, 60)
    features = pooled_vectors(backbone, data, method("prefix:length=4"), stacked_sources(backbone, 3))
    assert data.labels is not None
    first, again = (fit_heads(backbone, features, data, 3, SEED) for _ in range(2))
    other = fit_heads(backbone, features, data, 3, SEED + 1)
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
    together = backbone.head(3)(first, features)
    commonest = entropy(data.labels.bincount().numpy())  # what a head that looks at nothing reaches
    for place in range(3):
        own = features[place : place + 1]
        alone = fit_heads(backbone, own, data, 3, SEED)
        assert largest(backbone.head(3)(alone, own)[0], together[place]) <= 1e-3
        fitted = float(F.cross_entropy(together[place], data.labels))
        assert fitted < 0.9 * commonest


def test_source_teacher_keeps_the_source_tensors(tiny: Tiny) -> None:
    backbone = tiny("bert")
    built = teachers().create("source").build(context(backbone, EXAMPLES))
    assert built.head is None
    for name, tensor in stacked_sources(backbone, 2).items():
        assert torch.equal(built.tensors[name], tensor)


def context(backbone: Backbone, examples: int, calls: list[dict[str, Any]] | None = None) -> TeacherContext:
    """What a teacher is built from, with a `fit` that only writes down what is asked of it."""

    def fit(peft: Any, tensors: Any, **asked: Any) -> Any:
        assert calls is not None
        calls.append(asked | {"tensors": tensors})
        return SimpleNamespace(tensors=tensors, head={"classifier.weight": torch.zeros(2, 3, 32)})

    return TeacherContext(
        backbone=backbone,
        train=_Sized(examples),  # type: ignore[arg-type]
        sources=[source(backbone, seed) for seed in range(2)],
        method=method("prefix:length=4"),
        seed=SEED,
        steps_per_epoch=-(-examples // 32),
        fit=fit,
    )


class _Sized:
    """A training set of which only the size is looked at."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count


@pytest.mark.parametrize(
    ("spec", "examples", "epochs", "max_steps"),
    [
        ("target-like", 19_999, 1, None),
        ("target-like", 20_000, 2, 1000),  # 625 steps in an epoch
        ("target-like", 400_000, 1, 1000),
        ("target-like:epochs=3,steps=50", 100, 3, None),
        ("target-like:epochs=3,steps=50", 20_000, 1, 50),
    ],
)
def test_target_like_trains_one_epoch_or_a_thousand_steps(
    spec: str, examples: int, epochs: int, max_steps: int | None, tiny: Tiny
) -> None:
    """Caption of PanDa's Table I: tasks of under 20,000 examples one epoch, larger ones 1000 steps."""
    calls: list[dict[str, Any]] = []
    teachers().create(spec).build(context(tiny("bert"), examples, calls))
    (call,) = calls
    assert (call["epochs"], call["max_steps"]) == (epochs, max_steps)
    per_epoch = -(-examples // 32)
    assert max_steps is None or epochs * per_epoch >= max_steps, "the epochs end before the steps do"
    for name, tensor in stacked_sources(tiny("bert"), 2).items():
        assert torch.equal(call["tensors"][name], tensor)


def test_a_second_run_finds_the_teachers_predictions(tiny: Tiny, tmp_path: Path) -> None:
    """Whatever is not part of the predictions may differ: fusion, KD loss, similarities. Anything else is computed."""
    backbone = tiny("bert")
    plain = signal_for(backbone, "source", "late")
    first = signal_for(backbone, "source", "late", cache=TensorCache(tmp_path))
    assert first.forward_passes == 2
    with counted_rows(backbone) as rows:
        again = signal_for(backbone, "source", "late", cache=TensorCache(tmp_path))
        other = signal_for(backbone, "source", "late", kd="kl", similarities=(0.1, 0.9), cache=TensorCache(tmp_path))
    assert (rows, again.forward_passes, other.forward_passes) == ([], 0, 0)
    for made in (first, again):
        assert torch.equal(made.distillation.targets, plain.distillation.targets)
    without = signal_for(backbone, "source", "late", kd="kl", similarities=(0.1, 0.9))
    assert torch.equal(other.distillation.targets, without.distillation.targets)
    data = encoded(backbone, CLASSES, EXAMPLES)
    assert data.labels is not None
    changed = [
        replace(data, labels=data.labels.flip(0)),  # a fitted head sees them
        data.subset(range(EXAMPLES - 1)),
        data.subset(range(EXAMPLES)[::-1]),
    ]
    for some in changed:
        assert signal_for(backbone, "source", "late", data=some, cache=TensorCache(tmp_path)).forward_passes == 2
    assert signal_for(backbone, "source", "early", cache=TensorCache(tmp_path)).forward_passes == 1
    assert signal_for(tiny("roberta"), "source", "late", cache=TensorCache(tmp_path)).forward_passes == 2


class InterruptAtSecondStep:
    """A plugin that presses Ctrl-C once."""

    @hookimpl
    def step_ended(self, step: int) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)


def test_an_interrupt_while_teachers_train_ends_the_run(tiny: Tiny) -> None:
    """A teacher cut short is no result worth keeping, and the student's training must not begin after it."""
    with temporary_plugin(InterruptAtSecondStep()), pytest.raises(KeyboardInterrupt):
        signal_for(tiny("bert"), "target-like", "late")


def test_target_like_equals_training_the_sources_by_hand(tiny: Tiny) -> None:
    """Its predictions are those of source tensors and a new head after an epoch of ordinary training."""
    backbone, peft = tiny("bert"), method("prefix:length=4")
    data = encoded(backbone, CLASSES, EXAMPLES)
    with counted_rows(backbone) as rows:
        found = signal_for(backbone, "target-like", "late")
    assert found.forward_passes == 2
    assert sum(rows) == 2 * EXAMPLES + 2 * EXAMPLES, "one epoch of training and one pass, for two teachers"
    expected = []
    for seed in range(2):
        student = Student(
            tensors=source(backbone, seed).tensors,
            head=backbone.head(3).create(random_stream(SEED, "head")),
            seed=SEED,
            learning_rate=RATE,
        )
        trained = train_pack(backbone, peft, [student], CLASSES, data, replace(SETTINGS, epochs=1))
        expected.append(logits(backbone, peft, trained.tensors, trained.head, data)[0].softmax(-1))
    average = (0.5 * expected[0] + 0.25 * expected[1]) / 2
    assert largest(found.distillation.targets, average) <= 1e-5


def test_random_teacher_is_no_copy_of_a_student(tiny: Tiny) -> None:
    """The control must be a prompt that nothing else in the run knows, least of all the student's own start."""
    backbone, peft = tiny("bert"), method("prefix:length=4")
    built = teachers().create("random").build(context(backbone, EXAMPLES))
    assert built.head is None
    assert built.tensors["key"].shape == (2, 2, 4, 4, 8)
    assert not torch.equal(built.tensors["key"][0], built.tensors["key"][1])
    for student in new_students(backbone, CLASSES, peft, [SEED, SEED + 1, 0], RATE):
        for place in range(2):
            assert not torch.equal(built.tensors["key"][place], student.tensors["key"])
    bare = replace(context(backbone, EXAMPLES), sources=[])
    assert len(teachers().create("random").build(bare).tensors["key"]) == 1


def test_sources_of_different_shape_cannot_be_fused(tiny: Tiny) -> None:
    backbone = tiny("bert")
    sources = [source(backbone, 0), source(backbone, 1, "prefix:length=5")]
    for name in ("source", "target-like"):
        with pytest.raises(PromptFileError) as error:
            teachers().create(name).build(replace(context(backbone, EXAMPLES), sources=sources))
        text = str(error.value)
        assert "source-0.safetensors" in text
        assert "source-1.safetensors" in text
        assert text.endswith(".")


def test_students_follow_the_teacher(tiny: Tiny) -> None:
    """With a large lambda, a student's probabilities come closer to the targets than without."""
    backbone, peft = tiny("bert"), method("prefix:length=4")
    data = encoded(backbone, CLASSES, EXAMPLES)
    targets = torch.eye(3)[torch.arange(EXAMPLES) % 3]
    signal = signal_for(backbone, "source", "single", similarities=[0.5]).distillation
    distances = []
    for weight in (0.0, 20.0):
        distillation = replace(signal, targets=targets, weight=weight)
        students = new_students(backbone, CLASSES, peft, [0], 5e-2, distillation=distillation)
        trained = train_pack(backbone, peft, students, CLASSES, data, replace(SETTINGS, epochs=10))
        found = logits(backbone, peft, trained.tensors, trained.head, data)[0].softmax(-1)
        distances.append(float((found - targets).square().sum(1).mean()))
    assert distances[1] < 0.8 * distances[0]


def test_targets_follow_the_order_of_the_training_set(tiny: Tiny) -> None:
    """Targets are looked up by example, not by place in the batch: shuffled with the data, nothing changes."""
    backbone, peft = tiny("bert"), method("prefix:length=4")
    data = encoded(backbone, CLASSES, EXAMPLES)
    distillation = signal_for(backbone, "source", "late", data=data).distillation
    first = epoch_batches(data.lengths.numpy(), BATCH, 0, 0)[0]
    poisoned = distillation.targets.clone()
    outside = [row for row in range(EXAMPLES) if row not in set(first.tolist())]
    poisoned[outside] = 1e6
    results = []
    for targets in (distillation.targets, poisoned):
        students = new_students(backbone, CLASSES, peft, [0], RATE, distillation=replace(distillation, targets=targets))
        results.append(train_pack(backbone, peft, students, CLASSES, data, replace(SETTINGS, max_steps=1)))
    assert torch.equal(results[0].tensors["key"], results[1].tensors["key"])


def test_a_teacher_that_diverges_is_an_error_and_not_a_nan_target(tiny: Tiny) -> None:
    """One of two: training goes on as long as one prompt lives, so the loop itself does not complain."""
    backbone = tiny("bert")
    good, bad = source(backbone, 0), source(backbone, 1)
    bad = replace(bad, tensors={name: torch.full_like(tensor, torch.nan) for name, tensor in bad.tensors.items()})
    methods = DistillationMethods(teachers().create("target-like"), fusions().create("late"), loss_of("mse"), 0.05)
    train = encoded(backbone, CLASSES, EXAMPLES)
    with pytest.raises(TrainingError, match="Teacher 2 of 2 diverged"):
        teacher_signal(
            backbone, CLASSES, train, [good, bad], [1.0, 1.0], methods, method("prefix:length=4"), SETTINGS, RATE, SEED
        )
