"""A target task ready to train on: its splits, tokenised for one backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from panda_fusion.dataset import EncodedSet
from panda_fusion.encoding import samples_of
from panda_fusion.subsets import balanced_sample, carve_selection
from panda_fusion.task_embedding import SAMPLES
from panda_fusion.token_cache import encode_kept

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.rows import Split, TaskData
    from panda_fusion.task import Task
    from panda_fusion.tensor_cache import TensorCache

SelectOn = Literal["validation", "train-split"]
SAMPLE_SEED = 0
"""The samples of task embeddings and the selection split are the same whatever the seed of the run."""


@dataclass(frozen=True)
class EncodedTask:
    """A task's data for one backbone.

    Attributes:
        task: the task.
        train: training set.
        validation: what scores are reported on.
        selection: the split that chooses the best step; None: the validation set does.
        samples: class-balanced samples of the development set, for task embeddings.
        warnings: sentences that a user should see.
        draw: samples of another number; None: there are no others.
    """

    task: Task
    train: EncodedSet
    validation: EncodedSet
    selection: EncodedSet | None
    samples: EncodedSet
    warnings: tuple[str, ...]
    draw: Callable[[int], EncodedSet] | None = None


def encode_task(
    backbone: Backbone,
    data: TaskData,
    max_length: int,
    select_on: SelectOn = "validation",
    cache: TensorCache | None = None,
) -> EncodedTask:
    """Tokenise a task's splits.

    Args:
        backbone: whose tokenizer is used.
        data: the task and its rows.
        max_length: tokens kept of an example.
        select_on: `train-split` carves a tenth of the training set out to choose the best step on.
        cache: where tokens are kept for the next run (`panda_fusion.tensor_cache.TOKENS`); None: nowhere.
    """
    train, selection = data.train, None
    if select_on == "train-split":
        train, selection = carve_selection(data.train, seed=SAMPLE_SEED)

    def draw(count: int) -> EncodedSet:
        return samples_of(validation, balanced_sample(data.validation, count, SAMPLE_SEED))

    def tokenised(split: Split) -> EncodedSet:
        return encode_kept(backbone, data.task, split, max_length, cache)

    encoded = tokenised(train)
    validation = tokenised(data.validation)
    warnings = list(data.warnings)
    if encoded.truncated:
        warnings.append(
            f"{encoded.truncated} of {len(encoded)} training examples are longer than --max-length {max_length} and "
            "were cut"
        )
    return EncodedTask(
        task=data.task,
        train=encoded,
        validation=validation,
        selection=None if selection is None else tokenised(selection),
        samples=draw(SAMPLES),
        warnings=tuple(warnings),
        draw=draw,
    )
