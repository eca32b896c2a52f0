"""Tagging words: named entities, semantic roles, parts of speech.

Most of these sets have licences or formats that keep them off the Hub; they are read with --data, from folders with
train.jsonl, validation.jsonl and labels.json.
"""

from __future__ import annotations

from panda_fusion import hookimpl
from panda_fusion.hookspecs import RegisterTask
from panda_fusion.task import Columns, HubSource, MetricName, Task

ENTITIES = "Named Entity Recognition"
ROLES = "Semantic Role Labeling"


def _tagging(
    name: str,
    description: str,
    type: str = ENTITIES,
    label: str = "ner_tags",
    labels: tuple[str, ...] = (),
    metric: MetricName = "span_f1",
    hub: HubSource | None = None,
) -> Task:
    return Task(
        name=name,
        type=type,
        kind="token-classification",
        inputs=("tokens",),
        label=label,
        labels=labels,
        metric=metric,
        hub=hub,
        columns=Columns(predicate="predicate_index") if type == ROLES else Columns(),
        description=description,
    )


_CONLL03 = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
TASKS = (
    _tagging(
        "conll03",
        "Entities in the news. (CoNLL 2003)",
        labels=_CONLL03,
        hub=HubSource(path="tomaarsen/conll2003"),
    ),
    _tagging("conll04", "Entities in the news. (CoNLL 2004; with --data)"),
    _tagging("ontonotes", "Entities in texts of many kinds. (OntoNotes 5; with --data)"),
    _tagging("wnut17", "New and rare entities. (WNUT 2017; with --data)"),
    _tagging("conll05", "Roles of a predicate. (CoNLL 2005; with --data)", ROLES, "srl_tags"),
    _tagging("conll12", "Roles of a predicate. (CoNLL 2012; with --data)", ROLES, "srl_tags"),
    _tagging(
        "propbank_ewt_srl", "Roles of a predicate. (PropBank, English Web Treebank; with --data)", ROLES, "srl_tags"
    ),
    _tagging(
        "ud_ewt_pos",
        "Parts of speech. (Universal Dependencies, English Web Treebank; with --data)",
        "Part-of-Speech Tagging",
        "pos_tags",
        metric="accuracy",
    ),
)


@hookimpl
def register_tasks(register: RegisterTask) -> None:
    for task in TASKS:
        register(task)
