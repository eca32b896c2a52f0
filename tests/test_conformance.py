"""Every registered method passes the conformance checks, and the checks fail where a contract is broken."""

from dataclasses import replace
from typing import Annotated

import pytest
import torch
from msgspec import Meta

from panda_fusion.errors import OptionError
from panda_fusion.executor import Executor
from panda_fusion.fusion import Fusion, PredictionFusion, PromptFusion
from panda_fusion.injection import Injection
from panda_fusion.kd_loss import CLASSES, KDLoss, mean_per_prompt
from panda_fusion.method import Options
from panda_fusion.method_string import build_options, parse_method
from panda_fusion.peft_method import PEFTMethod
from panda_fusion.plugin_manager import peft_methods, registries
from panda_fusion.similarity import Similarity
from panda_fusion.teacher import Teacher, TeacherPrompts
from panda_fusion.testing import checks_for, option_variants, run_checks
from panda_fusion.testing.kinds import CHECKS

METHODS = [(registry, entry.name) for registry in registries() for entry in registry.entries()]


@pytest.mark.parametrize(("registry", "name"), METHODS, ids=[f"{r.kind}-{name}" for r, name in METHODS])
def test_registered_method(registry, name):
    results = list(run_checks(checks_for(registry.kind, registry.load(name), name)))
    assert len(results) > 5
    assert not [result for result in results if not result.passed]


@pytest.mark.parametrize(
    "text",
    [
        "prefix:length=3,projection=8",
        "prefix:length=1",
        "prompt:length=2",
        'prompt:length=5,init=text,text="is it, or not"',
        "adapter:reduction=3",
        "adapter:reduction=64,placement=feedforward",
    ],
)
def test_peft_method_with_other_options(text):
    name, raw = parse_method(text)
    method_type = peft_methods().load(name)
    options = build_options(method_type.Options, raw, text)
    results = list(run_checks(CHECKS["PEFT method"](method_type, options, name)))
    assert not [result for result in results if not result.passed]


def test_variants_cover_every_choice_and_leave_refused_ones_out():
    class Many(Options, frozen=True, kw_only=True):
        count: Annotated[int, Meta(description="n")] = 3
        first: Annotated[bool, Meta(description="a")] = False
        second: Annotated[bool, Meta(description="b")] = True

        def __post_init__(self) -> None:
            if not self.second:
                raise ValueError("second must be set")

    assert option_variants(Many) == [Many(), Many(first=True)]


# Each class below breaks one part of a contract.


class Undescribed(Options, frozen=True, kw_only=True):
    size: int = 3


class MutableOptions(Options, frozen=False, kw_only=True):
    size: Annotated[int, Meta(description="x")] = 3


class Loss(KDLoss):
    """A sound loss, for the broken ones to start from."""

    kinds = CLASSES

    def targets(self, logits, kind):
        return logits.softmax(-1)

    def loss(self, student, targets, kind, mask=None):
        return mean_per_prompt((student.softmax(-1) - targets).square().sum(-1), mask)


class UndescribedLoss(Loss):
    Options = Undescribed


class OneLossForAll(Loss):
    def loss(self, student, targets, kind, mask=None):
        return super().loss(student, targets, kind, mask).mean()


class PackAverage(Loss):
    def loss(self, student, targets, kind, mask=None):
        found = super().loss(student, targets, kind, mask)
        return found + found.mean()


class IgnoresMask(Loss):
    def loss(self, student, targets, kind, mask=None):
        return super().loss(student, targets, kind)


class DividesByMask(Loss):
    def loss(self, student, targets, kind, mask=None):
        losses = (student.softmax(-1) - targets).square().sum(-1)
        weights = torch.ones_like(losses) if mask is None else mask.float()
        return (losses * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)


class WrongSign(Loss):
    def loss(self, student, targets, kind, mask=None):
        return -super().loss(student, targets, kind, mask)


class LogOfZero(Loss):
    def loss(self, student, targets, kind, mask=None):
        return mean_per_prompt(-(targets * student.softmax(-1).log()).sum(-1), mask)


class Detached(Loss):
    def loss(self, student, targets, kind, mask=None):
        return super().loss(student.round(), targets, kind, mask)


class HalfTargets(Loss):
    def targets(self, logits, kind):
        return super().targets(logits, kind).half()


class TakesEverything(Loss):
    def check_kind(self, kind):
        pass


class TakesNothing(Loss):
    def check_kind(self, kind):
        raise OptionError("no")


class Prefixed(PEFTMethod):
    """A sound prefix method of two virtual tokens."""

    def virtual_tokens(self):
        return 2

    def _size(self, shape):
        return (shape.layers, 2, shape.kv_heads, shape.head_dim)

    def stored_shapes(self, shape):
        return {"key": self._size(shape), "value": self._size(shape)}

    def create(self, backbone, generator):
        return {name: torch.randn(self._size(backbone.shape), generator=generator) for name in ("key", "value")}

    def inject(self, tensors, shape):
        return Injection(key=tensors["key"], value=tensors["value"])


