"""The tasks ``tiny/<name>``: six source tasks and two low-resource target tasks about the small world.

`TASKS` describes them and `rows` makes their rows. Rows are made anew in each process from fixed seeds, so
they are the same everywhere and nothing is stored. A label is drawn first and then a row that has it, so
that the labels are even; texts are made so that the words alone say little about the label (negation, for
example, is about as frequent in every class).
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from panda_fusion.tiny import world

Row = dict[str, str | int | float]
Maker = Callable[[random.Random, int], "tuple[str, ...] | None"]


@dataclass(frozen=True)
class TinyTask:
    """What a task is: its columns, labels, metric and sizes. `labels` is empty for regression."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    labels: tuple[str, ...]
    metric: str
    train_size: int
    validation_size: int
    description: str
    role: str

    def size(self, split: str) -> int:
        """The number of rows of a split."""
        return {"train": self.train_size, "validation": self.validation_size}[split]


ONE_TEXT = ("text",)
PAIR = ("premise", "hypothesis")
SENTENCES = ("sentence1", "sentence2")

_TASKS = (
    TinyTask(
        "nli", "classification", PAIR, ("entailment", "neutral", "contradiction"), "accuracy", 3000, 300,
        "Does the second sentence follow from the first, contradict it, or neither?", "source",
    ),
    TinyTask(
        "paraphrase", "classification", SENTENCES, ("different", "same"), "f1", 2400, 300,
        "Do the two sentences say the same?", "source",
    ),
    TinyTask(
        "sentiment", "classification", ONE_TEXT, ("negative", "positive"), "accuracy", 2000, 300,
        "Is the opinion of a film, meal, trip or the like good or bad on the whole?", "source",
    ),
    TinyTask(
        "quantity", "classification", ("scene", "statement"), ("false", "true"), "accuracy", 2000, 300,
        "Is the statement with a number or quantifier true of the scene?", "source",
    ),
    TinyTask(
        "grammar", "classification", ONE_TEXT, ("unacceptable", "acceptable"), "matthews", 2000, 300,
        "Is the sentence well formed (agreement, word order, no word missing)?", "source",
    ),
    TinyTask(
        "similarity", "regression", SENTENCES, (), "pearson_spearman", 2000, 300,
        "From 0 to 5, how much of what one sentence says does the other say too?", "source",
    ),
    TinyTask(
        "contradiction", "classification", PAIR, ("no_contradiction", "contradiction"), "accuracy", 200, 400,
        "Do the two sentences contradict each other? Other names, nouns and relations than in nli.", "target",
    ),
    TinyTask(
        "review", "classification", ONE_TEXT, ("negative", "positive"), "macro_f1", 160, 400,
        "Is the review of a phone, kettle or the like good or bad on the whole? Words not in sentiment.",
        "target",
    ),
)  # fmt: skip

#: All tiny tasks by name.
TASKS: dict[str, TinyTask] = {task.name: task for task in _TASKS}

SPLITS = ("train", "validation")

# Labels of three-way inference as answers of `world.judge`, in the order of the nli task's labels.
_ANSWERS = (True, None, False)
_CONTRADICTION = 2


def _variant(rng: random.Random, cast: world.Cast, facts: Sequence[world.Fact]) -> world.Fact | None:
    """A positive fact close to a given one: the same, swapped, one argument changed, or ruled out."""
    fact = rng.choice(list(facts))
    fact = world.Fact(fact.relation, fact.args)
    change = rng.choice(("same", "swapped", "argument", "excluded"))
    if change == "same":
        return fact
    if change == "swapped":
        return world.swapped(fact) if world.RELATIONS[fact.relation].directed else None
    if change == "argument":
        return world.with_other_argument(rng, cast, fact)
    return world.ruled_out(rng, cast, fact)


