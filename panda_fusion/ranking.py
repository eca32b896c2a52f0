"""Similarities of source prompts to a target task, and the short probe that stands for the target's prompt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from panda_fusion.random_streams import stream_seed
from panda_fusion.run import RunSettings, finished_prompts
from panda_fusion.similarity import SimilarityContext
from panda_fusion.students import new_students
from panda_fusion.trainer import train_pack

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.encoded_task import EncodedTask
    from panda_fusion.peft_method import PEFTMethod
    from panda_fusion.prompt import Prompt
    from panda_fusion.similarity import Similarity
    from panda_fusion.tensor_cache import TensorCache

PROBE_STEPS = 200
"""Training steps of a probe unless the user says otherwise."""


@dataclass(frozen=True)
class Ranked:
    """A source and its similarity to the target."""

    prompt: Prompt
    similarity: float


def train_probe(
    backbone: Backbone,
    method: PEFTMethod,
    encoded: EncodedTask,
    settings: RunSettings,
    steps: int,
    seed: int,
) -> Prompt:
    """Train a prompt on the target just long enough to compare others with it.

    Prompt and head start from random draws of the probe's own. With those of a training run a source of the same
    seed would have started at the very same point, which short training does not leave far behind: the similarity
    would say how little the source was trained.

    Args:
        backbone: the frozen backbone.
        method: PEFT method; similarities of tensors need the sources' own.
        encoded: the target task.
        settings: the run's settings; epochs and evaluations do not apply.
        steps: training steps.
        seed: seed of the run.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the step that was under way.
    """
    students = new_students(backbone, encoded.task, method, [stream_seed(seed, "probe")], settings.learning_rate)
    per_epoch, _ = settings.training.steps(len(encoded.train))
    training = replace(settings.training, epochs=-(-steps // per_epoch), max_steps=steps)
    pack = train_pack(backbone, method, students, encoded.task, encoded.train, training)
    if pack.interrupted:  # half a probe compares nothing
        raise KeyboardInterrupt
    return finished_prompts(backbone, encoded, pack, students, replace(settings, training=training))[0]


@dataclass(frozen=True)
class TargetPrompt:
    """The prompt that stands for the target task.

    Attributes:
        prompt: given or trained; None where the similarity needs none.
        probe_steps: training steps of the probe; 0 without one.
        seconds: what the probe took.
    """

    prompt: Prompt | None
    probe_steps: int = 0
    seconds: float = 0.0


def target_for(
    similarity: Similarity,
    sources: Sequence[Prompt],
    given: Prompt | None,
    backbone: Backbone,
    method: PEFTMethod,
    encoded: EncodedTask,
    settings: RunSettings,
    *,
    steps: int,
    seed: int,
) -> TargetPrompt:
    """The given prompt of the target, a probe where there is none, nothing where none is needed.

    Raises:
        PromptFileError, OptionError, BackboneError: sources or backbone lack what the similarity compares; found
            out before the probe is trained.
    """
    similarity.check_sources(sources, SimilarityContext(backbone=backbone, samples=encoded.samples))
    if given is not None or not similarity.needs_target:
        return TargetPrompt(given)
    started = time.perf_counter()
    probe = train_probe(backbone, method, encoded, settings, steps, seed)
    return TargetPrompt(probe, steps, time.perf_counter() - started)


def score_sources(
    backbone: Backbone,
    similarity: Similarity,
    sources: Sequence[Prompt],
    target: Prompt | None,
    encoded: EncodedTask,
    cache: TensorCache | None = None,
) -> list[float]:
    """Similarity of every source to the target, in the order given.

    Args:
        backbone: the frozen backbone.
        similarity: the metric.
        sources: the sources' prompts.
        target: the target's prompt, or None where the metric needs none.
        encoded: the target task.
        cache: where computed task embeddings are looked for and kept; None: nowhere.
    """
    context = SimilarityContext(backbone=backbone, samples=encoded.samples, cache=cache, draw=encoded.draw)
    return similarity.scores(sources, target, context)


def ranked(sources: Sequence[Prompt], similarities: Sequence[float]) -> list[Ranked]:
    """Sources with their similarities, the best first; equal ones keep their order."""
    pairs = [Ranked(source, value) for source, value in zip(sources, similarities, strict=True)]
    return sorted(pairs, key=lambda pair: -pair.similarity)