class GlobalRandom(Prefixed):
    def create(self, backbone, generator):
        return {name: torch.randn(self._size(backbone.shape)) for name in ("key", "value")}


class DoublePrecision(Prefixed):
    def create(self, backbone, generator):
        return {name: tensor.double() for name, tensor in super().create(backbone, generator).items()}


class WrongCount(Prefixed):
    def virtual_tokens(self):
        return 3


class HeadsForKeyHeads(Prefixed):
    def _size(self, shape):
        return (shape.layers, 2, shape.heads, shape.head_dim)


class MixesThePack(Prefixed):
    def inject(self, tensors, shape):
        return Injection(key=tensors["key"] - tensors["key"].mean(0, keepdim=True) / 2, value=tensors["value"])


class ForgetsATensor(Prefixed):
    def inject(self, tensors, shape):
        return Injection(key=tensors["key"], value=tensors["value"].detach())


class StoresHalf(Prefixed):
    def to_stored(self, tensors, shape):
        return {"key": tensors["key"].clone()}


class StoresRounded(Prefixed):
    def to_stored(self, tensors, shape):
        return {name: tensor.round() for name, tensor in tensors.items()}


class FlatTokens(Prefixed):
    def token_matrix(self, stored):
        return stored["key"].flatten()


class Tuned(PEFTMethod):
    """Sound: trains one weight of the backbone."""

    packable = False

    def virtual_tokens(self):
        return 0

    def _name(self, shape):
        """The first weight of a norm."""
        return min(name for name, size in shape.parameters.items() if name.endswith("weight") and len(size) == 1)

    def stored_shapes(self, shape):
        return None if shape.parameters is None else {"own": shape.parameters[self._name(shape)]}

    def create(self, backbone, generator):
        return {"own": backbone.weights()[self._name(backbone.shape)]}

    def inject(self, tensors, shape):
        return Injection(weights={self._name(shape): tensors["own"]})


class SaysItPacks(Tuned):
    packable = True


class PacksNothing(Prefixed):
    packable = False


class NoSuchWeight(Tuned):
    def inject(self, tensors, shape):
        return Injection(weights={"no.such": tensors["own"]})


class GuessesSizes(Tuned):
    def stored_shapes(self, shape):
        return super().stored_shapes(shape) or {"own": (1,)}


class OnlyFirstLayer(Prefixed):
    """Sound on a shape, without effect in a backbone."""

    def inject(self, tensors, shape):
        return Injection(outputs={shape.layer_modules[0]: lambda output, rows: output})

    def virtual_tokens(self):
        return 0


class Average(PromptFusion):
    def fuse(self, tensors, similarities):
        return {name: tensor.mean(0) for name, tensor in tensors.items()}


class KeepsK(Average):
    def fuse(self, tensors, similarities):
        return dict(tensors)


class InPlace(Average):
    def fuse(self, tensors, similarities):
        return {name: tensor.mul_(2).mean(0) for name, tensor in tensors.items()}


class AView(PredictionFusion):
    def fuse(self, targets, similarities, view=None):
        return targets[0]


class LooksAround(PredictionFusion):
    """The mean over the examples goes off every one of them, so they cannot be fused apart."""

    by_example = True

    def fuse(self, targets, similarities, view=None):
        return (targets - targets.mean(1, keepdim=True)).mean(0)


class FitsAndPromisesNotTo(LooksAround):
    needs_training_view = True


class NeitherEarlyNorLate(Fusion):
    pass


class NaNScale(Average):
    def kd_scale(self, similarities):
        return float("nan")


class Opposite(Similarity):
    """The farther apart the better."""

    def score(self, source, target, context):
        return float((source.embedding - target.embedding).norm())


class ATensor(Similarity):
    def score(self, source, target, context):
        return torch.ones(())


class Moving(Similarity):
    def score(self, source, target, context):
        return float(torch.rand(()))


class Normalises(Similarity):
    def score(self, source, target, context):
        source.embedding.div_(source.embedding.norm())
        return 1.0


class Unseeded(Teacher):
    needs_sources = False

    def build(self, context):
        made = [context.method.create(context.backbone, torch.Generator()) for _ in context.sources or [0]]
        tensors = {name: torch.stack([one[name] for one in made]) for name in made[0]}
        return TeacherPrompts(
            method=context.method,
            tensors={name: tensor + torch.rand(tensor.shape) for name, tensor in tensors.items()},
        )


class OnePromptOnly(Teacher):
    def build(self, context):
        tensors = {name: tensor.unsqueeze(0) for name, tensor in context.sources[0].tensors.items()}
        return TeacherPrompts(method=context.method, tensors=tensors)


class StopsAtFailure(Executor):
    def run(self, function, jobs):
        for job in jobs:
            yield job, function(job)


