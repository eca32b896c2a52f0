"""The tasks of SuperGLUE that the PanDa paper uses (metrics: its section IV-A)."""

from __future__ import annotations

from panda_fusion import hookimpl
from panda_fusion.hookspecs import RegisterTask
from panda_fusion.task import Columns, HubSource, Task


def _hub(config: str) -> HubSource:
    return HubSource(path="aps/super_glue", config=config)


TASKS = (
    Task(
        name="rte",
        type="Natural Language Inference",
        kind="classification",
        inputs=("premise", "hypothesis"),
        labels=("entailment", "not_entailment"),
        hub=_hub("rte"),
        description="Does the hypothesis follow from the premise? (SuperGLUE)",
    ),
    Task(
        name="cb",
        type="Natural Language Inference",
        kind="classification",
        inputs=("premise", "hypothesis"),
        labels=("entailment", "contradiction", "neutral"),
        hub=_hub("cb"),
        description="Is the writer of the premise committed to the hypothesis? (SuperGLUE)",
    ),
    Task(
        name="boolq",
        type="Question Answering",
        kind="classification",
        inputs=("question", "passage"),
        labels=("no", "yes"),
        hub=_hub("boolq"),
        description="Is the answer to the question yes, according to the passage? (SuperGLUE)",
    ),
    # The marked words are put in front of the texts, as the code base of the paper (P-tuning v2) does it.
    Task(
        name="wic",
        type="Word Sense Disambiguation",
        kind="classification",
        inputs=("sentence1", "sentence2"),
        labels=("different_sense", "same_sense"),
        hub=_hub("wic"),
        columns=Columns(
            lead={"sentence1": "word", "sentence2": "word"},
            offsets={"sentence1": ("start1", "end1"), "sentence2": ("start2", "end2")},
        ),
        description="Does a word have the same sense in both sentences? (SuperGLUE)",
    ),
    Task(
        name="wsc",
        type="Natural Language Inference",
        kind="classification",
        inputs=("text", "span1_text"),
        labels=("not_coreferent", "coreferent"),
        hub=_hub("wsc.fixed"),
        columns=Columns(lead={"text": "span2_text"}),
        description="Does a pronoun mean a noun of the text? (SuperGLUE)",
    ),
    Task(
        name="copa",
        type="Question Answering",
        kind="multiple-choice",
        inputs=("premise",),
        hub=_hub("copa"),
        columns=Columns(choices=("choice1", "choice2"), question="question"),
        description="Which of two sentences is the cause or the effect of the premise? (SuperGLUE)",
    ),
    Task(
        name="multirc",
        type="Question Answering",
        kind="classification",
        inputs=("paragraph", "answer"),
        labels=("false", "true"),
        metric="f1",
        hub=_hub("multirc"),
        columns=Columns(lead={"answer": "question"}),
        description="Is an answer to a question about the paragraph right? (SuperGLUE)",
    ),
    Task(
        name="record",
        type="Question Answering",
        kind="multiple-choice",
        inputs=("passage", "query"),
        label="answers",
        hub=_hub("record"),
        columns=Columns(choices=("entities",)),
        description="Which entity of the passage fills the gap? The first answer counts as right. (SuperGLUE)",
    ),
)


@hookimpl
def register_tasks(register: RegisterTask) -> None:
    for task in TASKS:
        register(task)
