"""The control of PanDa's Table V: a teacher with a random prompt."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from panda_fusion import hookimpl
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.teacher import Teacher, TeacherContext, TeacherPrompts
from panda_fusion_plugins.target_like import TargetLikeOptions, train_shortly


class RandomOptions(TargetLikeOptions, frozen=True, kw_only=True):
    """Options of `random`: those of `target-like` say how a trained one is trained."""

    trained: Annotated[bool, Meta(description="train it shortly on the target, as target-like trains a source")] = False

    def __post_init__(self) -> None:
        default = TargetLikeOptions()
        short = (self.epochs, self.steps, self.until)
        if not self.trained and short != (default.epochs, default.steps, default.until):
            raise ValueError("epochs, steps and until are those of a trained random prompt; add trained=true.")


class RandomTeacher(Teacher):
    """Random prompts, as many as there are sources (at least one).

    By default with a head fitted on the target, as the `source` teacher's is, so that the prompt is all that differs
    from it. `trained=true` is the same control for `target-like`: the short training without a source.
    """

    Options = RandomOptions
    options: RandomOptions
    needs_sources = False

    def build(self, context: TeacherContext) -> TeacherPrompts:
        import torch

        from panda_fusion.random_streams import random_stream

        # Not the students' stream: the first random teacher would be the student's own start.
        generator = random_stream(context.seed, "teacher")
        count = max(1, len(context.sources))
        made = [context.method.create(context.backbone, generator) for _ in range(count)]
        tensors = {name: torch.stack([one[name] for one in made]) for name in made[0]}
        if self.options.trained:
            return train_shortly(context, context.method, tensors, self.options)
        return TeacherPrompts(method=context.method, tensors=tensors)


@hookimpl
def register_teachers(register: RegisterMethod) -> None:
    register("random", RandomTeacher, help="a random prompt, the control of PanDa's Table V")
