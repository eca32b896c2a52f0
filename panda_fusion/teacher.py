"""The base class of teachers: from source prompts and the target's training data to teacher prompts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from panda_fusion.method import Method

if TYPE_CHECKING:
    import torch

    from panda_fusion.backbone import Backbone
    from panda_fusion.dataset import EncodedSet
    from panda_fusion.peft_method import PEFTMethod
    from panda_fusion.prompt import Prompt
    from panda_fusion.trainer import TrainedPack


@dataclass(frozen=True)
class TeacherContext:
    """What a teacher is built from.

    Attributes:
        backbone: the frozen backbone.
        train: the target task's training set, tokenised.
        sources: the K source prompts.
        method: the student's PEFT method (for teachers that start from nothing).
        seed: seeds whatever the teacher draws.
        steps_per_epoch: training steps that one pass over the training set takes.
        fit: trains prompts on the target's training set and returns them with their heads:
            `fit(method, tensors, epochs=..., max_steps=...)`, where tensors are trainable ones [K, ...]
            and `max_steps` may be None.
            All K train side by side; learning rate and batch size are the run's.
    """

    backbone: Backbone
    train: EncodedSet
    sources: Sequence[Prompt]
    method: PEFTMethod
    seed: int
    steps_per_epoch: int
    fit: Callable[..., TrainedPack]


@dataclass(frozen=True)
class TeacherPrompts:
    """K teacher prompts of one method.

    Attributes:
        method: the PEFT method that the tensors belong to.
        tensors: trainable tensors, each [K, ...], float32.
        head: head parameters, each [K, ...]; None: the engine fits a head on the target, prompts frozen.
    """

    method: PEFTMethod
    tensors: Mapping[str, torch.Tensor]
    head: Mapping[str, torch.Tensor] | None = None


class Teacher(Method):
    """Makes the prompts whose predictions the student is distilled from."""

    needs_sources: ClassVar[bool] = True
    """Whether the teacher is made from source prompts."""

    @abstractmethod
    def build(self, context: TeacherContext) -> TeacherPrompts:
        """Make the teacher prompts.

        Raises:
            PromptFileError: the sources do not fit each other (method or shape).
        """
