"""The single-label tasks of SuperGLUE that the PanDa paper uses (metrics: its section IV-A)."""

from __future__ import annotations

from panda_fusion import hookimpl
from panda_fusion.hookspecs import RegisterTask
from panda_fusion.task import HubSource, Task


def _hub(config: str) -> HubSource:
    return HubSource(path="aps/super_glue", config=config)


TASKS = (
    Task(
        name="rte",
        kind="classification",
        inputs=("premise", "hypothesis"),
        labels=("entailment", "not_entailment"),
        hub=_hub("rte"),
        description="Does the hypothesis follow from the premise? (SuperGLUE)",
    ),
    Task(
        name="cb",
        kind="classification",
        inputs=("premise", "hypothesis"),
        labels=("entailment", "contradiction", "neutral"),
        hub=_hub("cb"),
        description="Is the writer of the premise committed to the hypothesis? (SuperGLUE)",
    ),
    Task(
        name="boolq",
        kind="classification",
        inputs=("question", "passage"),
        labels=("no", "yes"),
        hub=_hub("boolq"),
        description="Is the answer to the question yes, according to the passage? (SuperGLUE)",
    ),
    # The word whose senses are compared is a third column; the two sentences alone are read.
    Task(
        name="wic",
        kind="classification",
        inputs=("sentence1", "sentence2"),
        labels=("different_sense", "same_sense"),
        hub=_hub("wic"),
        description="Does a word have the same sense in both sentences? The word is not marked. (SuperGLUE)",
    ),
)


@hookimpl
def register_tasks(register: RegisterTask) -> None:
    for task in TASKS:
        register(task)
