"""The control of PanDa's Table V: a teacher with a random prompt."""

from __future__ import annotations

from panda_fusion import hookimpl
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.teacher import Teacher, TeacherContext, TeacherPrompts


class RandomTeacher(Teacher):
    """Random prompts, as many as there are sources (at least one), with a head fitted on the target.

    The head is treated as the `source` teacher's is, so that the prompt is all that differs.
    """

    needs_sources = False

    def build(self, context: TeacherContext) -> TeacherPrompts:
        import torch

        from panda_fusion.random_streams import random_stream

        # Not the students' stream: the first random teacher would be the student's own start.
        generator = random_stream(context.seed, "teacher")
        count = max(1, len(context.sources))
        made = [context.method.create(context.backbone.shape, generator) for _ in range(count)]
        tensors = {name: torch.stack([one[name] for one in made]) for name in made[0]}
        return TeacherPrompts(method=context.method, tensors=tensors)


@hookimpl
def register_teachers(register: RegisterMethod) -> None:
    register("random", RandomTeacher, help="a random prompt, the control of PanDa's Table V")
