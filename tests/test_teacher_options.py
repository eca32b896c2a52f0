"""How long teachers are trained on the target, and what the random control is (PanDa's Table V)."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_samples import CLASSES, encoded, method

from panda_fusion.backbone import Backbone
from panda_fusion.errors import OptionError
from panda_fusion.plugin_manager import teachers
from panda_fusion.prompt import Prompt
from panda_fusion.run import task_info
from panda_fusion.students import new_students
from panda_fusion.teacher import TeacherContext, TeacherPrompts

Tiny = Callable[[str], Backbone]
SPEC = "prefix:length=4"
BATCH = 32


class Sized:
    """A training set of which only the size is looked at."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count


def sources_of(backbone: Backbone, count: int) -> list[Prompt]:
    return [
        Prompt(
            method=method(SPEC).spec,
            tensors=student.tensors,
            head=student.head,
            embedding=None,
            backbone=backbone.info,
            task=task_info(CLASSES),
            path=f"source-{student.seed}",
        )
        for student in new_students(backbone, CLASSES, method(SPEC), range(count), 1e-2)
    ]


def build(
    spec: str, backbone: Backbone, examples: int, sources: int = 2, seed: int = 4
) -> tuple[TeacherPrompts, list[Any]]:
    """The teacher of a spec, and what it asked the engine to train (`fit` only writes it down)."""
    calls: list[Any] = []

    def fit(peft: Any, tensors: Any, **asked: Any) -> Any:
        calls.append(SimpleNamespace(tensors=tensors, **asked))
        return SimpleNamespace(tensors=tensors, head={"classifier.weight": torch.zeros(len(tensors["key"]), 3, 32)})

    context = TeacherContext(
        backbone=backbone,
        train=Sized(examples),  # type: ignore[arg-type]
        sources=sources_of(backbone, sources),
        method=method(SPEC),
        seed=seed,
        steps_per_epoch=-(-examples // BATCH),
        fit=fit,
    )
    return teachers().create(spec).build(context), calls


@pytest.mark.parametrize(
    ("options", "examples", "epochs", "max_steps"),
    [
        ("", 19_999, 1, None),
        ("", 20_000, 2, 1000),  # 625 steps in an epoch
        ("until=steps,steps=50", 100, 13, 50),  # 4 steps in an epoch, and a small target
        ("until=steps", 400_000, 1, 1000),
        ("until=epochs,epochs=2", 400_000, 2, None),
        ("until=epochs", 100, 1, None),
        ("until=size,epochs=3,steps=50", 100, 3, None),
        ("until=size,epochs=3,steps=50", 20_000, 1, 50),
    ],
)
@pytest.mark.parametrize("name", ["target-like", "random"])
def test_how_long_a_teacher_is_trained(
    name: str, options: str, examples: int, epochs: int, max_steps: int | None, tiny: Tiny
) -> None:
    """The paper's rule by the target's size, or what is asked for whatever the size; the control obeys the same."""
    given = [*(["trained=true"] if name == "random" else []), *filter(None, [options])]
    teacher, calls = build(f"{name}:{','.join(given)}" if given else name, tiny("bert"), examples)
    (call,) = calls
    assert (call.epochs, call.max_steps) == (epochs, max_steps)
    assert max_steps is None or epochs * -(-examples // BATCH) >= max_steps, "the epochs end before the steps do"
    assert teacher.head is not None
    assert len(call.tensors["key"]) == 2


def test_the_random_control_is_not_trained_unless_asked(tiny: Tiny) -> None:
    """Table V: a randomly initialised prompt. Its head is fitted by the engine, as the source teacher's is."""
    random, calls = build("random", tiny("bert"), 100)
    source, more = build("source", tiny("bert"), 100)
    assert (calls, more) == ([], [])
    assert (random.head, source.head) == (None, None)
    trained, (call,) = build("random:trained=true", tiny("bert"), 100)
    assert all(torch.equal(call.tensors[name], tensor) for name, tensor in random.tensors.items())
    assert trained.head is not None
    # No source, and no student of any seed that a user would try, starts there.
    for student in new_students(tiny("bert"), CLASSES, method(SPEC), range(10), 1e-2):
        assert not any(torch.equal(own, student.tensors["key"]) for own in random.tensors["key"])


def test_options_that_would_do_nothing_are_refused() -> None:
    for options in ("epochs=2", "steps=5", "until=steps"):
        with pytest.raises(
            OptionError, match=r"^The options of teacher 'random' do not go together: .*trained=true\.$"
        ):
            teachers().create(f"random:{options}")
    assert (
        teachers().create("random:trained=true,epochs=2").spec == "random:epochs=2,steps=1000,until=size,trained=true"
    )


def test_a_trained_random_teacher_learns_the_target(tiny: Tiny) -> None:
    """With the engine's own training: prompt and head leave their start, and the losses fall."""
    from panda_fusion.distillation import DistillationMethods, teacher_signal
    from panda_fusion.plugin_manager import fusions, kd_losses
    from panda_fusion.trainer import TrainSettings

    backbone = tiny("bert")
    train = encoded(backbone, CLASSES, 40)
    settings = TrainSettings(epochs=2, batch_size=8, dropout=0.0)
    losses = []
    for spec in ("random:trained=true,until=steps,steps=1", "random:trained=true,until=steps,steps=100"):
        methods = DistillationMethods(
            teachers().create(spec), fusions().create("single"), kd_losses().create("mse"), 0.05
        )
        made = teacher_signal(
            backbone, CLASSES, train, sources_of(backbone, 1), [1.0], methods, method(SPEC), settings, 5e-2, 0,
        )  # fmt: skip
        assert train.labels is not None
        right = made.distillation.targets[torch.arange(len(train)), train.labels]
        losses.append(float(-right.log().mean()))
    assert losses[1] < 0.75 * losses[0]
