"""The embedded world, its tasks and its model: determinism, sizes, meaning of labels, use of the model."""

from __future__ import annotations

import collections
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from panda_fusion.tiny import tasks, world

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "panda_fusion" / "tiny" / "model"

DIGEST = """
import hashlib, json
from panda_fusion.tiny import tasks, world
made = [tasks.rows(name, split) for name in tasks.TASKS for split in tasks.SPLITS]
text = json.dumps([made, list(world.corpus(5, 300)), list(world.passage_pairs(5, 100))])
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_same_rows_in_another_process_with_another_hash_seed() -> None:
    digests = []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True
        )
        digests.append(done.stdout)
    assert digests[0] == digests[1]
    assert len(digests[0].strip()) == 64


def test_importing_the_world_loads_nothing_heavy() -> None:
    code = "import sys, panda_fusion.tiny.tasks; print('torch' in sys.modules or 'transformers' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", list(tasks.TASKS))
def test_sizes_columns_and_balance(name: str) -> None:
    task = tasks.TASKS[name]
    tasks._splits.cache_clear()
    began = time.perf_counter()
    made = {split: tasks.rows(name, split) for split in tasks.SPLITS}
    assert time.perf_counter() - began < 3
    for split, rows in made.items():
        assert len(rows) == task.size(split)
        assert all(tuple(row) == (*task.inputs, "label") for row in rows)
        counts = collections.Counter(row["label"] for row in rows)
        expected = range(len(task.labels)) if task.labels else tasks.SIMILARITIES
        assert sorted(counts) == sorted(expected)
        assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("name", list(tasks.TASKS))
def test_no_text_is_in_both_splits(name: str) -> None:
    task = tasks.TASKS[name]
    texts = [{row[column] for row in tasks.rows(name, split) for column in task.inputs} for split in tasks.SPLITS]
    assert not texts[0] & texts[1]


def test_rows_are_the_callers_own() -> None:
    tasks.rows("nli", "train")[0]["label"] = 99
    assert tasks.rows("nli", "train")[0]["label"] != 99


def test_unknown_names_are_told() -> None:
    with pytest.raises(KeyError, match="nli"):
        tasks.rows("nil", "train")
    with pytest.raises(KeyError, match="validation"):
        tasks.rows("nli", "test")


def test_source_and_target_inference_share_no_names_and_relations() -> None:
    assert not set(world.FIRST_RELATIONS) & set(world.SECOND_RELATIONS)

    def names(task: str) -> set[str]:
        return {
            word
            for row in tasks.rows(task, "train")
            for column in ("premise", "hypothesis")
            for word in re.findall(r"\w+", str(row[column]))
            if word in world.PEOPLE
        }

    assert names("nli")
    assert not names("nli") & names("contradiction")


# A second reading of the language, from text alone: each clause becomes (predicate, arguments, positive) by
# patterns written here by hand. It shares no code with the world, so both would have to be wrong alike.
READINGS = (
    (r"(.+) is taller than (.+)", "taller", (0, 1)),
    (r"(.+) is shorter than (.+)", "taller", (1, 0)),
    (r"(.+) owns (.+)", "own", (0, 1)),
    (r"(.+) has (.+)", "own", (0, 1)),
    (r"(.+) belongs to (.+)", "own", (1, 0)),
    (r"(.+) is owned by (.+)", "own", (1, 0)),
    (r"(.+) chases (.+)", "chase", (0, 1)),
    (r"(.+) runs after (.+)", "chase", (0, 1)),
    (r"(.+) is chased by (.+)", "chase", (1, 0)),
    (r"(.+) is (?:near|close to|next to) (.+)", "near", (0, 1)),
    (r"(.+) likes (.+)", "like", (0, 1)),
    (r"(.+) is fond of (.+)", "like", (0, 1)),
    (r"(.+) is liked by (.+)", "like", (1, 0)),
    (r"(.+) pleases (.+)", "like", (1, 0)),
    (r"(.+) (?:hates|dislikes) (.+)", "hate", (0, 1)),
    (r"(.+) is hated by (.+)", "hate", (1, 0)),
    (r"(.+) annoys (.+)", "hate", (1, 0)),
    (r"(.+) gave (.+) to (.+)", "give", (0, 1, 2)),
    (r"(.+) got (.+) from (.+)", "give", (2, 1, 0)),
    (r"(.+) went from (.+) to (.+)", "give", (1, 0, 2)),
    (r"the colour of (.+) is (.+)", "colour", (0, 1)),
    (r"the size of (.+) is (.+)", "size", (0, 1)),
    (r"(.+) is (red|blue|green|black|white|yellow)", "colour", (0, 1)),
    (r"(.+) is (large|big|huge|small|little|tiny)", "size", (0, 1)),
)
SINGULAR = {
    "are": "is", "own": "owns", "have": "has", "belong": "belongs", "chase": "chases", "run": "runs",
    "like": "likes", "please": "pleases", "hate": "hates", "dislike": "dislikes", "annoy": "annoys",
    "get": "got", "give": "gave", "go": "went",
}  # fmt: skip
SAME_SIZE = {"big": "large", "huge": "large", "little": "small", "tiny": "small"}

Reading = tuple[str, tuple[str, ...], bool]


def read(clause: str) -> Reading:
    """What a clause of the first slice says, by the patterns above."""
    positive = True
    words = clause.split()
    if "not" in words:
        positive = False
        words.remove("not")
        for auxiliary in ("does", "do", "did"):
            if auxiliary in words:
                words.remove(auxiliary)
    # Names have capitals; the "like" of "the dogs like" is the only kind of word that is looked up here.
    plain = " ".join(SINGULAR.get(word, word) for word in words)
    for pattern, predicate, order in READINGS:
        found = re.fullmatch(pattern, plain)
        if found:
            args = tuple(SAME_SIZE.get(found.groups()[place], found.groups()[place]) for place in order)
            return predicate, tuple(sorted(args)) if predicate == "near" else args, positive
    raise AssertionError(f"cannot read {clause!r}")


def clauses(text: str) -> list[Reading]:
    """The readings of a sentence of one or more clauses joined by "and"."""
    text = text.rstrip(".")
    return [read(re.sub(r"^The ", "the ", clause)) for clause in text.split(" and ")]


def cannot_both_hold(first: tuple[str, tuple[str, ...]], second: tuple[str, tuple[str, ...]]) -> bool:
    """The rules of the first slice, written once more."""
    (name, args), (other, others) = first, second
    if {name, other} == {"like", "hate"}:
        return args == others
    if name != other or args == others:
        return False
    if name == "taller":
        return args == others[::-1]
    if name in ("own", "give"):
        return args[1] == others[1]
    return name in ("colour", "size") and args[0] == others[0]


def evaluate(premise: str, hypothesis: str) -> str:
    """The label of an inference pair by the independent reading."""
    (asked,) = clauses(hypothesis)
    for name, args, positive in clauses(premise):
        if (name, args) == asked[:2]:
            return "entailment" if positive == asked[2] else "contradiction"
        if positive and cannot_both_hold((name, args), asked[:2]):
            return "contradiction" if asked[2] else "entailment"
    return "neutral"


@pytest.mark.parametrize(
    ("premise", "hypothesis", "label"),
    [
        ("Anna is taller than Ben.", "Ben is shorter than Anna.", "entailment"),
        ("Anna is taller than Ben.", "Ben is taller than Anna.", "contradiction"),
        ("Anna is taller than Ben.", "Ben is not taller than Anna.", "entailment"),
        ("The dogs chase the cat.", "The cat is chased by the dogs.", "entailment"),
        ("The dogs chase the cat.", "The dogs are chased by the cat.", "neutral"),
        ("Ben is not near the cow.", "The cow is close to Ben.", "contradiction"),
        ("Anna likes Ben and the lamp is red.", "The lamp is blue.", "contradiction"),
        ("Anna likes Ben and the lamp is red.", "Ben likes Anna.", "neutral"),
        ("Anna gave the cups to Ben.", "Ben did not get the cups from Anna.", "contradiction"),
    ],
)
def test_the_independent_reading_itself(premise: str, hypothesis: str, label: str) -> None:
    assert evaluate(premise, hypothesis) == label


@pytest.mark.parametrize("split", tasks.SPLITS)
def test_every_nli_label_agrees_with_the_independent_reading(split: str) -> None:
    labels = tasks.TASKS["nli"].labels
    for row in tasks.rows("nli", split):
        assert evaluate(str(row["premise"]), str(row["hypothesis"])) == labels[int(row["label"])], row


def test_every_paraphrase_label_agrees_with_the_independent_reading() -> None:
    for row in tasks.rows("paraphrase", "train"):
        same = sorted(clauses(str(row["sentence1"]))) == sorted(clauses(str(row["sentence2"])))
        assert same == bool(row["label"]), row


@pytest.mark.parametrize(
    ("known", "query", "answer"),
    [
        (world.Fact("older", ("Anna", "Ben")), world.Fact("older", ("Ben", "Anna")), False),
        (world.Fact("older", ("Anna", "Ben"), False), world.Fact("older", ("Ben", "Anna")), None),
        (world.Fact("friend", ("Anna", "Ben")), world.Fact("friend", ("Ben", "Anna")), True),
        (world.Fact("inside", ("lamp", "barn")), world.Fact("inside", ("lamp", "park"), False), True),
        (world.Fact("inside", ("lamp", "barn")), world.Fact("inside", ("cup", "barn")), None),
        (world.Fact("job", ("Anna", "nurse")), world.Fact("job", ("Anna", "baker")), False),
        (world.Fact("help", ("Anna", "Ben")), world.Fact("help", ("Ben", "Anna")), None),
    ],
)
def test_what_follows_from_a_fact(known: world.Fact, query: world.Fact, answer: bool | None) -> None:
    assert world.judge([known], query) is answer


def test_every_wording_of_a_denial_differs_from_the_assertion() -> None:
    for relation in world.RELATIONS.values():
        for form in relation.forms:
            assert " not " in f" {form.no} "
            assert " not " not in f" {form.yes} "


COUNTED = re.compile(r"(one|two|three|four|five) (\w+) \w+")


def test_quantity_statements_about_numbers_and_all() -> None:
    numbers = {word: place for place, word in enumerate(world.NUMBERS)}
    seen = collections.Counter[str]()
    for row in tasks.rows("quantity", "train"):
        heap = {colour: numbers[number] for number, colour in COUNTED.findall(str(row["scene"]))}
        statement, label = str(row["statement"]), bool(row["label"])
        if found := re.match(r"Most of the \w+ are (\w+)\.", statement):
            assert label == (heap.get(found[1], 0) * 2 > sum(heap.values())), row
            seen["most"] += 1
        elif found := re.match(r"(?:All of the|Every) \w+ (?:are|is) (\w+)\.", statement):
            assert label == (heap.get(found[1], 0) == sum(heap.values())), row
            seen["all"] += 1
        elif found := re.match(r"There are more (\w+) \w+ than (\w+) ", statement):
            assert label == (heap.get(found[1], 0) > heap.get(found[2], 0)), row
            seen["more"] += 1
        elif found := re.match(r"The \w+ has (\w+) ", statement):
            assert label == (numbers[found[1]] == sum(heap.values())), row
            seen["total"] += 1
    assert min(seen[kind] for kind in ("most", "all", "more", "total")) > 20


def polarity(clause: str) -> bool:
    """Whether one clause of an opinion is favourable, by its evaluative word and its negator."""
    words = clause.split()
    good = set(world.OUTINGS.good + world.OUTINGS.liked + world.GOODS.good + world.GOODS.liked)
    negated = any(word in words for word in ("not", "never", "hardly"))
    return bool(good & set(words)) != negated


@pytest.mark.parametrize("name", ["sentiment", "review"])
def test_opinions_have_the_polarity_of_their_main_clause(name: str) -> None:
    for row in tasks.rows(name, "train"):
        text = str(row["text"]).rstrip(".").lower()
        if text.startswith("although "):
            main = text.split(", ")[1]
        elif ", but " in text:
            main = text.split(", but ")[1]
        else:
            main = re.split(r", even though | and ", text)[0]
        assert polarity(main) == bool(row["label"]), row


def test_unacceptable_sentences_are_not_sentences_of_the_world() -> None:
    rows = tasks.rows("grammar", "train") + tasks.rows("grammar", "validation")
    good = {str(row["text"]) for row in rows if row["label"] == 1}
    assert not good & {str(row["text"]) for row in rows if row["label"] == 0}


def test_model_folder_is_small_and_complete() -> None:
    files = {path.name: path.stat().st_size for path in MODEL.iterdir()}
    needed = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training.json"}
    assert needed <= set(files)
    assert sum(files.values()) < 6_000_000
    record = json.loads((MODEL / "training.json").read_text(encoding="utf-8"))
    assert record["held_out"]["masked_accuracy"] > 0.5


def test_model_loads_as_encoder_and_as_classifier() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    inputs = tokenizer("Anna is tall.", "Ben's odd (x-ray) word?", return_tensors="pt")
    assert tokenizer.unk_token_id not in inputs["input_ids"].flatten().tolist()
    assert inputs["token_type_ids"].max() == 1
    encoder = transformers.AutoModel.from_pretrained(MODEL)
    assert torch.isfinite(encoder.eval()(**inputs).pooler_output.float()).all()
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=3)
    assert classifier.eval()(**inputs).logits.shape == (1, 3)


@pytest.mark.parametrize("name", list(tasks.TASKS))
def test_rows_are_short(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    columns = [[str(row[column]) for row in tasks.rows(name, "train")] for column in tasks.TASKS[name].inputs]
    assert max(len(ids) for ids in tokenizer(*columns)["input_ids"]) <= 45


def test_hidden_words_of_new_text_are_found_far_more_often_than_by_frequency() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModelForMaskedLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    pairs = [pair for pair in world.passage_pairs(987, 800) if pair[2]][:300]
    batch = tokenizer([a for a, _, _ in pairs], [b for _, b, _ in pairs], padding=True, return_tensors="pt")
    ids = batch["input_ids"].clone()
    rng = random.Random(0)
    for row, values in enumerate(ids.tolist()):
        words = [place for place, piece in enumerate(values) if piece not in tokenizer.all_special_ids]
        for place in rng.sample(words, max(1, len(words) // 7)):
            batch["input_ids"][row, place] = tokenizer.mask_token_id
    hidden = batch["input_ids"] != ids
    with torch.no_grad():
        guesses = model(**batch).logits.argmax(-1)
    accuracy = (guesses == ids)[hidden].float().mean().item()
    frequency = collections.Counter(ids[~hidden & (ids >= len(tokenizer.all_special_ids))].tolist())
    baseline = (ids[hidden] == frequency.most_common(1)[0][0]).float().mean().item()
    assert baseline < 0.3
    assert accuracy > baseline + 0.35
