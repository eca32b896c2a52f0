"""A task: what its rows look like, what is predicted, and how it is scored."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Kind = Literal["classification", "regression", "multiple-choice", "token-classification", "extractive-qa"]
MetricName = Literal["accuracy", "f1", "macro_f1", "matthews", "pearson_spearman", "span_f1", "squad"]
Row = dict[str, object]
SplitName = Literal["train", "validation"]


class HubSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a task lies on the Hugging Face Hub.

    Attributes:
        path: data set repository, for example `nyu-mll/glue`.
        config: configuration inside it, for example `rte`.
        train: name of the training split.
        validation: name of the split to score on.
    """

    path: str
    config: str | None = None
    train: str = "train"
    validation: str = "validation"


class Columns(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Columns beside `inputs` and `label` that some tasks read.

    Attributes:
        choices: multiple-choice: one column with a list of texts, or one column for each choice.
        question: multiple-choice: a column with `cause` or `effect`, which is read as "because" or "so" behind the
            first input (COPA).
        predicate: token-classification: the index of the word whose roles are asked for; it is read as second text.
        lead: input column -> the column whose text is put in front of it, with a colon (the marked word of WiC, the
            pronoun of WSC).
        offsets: input column -> columns with the first and behind-the-last character of the marked word in it.
        no_answer: extractive-qa: questions may have no answer (SQuAD v2); an empty list of answers says so.
    """

    choices: tuple[str, ...] = ()
    question: str = ""
    predicate: str = ""
    lead: dict[str, str] = {}
    offsets: dict[str, tuple[str, str]] = {}
    no_answer: bool = False


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A task.

    Attributes:
        name: how it is called on the command line (`rte`, `tiny/nli`, or a folder's name).
        kind: what is predicted.
        inputs: one or two text columns.
        label: the column that holds the class index, the value or the tags.
        labels: class names in integer order; empty for regression.
        metric: how predictions are scored.
        hub: where the rows lie on the Hub, for registered tasks.
        rows: `"module:function"` that makes the rows of a split, for tasks that ship inside a package;
            the function takes (task name, split) and returns a list of rows.
        folder: the folder of task.toml, train.jsonl and validation.jsonl, for a user's own task.
        description: one line for `panda-fusion tasks`.
        type: its type in the PanDa paper's Table I (`Question Answering`, ...), for reports.
        columns: columns beside `inputs` and `label`.
    """

    name: str
    kind: Kind
    inputs: Annotated[tuple[str, ...], Meta(min_length=1, max_length=2)]
    label: str = "label"
    labels: tuple[str, ...] = ()
    metric: MetricName = "accuracy"
    hub: HubSource | None = None
    rows: str | None = None
    folder: str | None = None
    description: str = ""
    type: str = ""
    columns: Columns = Columns()

    @property
    def outputs(self) -> int:
        """Width of the head: see `head_outputs`."""
        return head_outputs(self.kind, self.labels)


def head_outputs(kind: str, labels: tuple[str, ...]) -> int:
    """Width of a task kind's head: classes or tags, 1 number per row or per choice, 2 for an answer's start and end."""
    if kind in ("regression", "multiple-choice"):
        return 1
    return 2 if kind == "extractive-qa" else len(labels)
