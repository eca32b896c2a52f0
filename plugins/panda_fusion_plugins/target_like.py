"""The teacher that starts from the source prompt and is trained a little on the target (PanDa III-C2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from panda_fusion import hookimpl
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.method import Options
from panda_fusion.teacher import Teacher, TeacherContext, TeacherPrompts

if TYPE_CHECKING:
    import torch

    from panda_fusion.peft_method import PEFTMethod

LARGE_TASK = 20_000
"""Training examples from which on the paper calls a task large (caption of Table I)."""


class TargetLikeOptions(Options, frozen=True, kw_only=True):
    """Options of `target-like`."""

    epochs: Annotated[int, Meta(ge=1, description="epochs on targets of under 20,000 training examples")] = 1
    steps: Annotated[int, Meta(ge=1, description="steps on larger targets")] = 1000
    until: Annotated[
        Literal["size", "epochs", "steps"],
        Meta(description="what ends the training: epochs or steps by the target's size, or always the one named"),
    ] = "size"


def train_shortly(
    context: TeacherContext,
    method: PEFTMethod,
    tensors: Mapping[str, torch.Tensor],
    options: TargetLikeOptions,
) -> TeacherPrompts:
    """Train K prompts, each with a new head, on the target for a short time.

    Args:
        context: what the teacher is built from.
        method: their PEFT method.
        tensors: its trainable tensors [K, ...].
        options: for how long.
    """
    small = len(context.train) < LARGE_TASK
    if options.until == "epochs" or (options.until == "size" and small):
        pack = context.fit(method, tensors, epochs=options.epochs, max_steps=None)
    else:
        enough = -(-options.steps // max(1, context.steps_per_epoch))
        pack = context.fit(method, tensors, epochs=enough, max_steps=options.steps)
    return TeacherPrompts(method=method, tensors=pack.tensors, head=pack.head)


class TargetLikeTeacher(Teacher):
    """Source tensors and a new head, trained on the target for one epoch, or for 1000 steps on large tasks."""

    Options = TargetLikeOptions
    options: TargetLikeOptions

    def build(self, context: TeacherContext) -> TeacherPrompts:
        from panda_fusion.sources import stack_sources

        method, tensors = stack_sources(context.sources, context.backbone.shape)
        return train_shortly(context, method, tensors, self.options)


@hookimpl
def register_teachers(register: RegisterMethod) -> None:
    register("target-like", TargetLikeTeacher, help="the source prompt, trained shortly on the target (PanDa)")
