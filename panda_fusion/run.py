"""A training run from start to prompt: what `train` and `transfer` share."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from panda_fusion.device import precision_name
from panda_fusion.encoded_task import EncodedTask, SelectOn, encode_task
from panda_fusion.prompt import Lineage, Prompt, TaskInfo
from panda_fusion.task_embedding import task_embeddings
from panda_fusion.trainer import Student, TrainedPack, TrainSettings, train_pack

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.peft_method import PEFTMethod
    from panda_fusion.rows import TaskData
    from panda_fusion.task import Task
    from panda_fusion.tensor_cache import TensorCache

LIBRARIES = ("panda-fusion", "torch", "transformers")


@dataclass(frozen=True)
class RunSettings:
    """Everything that a user sets for a run.

    Attributes:
        training: epochs, batch size, dropout.
        learning_rate: peak learning rate; None: the PEFT method's own.
        max_length: tokens kept of a text.
        select_on: which split chooses the best step.
    """

    training: TrainSettings
    learning_rate: float | None = None
    max_length: int = 128
    select_on: SelectOn = "validation"


def prepare(
    backbone: Backbone, method: PEFTMethod, data: TaskData, settings: RunSettings, cache: TensorCache | None = None
) -> EncodedTask:
    """Check that prompt and texts fit the backbone, then tokenise, or find the tokens in a cache.

    Raises:
        BackboneError: virtual tokens and texts do not fit into the position table.
    """
    backbone.check_length(method.virtual_tokens(), settings.max_length)
    return encode_task(backbone, data, settings.max_length, settings.select_on, cache)


def train_students(
    backbone: Backbone,
    method: PEFTMethod,
    students: Sequence[Student],
    encoded: EncodedTask,
    settings: RunSettings,
) -> TrainedPack:
    """Train students on a prepared task, scoring on its validation set."""
    return train_pack(
        backbone,
        method,
        students,
        encoded.task,
        encoded.train,
        settings.training,
        validation=encoded.validation,
        selection=encoded.selection,
    )


def finished_prompts(
    backbone: Backbone,
    encoded: EncodedTask,
    pack: TrainedPack,
    students: Sequence[Student],
    settings: RunSettings,
    lineages: Sequence[Lineage] | None = None,
) -> list[Prompt]:
    """The trained prompts of a pack, each with its task embedding and everything a file says of it.

    `lineages` has one entry per student; None: trained from scratch.
    """
    embeddings = task_embeddings(backbone, pack.method, pack.tensors, encoded.samples)
    prompts = []
    for place, student in enumerate(students):
        trainable = {name: tensor[place] for name, tensor in pack.tensors.items()}
        score = pack.scores[place]
        prompts.append(
            Prompt(
                method=pack.method.stored().spec,
                tensors=pack.method.to_stored(trainable, backbone.shape),
                head={name: tensor[place] for name, tensor in pack.head.items()},
                embedding=embeddings[place],
                backbone=backbone.info,
                task=task_info(encoded.task),
                training=_training_record(backbone, pack, student, settings),
                scores={
                    "metric": encoded.task.metric,
                    "selected_on": settings.select_on,
                    "best": score.best,
                    "last": score.last,
                    "best_step": score.best_step,
                },
                lineage=Lineage() if lineages is None else lineages[place],
            )
        )
    return prompts


def task_info(task: Task) -> TaskInfo:
    """What a prompt file says of a task."""
    return TaskInfo(
        name=task.name,
        kind=task.kind,
        inputs=task.inputs,
        label=task.label,
        labels=task.labels,
        metric=task.metric,
        columns=task.columns,
    )


def result_record(
    backbone: Backbone, encoded: EncodedTask, pack: TrainedPack, place: int, seed: int, started: float
) -> dict[str, object]:
    """The result of one prompt as `--json` prints it (`prompt` is added when the file is written).

    Args:
        backbone: the frozen backbone.
        encoded: the target task.
        pack: the trained pack.
        place: which prompt of the pack.
        seed: its seed.
        started: `time.perf_counter()` at the start of the command.
    """
    scores = pack.scores[place]
    metric = encoded.task.metric
    return {
        "task": encoded.task.name,
        "model": backbone.name,
        "method": pack.method.spec,
        "metric": metric,
        "score": scores.best.get(metric),
        "best": scores.best.get(metric),
        "last": scores.last.get(metric),
        "best_metrics": scores.best,
        "last_metrics": scores.last,
        "best_step": scores.best_step,
        "steps": pack.steps,
        "steps_planned": pack.steps_planned,
        "samples_per_second": pack.samples_per_second,
        "train_seconds": pack.train_seconds,
        "compile_seconds": backbone.compile_seconds,
        "wall_seconds": time.perf_counter() - started,
        "device": backbone.device.type,
        "precision": precision_name(backbone.dtype),
        "seed": seed,
        "interrupted": pack.interrupted,
        "diverged": pack.diverged[place],
    }


def _training_record(
    backbone: Backbone, pack: TrainedPack, student: Student, settings: RunSettings
) -> Mapping[str, object]:
    return {
        "recipe": asdict(settings.training)
        | {
            "method": pack.method.spec,
            "learning_rate": student.learning_rate,
            "max_length": settings.max_length,
        },
        "seed": student.seed,
        "steps": pack.steps,
        "device": backbone.device.type,
        "precision": precision_name(backbone.dtype),
        "libraries": library_versions(),
    }


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide a result, by distribution; `not installed` for a bare source tree."""

    def version(distribution: str) -> str:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    return {name: version(name) for name in LIBRARIES}
