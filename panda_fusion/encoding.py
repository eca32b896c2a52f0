"""Tokenising rows of every task kind for a backbone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from panda_fusion.dataset import EncodedSet, encode
from panda_fusion.extractive_qa import encode_questions
from panda_fusion.multiple_choice import encode_choices
from panda_fusion.token_classification import encode_words

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.prompt import TaskInfo
    from panda_fusion.rows import Split
    from panda_fusion.task import Task


def encode_split(backbone: Backbone, task: Task | TaskInfo, split: Split, max_length: int) -> EncodedSet:
    """Tokenise a split.

    Args:
        backbone: whose tokenizer and device are used.
        task: the task, or what a prompt file says of it.
        split: its rows; without labels for a prediction.
        max_length: tokens kept of a row; what is longer is cut, and read in several windows for extractive-qa.
    """
    labelled = bool(split.labels)
    if task.kind == "multiple-choice":
        assert split.choices is not None
        return encode_choices(backbone, split.texts, split.choices, split.labels if labelled else None, max_length)
    if task.kind == "token-classification":
        tags = split.labels if labelled else None
        predicates = split.texts[1] if task.columns.predicate else None
        return encode_words(backbone, split.texts[0], predicates, tags, max_length)
    if task.kind == "extractive-qa":
        questions, contexts = split.texts
        found = split.labels if labelled else None
        return encode_questions(backbone, questions, contexts, found, max_length, task.columns.no_answer)
    return encode(backbone, split.texts, split.labels if labelled else None, task.kind, max_length)


def samples_of(data: EncodedSet, rows: list[int]) -> EncodedSet:
    """Some rows of a split for passes without labels: for extractive-qa the first window of each."""
    if data.kind != "extractive-qa":
        return data.subset(rows)
    from panda_fusion.extractive_qa import windows_of

    return replace(data.subset([windows[0] for windows in windows_of(data, rows)]), labels=None)
