"""The tasks of GLUE that the PanDa paper uses (metrics: its section IV-A)."""

from __future__ import annotations

from panda_fusion import hookimpl
from panda_fusion.hookspecs import RegisterTask
from panda_fusion.task import HubSource, Task


def _hub(config: str, validation: str = "validation") -> HubSource:
    return HubSource(path="nyu-mll/glue", config=config, validation=validation)


TASKS = (
    Task(
        name="cola",
        type="Grammatical Acceptability",
        kind="classification",
        inputs=("sentence",),
        labels=("unacceptable", "acceptable"),
        metric="matthews",
        hub=_hub("cola"),
        description="Is the sentence acceptable English? (GLUE)",
    ),
    Task(
        name="sst2",
        type="Sentiment Analysis",
        kind="classification",
        inputs=("sentence",),
        labels=("negative", "positive"),
        hub=_hub("sst2"),
        description="Is a sentence from a film review positive? (GLUE)",
    ),
    Task(
        name="mrpc",
        type="Paraphrase Detection",
        kind="classification",
        inputs=("sentence1", "sentence2"),
        labels=("not_equivalent", "equivalent"),
        hub=_hub("mrpc"),
        description="Do two sentences from the news say the same? (GLUE)",
    ),
    Task(
        name="stsb",
        type="Semantic Similarity",
        kind="regression",
        inputs=("sentence1", "sentence2"),
        metric="pearson_spearman",
        hub=_hub("stsb"),
        description="How similar are two sentences, from 0 to 5? (GLUE)",
    ),
    Task(
        name="qnli",
        type="Natural Language Inference",
        kind="classification",
        inputs=("question", "sentence"),
        labels=("entailment", "not_entailment"),
        hub=_hub("qnli"),
        description="Does the sentence answer the question? (GLUE)",
    ),
    Task(
        name="qqp",
        type="Paraphrase Detection",
        kind="classification",
        inputs=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        hub=_hub("qqp"),
        description="Do two questions ask the same? (GLUE)",
    ),
    Task(
        name="mnli",
        type="Natural Language Inference",
        kind="classification",
        inputs=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        hub=_hub("mnli", validation="validation_matched"),
        description="Does the hypothesis follow from the premise, contradict it, or neither? (GLUE)",
    ),
)


@hookimpl
def register_tasks(register: RegisterTask) -> None:
    for task in TASKS:
        register(task)
