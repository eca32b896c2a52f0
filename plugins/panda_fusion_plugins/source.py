"""The teacher that is the source prompt itself, with a head fitted on the target."""

from __future__ import annotations

from panda_fusion import hookimpl
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.teacher import Teacher, TeacherContext, TeacherPrompts


class SourceTeacher(Teacher):
    """The source prompts as they are (PanDa, footnote 3). The label sets differ, so only a head is fitted."""

    def build(self, context: TeacherContext) -> TeacherPrompts:
        from panda_fusion.sources import stack_sources

        method, tensors = stack_sources(context.sources, context.backbone.shape)
        return TeacherPrompts(method=method, tensors=tensors)


@hookimpl
def register_teachers(register: RegisterMethod) -> None:
    register("source", SourceTeacher, help="the source prompt itself, a head fitted on the target")