def _inference(rng: random.Random, label: int, relations: Sequence[str], part: str) -> tuple[str, str] | None:
    """A premise of one or two facts and a hypothesis that stands to it as wanted; None if the draw fails."""
    cast = world.sample_cast(rng, part, others=3)
    drawn = [rng.choice(relations) for _ in range(2 if rng.random() < 0.4 else 1)]
    facts = world.sample_facts(rng, cast, drawn, negative=0.2)
    # Drawn before the label is looked at, so that "not" is equally frequent with every label.
    deny = rng.random() < 0.3
    premise = " and ".join(world.say(fact, rng) for fact in facts)
    for _ in range(60):
        query = _variant(rng, cast, facts)
        if query is None:
            continue
        query = query.negated() if deny else query
        hypothesis = world.say(query, rng)
        if world.judge(facts, query) is _ANSWERS[label] and hypothesis not in premise:
            return world.sentence(premise), world.sentence(hypothesis)
    return None


def _nli(rng: random.Random, label: int) -> tuple[str, ...] | None:
    """Inference over the first slice of words and relations."""
    return _inference(rng, label, world.FIRST_RELATIONS, "first")


def _contradiction(rng: random.Random, label: int) -> tuple[str, ...] | None:
    """Inference over the second slice, with entailment and neutral taken together."""
    answer = _CONTRADICTION if label == 1 else rng.randrange(2)
    return _inference(rng, answer, world.SECOND_RELATIONS, "second")


def _altered(rng: random.Random, cast: world.Cast, fact: world.Fact) -> world.Fact:
    """A fact that looks much like the given one and means something else."""
    roll = rng.random()
    relation = world.RELATIONS[fact.relation]
    if roll < 0.55 and relation.directed:
        return world.swapped(fact)
    if roll < 0.7:
        return fact.negated()
    if roll < 0.8 and relation.opposite:
        return world.Fact(relation.opposite, fact.args, fact.positive)
    return world.with_other_argument(rng, cast, fact)


def _paraphrase(rng: random.Random, label: int) -> tuple[str, ...] | None:
    """Two sentences of one or two facts that mean the same, or differ in one fact."""
    cast = world.sample_cast(rng, others=3)
    drawn = [rng.choice(world.FIRST_RELATIONS) for _ in range(2 if rng.random() < 0.4 else 1)]
    facts = world.sample_facts(rng, cast, drawn, negative=0.25)
    others = list(facts)
    if label == 0:
        place = rng.randrange(len(facts))
        others[place] = _altered(rng, cast, facts[place])
    if rng.random() < 0.5:
        others.reverse()
    first, second = (" and ".join(world.say(fact, rng) for fact in said) for said in (facts, others))
    return None if first == second else (world.sentence(first), world.sentence(second))


def _sentiment(rng: random.Random, label: int) -> tuple[str, ...] | None:
    """An opinion of an outing."""
    return (world.sentence(world.opinion(rng, world.OUTINGS, label == 1)),)


def _review(rng: random.Random, label: int) -> tuple[str, ...] | None:
    """An opinion of a product."""
    return (world.sentence(world.opinion(rng, world.GOODS, label == 1)),)


def _quantity(rng: random.Random, label: int) -> tuple[str, ...] | None:
    """A heap and a claim about it."""
    heap = world.sample_heap(rng, rng.choice(world.THINGS + world.ANIMALS), rng.choice(world.PLACES))
    claim = world.sample_claim(rng, heap, label == 1)
    return world.sentence(world.say_heap(heap)), world.sentence(world.say_claim(claim, heap, rng))


_SINGULAR_VERBS = {many: one for one, many in world.PLURAL_VERBS.items()}
_NEEDED_WORDS = ("is", "are", "than", "by", "of", "a", "as", "to", "from")


def _wrong_agreement(words: list[str]) -> list[str] | None:
    """The words with the first verb in the wrong number."""
    for place, word in enumerate(words):
        other = world.PLURAL_VERBS.get(word) or _SINGULAR_VERBS.get(word)
        if other:
            return [*words[:place], other, *words[place + 1 :]]
    return None


def _wrong_order(rng: random.Random, words: list[str]) -> list[str]:
    """Two neighbours exchanged; not the first two (that can make a question) unless "the" leads."""
    place = rng.randrange(0 if words[0] == "the" else 1, len(words) - 1)
    return [*words[:place], words[place + 1], words[place], *words[place + 2 :]]


def _word_missing(rng: random.Random, words: list[str]) -> list[str] | None:
    """The words without one that no sentence of this world can do without."""
    places = [place for place, word in enumerate(words) if word in _NEEDED_WORDS]
    if not places:
        return None
    place = rng.choice(places)
    return words[:place] + words[place + 1 :]


