"""Extractive question answering: SQuAD."""

from __future__ import annotations

from panda_fusion import hookimpl
from panda_fusion.hookspecs import RegisterTask
from panda_fusion.task import Columns, HubSource, Task

TASKS = (
    Task(
        name="squad",
        type="Question Answering",
        kind="extractive-qa",
        inputs=("question", "context"),
        label="answers",
        metric="squad",
        hub=HubSource(path="rajpurkar/squad"),
        description="Find the answer in a paragraph of Wikipedia. (SQuAD 1.1)",
    ),
    Task(
        name="squad_v2",
        type="Question Answering",
        kind="extractive-qa",
        inputs=("question", "context"),
        label="answers",
        metric="squad",
        hub=HubSource(path="rajpurkar/squad_v2"),
        columns=Columns(no_answer=True),
        description="Find the answer in a paragraph of Wikipedia, or say that it has none. (SQuAD 2.0)",
    ),
)


@hookimpl
def register_tasks(register: RegisterTask) -> None:
    for task in TASKS:
        register(task)