BROKEN = [
    ("KD loss", UndescribedLoss, "options have defaults and descriptions"),
    ("KD loss", type("MutableLoss", (Loss,), {"Options": MutableOptions}), "options are immutable"),
    ("KD loss", OneLossForAll, "classification: one loss per prompt"),
    ("KD loss", PackAverage, "classification: prompts of a pack are independent"),
    ("KD loss", IgnoresMask, "token-classification: mask leaves rows out"),
    ("KD loss", DividesByMask, "classification: finite where a mask leaves nothing"),
    ("KD loss", WrongSign, "classification: least where student and teacher agree"),
    ("KD loss", LogOfZero, "classification: finite for very certain outputs"),
    ("KD loss", Detached, "multiple-choice: gradient is finite and not zero"),
    ("KD loss", HalfTargets, "classification: targets keep shape and dtype"),
    ("KD loss", TakesEverything, "undefined task kinds raise OptionError up front"),
    ("KD loss", TakesNothing, "undefined task kinds raise OptionError up front"),
    ("PEFT method", GlobalRandom, "plain: create is float32 and repeatable"),
    ("PEFT method", DoublePrecision, "plain: create is float32 and repeatable"),
    ("PEFT method", WrongCount, "plain: injection has the stated shapes"),
    ("PEFT method", HeadsForKeyHeads, "grouped key/value heads: injection has the stated shapes"),
    ("PEFT method", MixesThePack, "plain: prompts of a pack are independent"),
    ("PEFT method", MixesThePack, "bert: prompts of a pack are independent"),
    ("PEFT method", ForgetsATensor, "plain: gradients reach every trainable tensor"),
    ("PEFT method", ForgetsATensor, "distilbert: gradients reach every trainable tensor"),
    ("PEFT method", StoresHalf, "plain: stored form reads back"),
    ("PEFT method", StoresRounded, "plain: stored form reads back"),
    ("PEFT method", FlatTokens, "plain: token_matrix is [tokens, features]"),
    ("PEFT method", OnlyFirstLayer, "roberta: changes the pooled vector"),
    ("PEFT method", SaysItPacks, "plain: injection has the stated shapes"),
    ("PEFT method", PacksNothing, "plain: injection has the stated shapes"),
    ("PEFT method", NoSuchWeight, "plain: injection has the stated shapes"),
    ("PEFT method", NoSuchWeight, "bert: changes the pooled vector"),
    ("PEFT method", GuessesSizes, "plain: stored form reads back"),
    ("fusion", KeepsK, "2 prompt(s): shapes without K"),
    ("fusion", InPlace, "2 prompt(s): inputs stay as they are"),
    ("fusion", AView, "1 teacher(s): inputs stay as they are"),
    ("fusion", LooksAround, "3 teacher(s): examples apart where by_example says so"),
    ("fusion", FitsAndPromisesNotTo, "1 teacher(s): examples apart where by_example says so"),
    ("fusion", NeitherEarlyNorLate, "is a fusion of prompts or of predictions"),
    ("fusion", NaNScale, "kd_scale is a finite float"),
    ("similarity", Opposite, "no prompt is closer to a prompt than itself"),
    ("similarity", Opposite, "a prompt without task embedding works or raises PromptFileError"),
    ("similarity", ATensor, "score is a finite float"),
    ("similarity", Moving, "deterministic"),
    ("similarity", Normalises, "prompts stay as they are"),
    ("teacher", Unseeded, "the seed decides everything"),
    ("teacher", OnePromptOnly, "two sources: two teacher prompts of the stated shapes"),
    ("teacher", OnePromptOnly, "sources stay as they are"),
    ("teacher", OnePromptOnly, "sources that do not fit each other raise PromptFileError"),
    ("executor", StopsAtFailure, "a job that raises does not stop the others"),
]


@pytest.mark.parametrize(("kind", "method_type", "name"), BROKEN, ids=[f"{t.__name__}-{n}" for _, t, n in BROKEN])
def test_a_broken_contract_is_noticed(kind, method_type, name):
    (check,) = [check for check in checks_for(kind, method_type) if check.name == name]
    (result,) = run_checks([check])
    assert not result.passed
    assert result.message
    assert "\n" not in result.message


@pytest.mark.parametrize(
    ("kind", "method_type"), [("KD loss", Loss), ("PEFT method", Prefixed), ("PEFT method", Tuned), ("fusion", Average)]
)
def test_the_sound_starting_points_pass(kind, method_type):
    failed = [result for result in run_checks(checks_for(kind, method_type)) if not result.passed]
    assert not failed


def test_an_executor_that_keeps_its_contract_passes():
    class Serial(Executor):
        def run(self, function, jobs):
            for job in jobs:
                try:
                    yield job, function(job)
                except Exception as error:
                    yield job, error

    assert all(result.passed for result in run_checks(checks_for("executor", Serial)))


def test_padding_check_notices_a_method_that_looks_at_padding():
    class SeesWidth(Prefixed):
        def inject(self, tensors, shape):
            first = shape.layer_modules[0]
            injection = super().inject(tensors, shape)
            return replace(injection, outputs={first: lambda output, rows: output * (1 + output.shape[1] / 100)})

    (check,) = [c for c in checks_for("PEFT method", SeesWidth) if c.name == "bert: padding changes nothing"]
    (result,) = run_checks([check])
    assert "padded and not" in result.message