def _grammar(rng: random.Random, label: int) -> tuple[str, ...] | None:
    """The statement of a fact, well formed or with one error."""
    cast = world.sample_cast(rng, plurals=0.5)
    fact = world.sample_fact(rng, cast, rng.choice(tuple(world.RELATIONS)))
    words: list[str] | None = world.say(fact if rng.random() < 0.7 else fact.negated(), rng).split()
    if label == 0 and words:
        roll = rng.random()
        if roll < 0.5:
            words = _wrong_agreement(words)
        else:
            words = _wrong_order(rng, words) if roll < 0.75 else _word_missing(rng, words)
    return (world.sentence(" ".join(words)),) if words else None


#: The five values of the similarity task: each of two facts is shared (1), nearly shared (1/2) or not (0).
SIMILARITIES = (0.0, 1.25, 2.5, 3.75, 5.0)
_SHARES = (((0.0, 0.0),), ((0.5, 0.0),), ((1.0, 0.0), (0.5, 0.5)), ((1.0, 0.5),), ((1.0, 1.0),))


def _similarity(rng: random.Random, level: int) -> tuple[str, ...] | None:
    """Two sentences of two facts each that share as much as `SIMILARITIES` says for this level."""
    cast = world.sample_cast(rng, others=3)
    drawn = rng.sample(tuple(world.RELATIONS), 4)
    facts = world.sample_facts(rng, cast, drawn, negative=0.15)
    if len(facts) < 4:
        return None
    said = []
    for share, fact, unrelated in zip(rng.choice(_SHARES[level]), facts[:2], facts[2:], strict=True):
        said.append(fact if share == 1 else _altered(rng, cast, fact) if share else unrelated)
    rng.shuffle(said)
    first, second = (" and ".join(world.say(fact, rng) for fact in part) for part in (facts[:2], said))
    return world.sentence(first), world.sentence(second)


_MAKERS: dict[str, Maker] = {
    "nli": _nli,
    "paraphrase": _paraphrase,
    "sentiment": _sentiment,
    "quantity": _quantity,
    "grammar": _grammar,
    "similarity": _similarity,
    "contradiction": _contradiction,
    "review": _review,
}


def _drawn(task: TinyTask, split: str, taken: dict[str, None]) -> list[tuple[tuple[str, ...], int]]:
    """Distinct (texts, label index) of a split with even labels; none of the texts is in `taken`."""
    rng = random.Random(f"tiny/{task.name}/{split}")
    size, values = task.size(split), len(task.labels) or len(SIMILARITIES)
    indices = [place % values for place in range(size)]
    rng.shuffle(indices)
    found: dict[tuple[str, ...], int] = {}
    for index in indices:
        while True:
            texts = _MAKERS[task.name](rng, index)
            if texts and texts not in found and not any(text in taken for text in texts):
                found[texts] = index
                break
    return list(found.items())


@functools.cache
def _splits(name: str) -> dict[str, list[tuple[tuple[str, ...], int]]]:
    """Both splits of a task. They are made together because no text may be in both."""
    task = TASKS[name]
    train = _drawn(task, "train", {})
    taken = dict.fromkeys(text for texts, _ in train for text in texts)
    return {"train": train, "validation": _drawn(task, "validation", taken)}


def rows(name: str, split: str) -> list[Row]:
    """The rows of a task's split ("train" or "validation"): its text columns and `label`.

    The label is an index into the task's `labels`, or a number from 0 to 5 for regression. The list and its
    rows are new at each call and may be changed by the caller.
    """
    if name not in TASKS:
        raise KeyError(f"no tiny task {name!r}; there are: {', '.join(TASKS)}")
    if split not in SPLITS:
        raise KeyError(f"no split {split!r} in tiny tasks; there are: {', '.join(SPLITS)}")
    task = TASKS[name]
    result: list[Row] = []
    for texts, index in _splits(name)[split]:
        row: Row = dict(zip(task.inputs, texts, strict=True))
        row["label"] = index if task.labels else SIMILARITIES[index]
        result.append(row)
    return result
