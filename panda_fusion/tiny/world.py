"""A small English-like world: who exists in it, what can be said of them, and what follows from what.

The world has three parts, each with its own meaning and its own way of being put into words:

* **facts** (`Fact`, `Relation`, `say`, `judge`): people, animals, things and places; relations between them
  with synonyms, inverses ("is taller than" / "is shorter than"), passives and negation; properties such as
  colour, which are relations to a value;
* **heaps** (`Heap`, `Claim`, `holds`): numbers of things of one or two colours in a place, and statements
  with numbers and quantifiers about them;
* **opinions** (`opinion`): evaluative words with intensifiers, negators and contrast clauses.

`corpus` and `passage_pairs` turn them into text for pretraining: short passages whose sentences agree with
each other, so that a hidden word can be worked out from what the passage says elsewhere.

Only the standard library is used. Every choice comes from a `random.Random` that the caller seeds, and
nothing iterates over a set, so the same seed gives the same text in every process.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

# ----------------------------------------------------------------------------------------------------
# Words. The two halves of a list ("slices") let a target task use other words than its source tasks.

PEOPLE = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jack", "Kate", "Leo",
    "Maria", "Noah", "Olga", "Paul", "Quinn", "Rosa", "Sam", "Tina", "Umar", "Vera", "Will", "Xenia",
    "Yusuf", "Zoe", "Alan", "Bella", "Carl", "Dora", "Eric", "Fiona", "George", "Helen", "Ivan",
    "Julia", "Kurt", "Lena", "Mark", "Nina",
)  # fmt: skip
ANIMALS = (
    "dog", "cat", "horse", "cow", "duck", "goat", "fox", "bear", "rabbit", "hen", "lion", "pig",
)  # fmt: skip
THINGS = (
    "lamp", "book", "cup", "ball", "chair", "table", "box", "clock", "bike", "boat", "hat", "coat",
    "drum", "key", "pen", "plate", "ring", "rope", "spoon", "mirror", "basket", "bottle", "candle",
    "kite",
)  # fmt: skip
PLACES = (
    "kitchen", "garden", "park", "barn", "school", "office", "shop", "cellar", "attic", "library",
)  # fmt: skip

VALUES: dict[str, tuple[str, ...]] = {
    "colour": ("red", "blue", "green", "black", "white", "yellow"),
    "size": ("large", "small"),
    "mood": ("happy", "sad", "angry", "calm"),
    "job": ("doctor", "baker", "farmer", "painter", "lawyer", "nurse"),
    "warmth": ("hot", "cold"),
    "stuff": ("wood", "metal", "glass", "paper"),
}
SYNONYMS: dict[str, tuple[str, ...]] = {
    "large": ("large", "big", "huge"),
    "small": ("small", "little", "tiny"),
    "happy": ("happy", "glad"),
    "sad": ("sad", "unhappy"),
    "angry": ("angry", "cross"),
    "calm": ("calm", "quiet"),
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
IRREGULAR_PLURALS = {"box": "boxes", "fox": "foxes"}


def plural(noun: str) -> str:
    """The plural of a noun of this world."""
    return IRREGULAR_PLURALS.get(noun, noun + "s")


PLURAL_NOUNS = tuple(plural(noun) for noun in ANIMALS + THINGS)

#: The plural form of every verb that can follow the subject of a fact.
PLURAL_VERBS = {
    "is": "are", "has": "have", "does": "do", "owns": "own", "belongs": "belong", "chases": "chase",
    "runs": "run", "likes": "like", "hates": "hate", "dislikes": "dislike", "helps": "help",
    "pleases": "please", "annoys": "annoy", "lies": "lie", "teaches": "teach", "learns": "learn",
    "gets": "get", "knows": "know", "contains": "contain", "feels": "feel", "works": "work",
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------
# Facts.


@dataclass(frozen=True)
class Form:
    """One way of wording a relation: patterns over ``{0}``, ``{1}``, ... for the fact and for its denial."""

    yes: str
    no: str


@dataclass(frozen=True)
class Relation:
    """A relation between entities (or between an entity and a value), with its meaning and its wordings.

    `kinds` names the kind of each argument. `symmetric`: r(a, b) means r(b, a). `asymmetric`: r(a, b) rules
    out r(b, a). `key`: two facts that agree at these argument positions and differ elsewhere rule each
    other out (a thing has one colour). `opposite`: a relation that rules this one out for the same
    arguments.
    """

    name: str
    kinds: tuple[str, ...]
    forms: tuple[Form, ...]
    symmetric: bool = False
    asymmetric: bool = False
    key: tuple[int, ...] = ()
    opposite: str = ""

    @property
    def directed(self) -> bool:
        """Whether swapping the first and the last argument makes sense and changes the meaning."""
        return not self.symmetric and len(self.kinds) > 1 and self.kinds[0] == self.kinds[-1]


@dataclass(frozen=True)
class Fact:
    """That a relation holds (or, if not `positive`, does not hold) between the arguments."""

    relation: str
    args: tuple[str, ...]
    positive: bool = True

    def negated(self) -> Fact:
        """The fact that says the contrary."""
        return replace(self, positive=not self.positive)


def _forms(*patterns: str) -> tuple[Form, ...]:
    """Forms from patterns such as ``{0} [owns|does not own] {1}``, with [yes wording|no wording]."""
    forms = []
    for pattern in patterns:
        before, rest = pattern.split("[")
        choice, after = rest.split("]")
        yes, no = choice.split("|")
        forms.append(Form(before + yes + after, before + no + after))
    return tuple(forms)


def _is(*phrases: str) -> tuple[str, ...]:
    """Patterns for "{0} is PHRASE {1}"."""
    return tuple("{0} [is|is not] " + phrase + " {1}" for phrase in phrases)


def _is_back(*phrases: str) -> tuple[str, ...]:
    """Patterns for "{1} is PHRASE {0}": inverse words such as "shorter than" for "taller than"."""
    return tuple("{1} [is|is not] " + phrase + " {0}" for phrase in phrases)


_RELATIONS = (
    Relation(
        "own",
        ("person", "thing"),
        _forms(
            "{0} [owns|does not own] {1}",
            "{0} [has|does not have] {1}",
            "{1} [belongs|does not belong] to {0}",
            *_is_back("owned by"),
        ),
        key=(1,),
    ),
    Relation(
        "taller",
        ("person", "person"),
        _forms(*_is("taller than"), *_is_back("shorter than")),
        asymmetric=True,
    ),
    Relation(
        "chase",
        ("animal", "animal"),
        _forms("{0} [chases|does not chase] {1}", "{0} [runs|does not run] after {1}", *_is_back("chased by")),
    ),
    Relation("near", ("person", "animal"), _forms(*_is("near", "close to", "next to")), symmetric=True),
    Relation(
        "like",
        ("person", "person"),
        _forms(
            "{0} [likes|does not like] {1}",
            "{0} [is|is not] fond of {1}",
            *_is_back("liked by"),
            "{1} [pleases|does not please] {0}",
        ),
        opposite="hate",
    ),
    Relation(
        "hate",
        ("person", "person"),
        _forms(
            "{0} [hates|does not hate] {1}",
            "{0} [dislikes|does not dislike] {1}",
            *_is_back("hated by"),
            "{1} [annoys|does not annoy] {0}",
        ),
        opposite="like",
    ),
    Relation(
        "give",
        ("person", "thing", "person"),
        _forms(
            "{0} [gave|did not give] {1} to {2}",
            "{2} [got|did not get] {1} from {0}",
            "{1} [went|did not go] from {0} to {2}",
        ),
        key=(1,),
    ),
    Relation("colour", ("thing", "colour"), _forms(*_is(""), "the colour of {0} [is|is not] {1}"), key=(0,)),
    Relation("size", ("thing", "size"), _forms(*_is(""), "the size of {0} [is|is not] {1}"), key=(0,)),
    Relation("older", ("person", "person"), _forms(*_is("older than"), *_is_back("younger than")), asymmetric=True),
    Relation(
        "teach",
        ("person", "person"),
        _forms(
            "{0} [teaches|does not teach] {1}",
            "{1} [learns|does not learn] from {0}",
            *_is("a teacher of"),
            *_is_back("taught by", "a pupil of"),
        ),
        asymmetric=True,
    ),
    Relation("parent", ("person", "person"), _forms(*_is("a parent of"), *_is_back("a child of")), asymmetric=True),
    Relation(
        "help",
        ("person", "person"),
        _forms("{0} [helps|does not help] {1}", "{1} [gets|does not get] help from {0}", *_is_back("helped by")),
    ),
    Relation(
        "friend",
        ("person", "person"),
        _forms(*_is("a friend of"), "{0} [knows|does not know] {1}"),
        symmetric=True,
    ),
    Relation(
        "above",
        ("thing", "thing"),
        _forms(*_is("above", "over"), *_is_back("below", "under")),
        asymmetric=True,
    ),
    Relation(
        "heavier",
        ("thing", "thing"),
        _forms(*_is("heavier than"), *_is_back("lighter than")),
        asymmetric=True,
    ),
    Relation(
        "inside",
        ("thing", "place"),
        _forms(*_is("in"), "{1} [contains|does not contain] {0}", "{0} [lies|does not lie] in {1}"),
        key=(0,),
    ),
    Relation("mood", ("person", "mood"), _forms(*_is(""), "{0} [feels|does not feel] {1}"), key=(0,)),
    Relation("job", ("person", "job"), _forms(*_is("a"), "{0} [works|does not work] as a {1}"), key=(0,)),
    Relation("warmth", ("thing", "warmth"), _forms(*_is("")), key=(0,)),
    Relation("stuff", ("thing", "stuff"), _forms(*_is("made of")), key=(0,)),
)

RELATIONS: dict[str, Relation] = {relation.name: relation for relation in _RELATIONS}

#: Two slices of the relations with nothing in common, for source tasks and for a related target task.
FIRST_RELATIONS = ("own", "taller", "chase", "near", "like", "hate", "give", "colour", "size")
SECOND_RELATIONS = (
    "older", "teach", "parent", "help", "friend", "above", "heavier", "inside", "mood", "job", "warmth",
    "stuff",
)  # fmt: skip


@dataclass(frozen=True)
class Cast:
    """The entities that a scene is about, by kind."""

    people: tuple[str, ...]
    animals: tuple[str, ...]
    things: tuple[str, ...]
    places: tuple[str, ...]

    def of(self, kind: str) -> tuple[str, ...]:
        """The entities (or the values) that can fill an argument of this kind."""
        own = {"person": self.people, "animal": self.animals, "thing": self.things, "place": self.places}
        return own.get(kind) or VALUES[kind]


def _half(words: Sequence[str], part: str) -> tuple[str, ...]:
    """The words of one slice ("first": even places, "second": odd places) or "all"."""
    if part == "all":
        return tuple(words)
    return tuple(words[0 if part == "first" else 1 :: 2])


def sample_cast(rng: random.Random, part: str = "all", people: int = 3, others: int = 2, plurals: float = 0.25) -> Cast:
    """A random cast from one slice of the names and nouns; a share of the animals and things is plural."""

    def nouns(words: Sequence[str], count: int) -> tuple[str, ...]:
        chosen = rng.sample(_half(words, part), count)
        return tuple(plural(noun) if rng.random() < plurals else noun for noun in chosen)

    return Cast(
        people=tuple(rng.sample(_half(PEOPLE, part), people)),
        animals=nouns(ANIMALS, others),
        things=nouns(THINGS, others),
        places=tuple(rng.sample(_half(PLACES, part), others)),
    )


def canonical(fact: Fact) -> Fact:
    """The fact with the arguments of a symmetric relation in a fixed order."""
    if RELATIONS[fact.relation].symmetric:
        return replace(fact, args=tuple(sorted(fact.args)))
    return fact


def excludes(first: Fact, second: Fact) -> bool:
    """Whether two positive facts cannot both hold."""
    relation = RELATIONS[first.relation]
    if relation.opposite and relation.opposite == second.relation:
        return first.args == second.args
    if first.relation != second.relation or first.args == second.args:
        return False
    if relation.asymmetric and first.args == second.args[::-1]:
        return True
    return bool(relation.key) and all(first.args[i] == second.args[i] for i in relation.key)


def judge(known: Sequence[Fact], query: Fact) -> bool | None:
    """What the known facts say of the query: True (it follows), False (ruled out), None (open)."""
    if not query.positive:
        answer = judge(known, query.negated())
        return None if answer is None else not answer
    asked = canonical(query)
    for fact in known:
        stated = canonical(fact)
        if stated.relation == asked.relation and stated.args == asked.args:
            return stated.positive
        if stated.positive and excludes(stated, asked):
            return False
    return None


def noun_phrase(entity: str, rng: random.Random) -> str:
    """How an entity or value is named in a sentence; a value may be named by a synonym."""
    if entity in PEOPLE:
        return entity
    if entity in SYNONYMS:
        return rng.choice(SYNONYMS[entity])
    if any(entity in values for values in VALUES.values()):
        return entity
    return "the " + entity


def say(fact: Fact, rng: random.Random, form: Form | None = None) -> str:
    """A clause that states the fact, without capital or full stop, in one wording or a random one."""
    relation = RELATIONS[fact.relation]
    form = form or rng.choice(relation.forms)
    args = fact.args
    if relation.symmetric and rng.random() < 0.5:
        args = args[::-1]
    words = (form.yes if fact.positive else form.no).split()
    if words[0].startswith("{") and args[int(words[0][1])] in PLURAL_NOUNS:
        words[1] = PLURAL_VERBS.get(words[1], words[1])
    return " ".join(words).format(*(noun_phrase(arg, rng) for arg in args))


def sentence(clause: str) -> str:
    """A clause as a sentence: capital letter and full stop."""
    return clause[0].upper() + clause[1:] + "."


def sample_fact(rng: random.Random, cast: Cast, relation: str) -> Fact:
    """A random positive fact of this relation about the cast."""
    kinds = RELATIONS[relation].kinds
    while True:
        args = tuple(rng.choice(cast.of(kind)) for kind in kinds)
        if len(dict.fromkeys(args)) == len(args):
            return Fact(relation, args)


def sample_facts(rng: random.Random, cast: Cast, relations: Sequence[str], negative: float = 0.0) -> list[Fact]:
    """One fact for each relation named, all consistent and none following from another.

    `negative` is the chance of a fact to be a denial.
    """
    facts: list[Fact] = []
    for relation in relations:
        for _ in range(20):
            fact = sample_fact(rng, cast, relation)
            if rng.random() < negative:
                fact = fact.negated()
            # judge() both ways: an old denial may also follow from the new fact.
            if judge(facts, fact) is None and all(judge([fact], old) is None for old in facts):
                facts.append(fact)
                break
    return facts


def swapped(fact: Fact) -> Fact:
    """The fact with its first and last argument exchanged (for directed relations)."""
    return replace(fact, args=(fact.args[-1], *fact.args[1:-1], fact.args[0]))


def with_other_argument(rng: random.Random, cast: Cast, fact: Fact) -> Fact:
    """The fact with one argument exchanged for another of its kind; the cast must have one."""
    choices = [
        (place, entity)
        for place, kind in enumerate(RELATIONS[fact.relation].kinds)
        for entity in cast.of(kind)
        if entity not in fact.args
    ]
    # The place first, so that a kind with many values is not changed more often than one with few.
    place = rng.choice(sorted(dict.fromkeys(place for place, _ in choices)))
    entity = rng.choice([entity for at, entity in choices if at == place])
    return replace(fact, args=(*fact.args[:place], entity, *fact.args[place + 1 :]))


def ruled_out(rng: random.Random, cast: Cast, fact: Fact) -> Fact | None:
    """A positive fact that the given positive fact excludes, or None if its relation excludes nothing."""
    relation = RELATIONS[fact.relation]
    if relation.opposite:
        return Fact(relation.opposite, fact.args)
    if relation.asymmetric:
        return swapped(fact)
    if relation.key:
        for _ in range(20):
            other = with_other_argument(rng, cast, fact)
            if excludes(fact, other):
                return other
    return None


# ----------------------------------------------------------------------------------------------------
# Heaps: numbers and quantifiers.


@dataclass(frozen=True)
class Heap:
    """So many things of one noun in a place, as (colour, count) groups."""

    noun: str
    place: str
    groups: tuple[tuple[str, int], ...]

    def count(self, colour: str) -> int:
        """How many are of this colour."""
        return sum(number for name, number in self.groups if name == colour)

    @property
    def total(self) -> int:
        """How many there are of all colours."""
        return sum(number for _, number in self.groups)


@dataclass(frozen=True)
class Claim:
    """A statement about a heap; its kind, one of `CLAIM_KINDS`, says which other fields count."""

    kind: str
    colour: str
    other: str
    number: int


CLAIM_KINDS = ("total", "count", "all", "some", "none", "most", "more", "fewer")


def sample_heap(rng: random.Random, noun: str, place: str) -> Heap:
    """A heap of one or two colours with one to five things of each, and at least two in all."""
    colours = rng.sample(VALUES["colour"], 1 if rng.random() < 0.2 else 2)
    low = 2 if len(colours) == 1 else 1
    return Heap(noun, place, tuple((colour, rng.randint(low, 5)) for colour in colours))


def holds(heap: Heap, claim: Claim) -> bool:
    """Whether the claim is true of the heap."""
    number = heap.count(claim.colour)
    answers = {
        "total": heap.total == claim.number,
        "count": number == claim.number,
        "all": number == heap.total,
        "some": number > 0,
        "none": number == 0,
        "most": 2 * number > heap.total,
        "more": number > heap.count(claim.other),
        "fewer": number < heap.count(claim.other),
    }
    return answers[claim.kind]


def sample_claim(rng: random.Random, heap: Heap, truth: bool) -> Claim:
    """A claim about the heap that is true or false as asked, and worth checking."""
    kind = rng.choice(CLAIM_KINDS)
    inside = [colour for colour, _ in heap.groups]
    outside = [colour for colour in VALUES["colour"] if colour not in inside]
    while True:
        colours = rng.sample(inside + outside[:1], 2) if rng.random() < 0.4 else rng.sample(inside + outside, 2)
        near = heap.total if kind == "total" else heap.count(colours[0])
        claim = Claim(kind, colours[0], colours[1], min(10, max(1, near + rng.randint(-1, 1))))
        if holds(heap, claim) == truth:
            return claim
        kind = rng.choice(CLAIM_KINDS)


def _number_of(number: int, noun: str) -> str:
    """ "one red ball", "three red balls", from a number and what is counted."""
    head = noun.split()
    head[-1] = head[-1] if number == 1 else plural(head[-1])
    return NUMBERS[number] + " " + " ".join(head)


def say_heap(heap: Heap) -> str:
    """A clause that describes the heap completely."""
    parts = [_number_of(number, f"{colour} {heap.noun}") for colour, number in heap.groups]
    verb = "is" if heap.groups[0][1] == 1 else "are"
    return f"in the {heap.place} there {verb} " + " and ".join(parts)


def say_claim(claim: Claim, heap: Heap, rng: random.Random) -> str:
    """A clause that makes the claim in one of its wordings."""
    many = plural(heap.noun)
    verb = "is" if claim.number == 1 else "are"
    counted = _number_of(claim.number, f"{claim.colour} {heap.noun}")
    wordings = {
        "total": (
            f"there {verb} {_number_of(claim.number, heap.noun)} in the {heap.place}",
            f"the {heap.place} has {_number_of(claim.number, heap.noun)}",
        ),
        "count": (
            f"there {verb} {counted} in the {heap.place}",
            f"{NUMBERS[claim.number]} of the {many} {verb} {claim.colour}",
        ),
        "all": (f"all of the {many} are {claim.colour}", f"every {heap.noun} is {claim.colour}"),
        "some": (
            f"some of the {many} are {claim.colour}",
            f"there are {claim.colour} {many} in the {heap.place}",
        ),
        "none": (f"none of the {many} are {claim.colour}", f"no {heap.noun} is {claim.colour}"),
        "most": (f"most of the {many} are {claim.colour}",),
        "more": (f"there are more {claim.colour} {many} than {claim.other} {many}",),
        "fewer": (f"there are fewer {claim.colour} {many} than {claim.other} {many}",),
    }
    return rng.choice(wordings[claim.kind])


# ----------------------------------------------------------------------------------------------------
# Opinions.


@dataclass(frozen=True)
class Topic:
    """A field that opinions are about: what is judged, its parts, and the words used, by polarity."""

    things: tuple[str, ...]
    parts: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]
    liked: tuple[str, ...]
    disliked: tuple[str, ...]


OUTINGS = Topic(
    things=("film", "meal", "hotel", "concert", "play", "trip", "show", "novel"),
    parts=("start", "ending", "music", "service", "staff", "food", "story", "room", "view", "cast"),
    good=("good", "great", "lovely", "wonderful", "charming", "exciting", "brilliant", "splendid"),
    bad=("bad", "awful", "boring", "terrible", "dull", "poor", "dreadful", "dismal"),
    liked=("liked", "loved", "enjoyed"),
    disliked=("disliked", "hated", "loathed"),
)
GOODS = Topic(
    things=("phone", "camera", "jacket", "kettle", "laptop", "backpack", "radio", "oven"),
    parts=("screen", "battery", "handle", "strap", "button", "price", "design", "lid", "sound", "cable"),
    good=("excellent", "superb", "reliable", "handy", "sturdy", "pleasant", "perfect", "clever"),
    bad=("useless", "flimsy", "horrible", "faulty", "clumsy", "weak", "nasty", "shoddy"),
    liked=("admired", "praised", "adored"),
    disliked=("resented", "cursed", "regretted"),
)
INTENSIFIERS = ("very", "really", "truly", "quite", "rather")
#: Conclusions that differ in one word only, so that this word, hidden, can be told by the opinion alone.
CONCLUSIONS: dict[bool, tuple[str, ...]] = {
    True: (
        "i was pleased with it", "i would recommend it", "it made me smile", "i would choose it again",
        "i gave it five of five stars",
    ),
    False: (
        "i was upset with it", "i would avoid it", "it made me frown", "i would avoid it again",
        "i gave it one of five stars",
    ),
}  # fmt: skip


def opinion_clause(rng: random.Random, topic: Topic, subject: str, good: bool, negated: float = 0.4) -> str:
    """A clause that judges the subject as good or bad: plain, intensified, or by denying the contrary.

    `negated` is the share of clauses that deny the contrary.
    """
    denies = rng.random() < negated
    word_is_good = good != denies
    if rng.random() < 0.33:
        verb = rng.choice(topic.liked if word_is_good else topic.disliked)
        return f"i never {verb} the {subject}" if denies else f"i {verb} the {subject}"
    adjective = rng.choice(topic.good if word_is_good else topic.bad)
    if denies:
        return f"the {subject} {rng.choice(('was not', 'was never', 'was hardly'))} {adjective}"
    if rng.random() < 0.45:
        return f"the {subject} was {rng.choice(INTENSIFIERS)} {adjective}"
    return f"the {subject} was {adjective}"


def opinion(rng: random.Random, topic: Topic, good: bool, subject: str = "") -> str:
    """A text (one clause or two) whose overall judgement is good or bad.

    With "A, but B" the judgement is B's; with "although A, B" and "B, even though A" it is B's as well.
    """
    subject = subject or rng.choice(topic.things)
    part, other = rng.sample(topic.parts, 2)
    targets = (subject, part) if rng.random() < 0.5 else (part, other)
    roll = rng.random()
    if roll < 0.25:
        return opinion_clause(rng, topic, rng.choice(targets), good)
    minor = opinion_clause(rng, topic, targets[0], good if roll < 0.5 else not good)
    major = opinion_clause(rng, topic, targets[1], good)
    if roll < 0.5:
        return f"{minor} and {major}"
    if roll < 0.7:
        return f"{minor}, but {major}"
    if roll < 0.85:
        return f"although {minor}, {major}"
    return f"{major}, even though {minor}"


# ----------------------------------------------------------------------------------------------------
# Passages for pretraining.


def _consequences(rng: random.Random, cast: Cast, facts: Sequence[Fact], count: int) -> list[str]:
    """Clauses that follow from the facts: said again in some wording, or the denial of what they rule out."""
    clauses = []
    for fact in rng.sample(list(facts), min(count, len(facts))):
        excluded = ruled_out(rng, cast, fact) if fact.positive and rng.random() < 0.3 else None
        clauses.append(say(excluded.negated() if excluded else fact, rng))
    return clauses


def _fact_halves(rng: random.Random, same: bool) -> tuple[list[str], list[str]]:
    """Facts about a cast, and what follows from them; or, if not `same`, from other facts on that cast."""
    cast = sample_cast(rng, people=rng.randint(2, 3), others=2)
    number = rng.choice((1, 2, 2, 3, 3))
    # The same relation may come twice: then the passage must be read with care to tell who is who.
    relations = [rng.choice(_RELATIONS).name for _ in range(number)]
    if number > 1 and rng.random() < 0.3:
        relations[-1] = relations[0]
    facts = sample_facts(rng, cast, relations, negative=0.2)
    first = [say(fact, rng) for fact in facts]
    basis = facts
    while not same and any(judge(facts, fact) for fact in basis):
        basis = sample_facts(rng, cast, relations, negative=0.2)
    return first, _consequences(rng, cast, basis, number)


def _heap_halves(rng: random.Random, same: bool) -> tuple[list[str], list[str]]:
    """A description of a heap, and claims that are true of it (or of another heap, if not `same`)."""
    heap = sample_heap(rng, rng.choice(THINGS + ANIMALS), rng.choice(PLACES))
    basis = heap if same else sample_heap(rng, heap.noun, heap.place)
    claims = [sample_claim(rng, basis, True) for _ in range(rng.randint(1, 3))]
    return [say_heap(heap)], list(dict.fromkeys(say_claim(claim, basis, rng) for claim in claims))


def _opinion_halves(rng: random.Random, same: bool) -> tuple[list[str], list[str]]:
    """An opinion, and a conclusion or second opinion that agrees with it (or, if not `same`, does not)."""
    topic = rng.choice((OUTINGS, GOODS))
    good = rng.random() < 0.5
    subject = rng.choice(topic.things)
    # Mostly single clauses without a negator: were the words as often denied as not, nothing would tell good
    # words from bad ones, and what a word means must be learnt before what "not" and "but" do to it.
    if rng.random() < 0.6:
        first = [opinion_clause(rng, topic, subject, good, negated=0.15)]
    else:
        first = [opinion(rng, topic, good, subject)]
    second = [rng.choice(CONCLUSIONS[good == same])]
    if rng.random() < 0.5:
        second.append(opinion_clause(rng, topic, subject, good == same, negated=0.15))
    return first, second


def passage(rng: random.Random, same: bool = True) -> tuple[list[str], list[str]]:
    """The two halves of a passage, as clauses. If not `same`, the second half is from another passage.

    That other passage has the same people, things and topic, so only what is said of them tells the two
    apart.
    """
    roll = rng.random()
    if roll < 0.45:
        return _fact_halves(rng, same)
    if roll < 0.55:
        return _heap_halves(rng, same)
    return _opinion_halves(rng, same)


def _text(clauses: Sequence[str]) -> str:
    """Clauses as sentences in one string."""
    return " ".join(sentence(clause) for clause in clauses)


def corpus(seed: int, sentences: int) -> Iterator[str]:
    """Consistent passages, one string each, until together they have at least so many sentences."""
    rng = random.Random(f"corpus/{seed}")
    written = 0
    while written < sentences:
        first, second = passage(rng)
        written += len(first) + len(second)
        yield _text(first + second)


def passage_pairs(seed: int, count: int) -> Iterator[tuple[str, str, bool]]:
    """(first half, second half, whether both are from the same passage), so many times; half are the same."""
    rng = random.Random(f"pairs/{seed}")
    for _ in range(count):
        same = rng.random() < 0.5
        first, second = passage(rng, same)
        yield _text(first), _text(second), same
