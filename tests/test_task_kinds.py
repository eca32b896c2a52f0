"""Multiple choice, tagging, roles, extractive QA and marked words: rows, tokens, scores, predictions and bad rows."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.text import squad

from panda_fusion.backbone import Backbone
from panda_fusion.encoding import encode_split, samples_of
from panda_fusion.errors import BackboneError, DataError
from panda_fusion.extractive_qa import answer_scores, predicted_answers
from panda_fusion.readout import IGNORED, MASKED
from panda_fusion.rows import Split, check_task_data, load_task_data
from panda_fusion.scoring import score_outputs
from panda_fusion.task import Columns, Task
from panda_fusion.task_source import resolve_task
from panda_fusion.testing.backbones import WORDS
from panda_fusion.token_classification import predicted_tags, span_scores

Tiny = Callable[[str], Backbone]
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def folder(path: Path, toml: str, train: list[dict[str, Any]], validation: list[dict[str, Any]] | None = None) -> Path:
    """A task folder."""
    path.mkdir(parents=True)
    (path / "task.toml").write_text(toml)
    for name, rows in (("train", train), ("validation", validation or train)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path) -> Any:
    return load_task_data(resolve_task(path, None), None)


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(path)
    return str(caught.value)


# ---- multiple choice

COPA = (
    'kind = "multiple-choice"\ninputs = ["premise"]\n'
    '[columns]\nchoices = ["choice1", "choice2"]\nquestion = "question"\n'
)
CHOICES = 'kind = "multiple-choice"\ninputs = ["premise", "choices"]\n'


def test_copa_reads_its_question_as_a_joiner(tmp_path: Path) -> None:
    rows = [
        {"premise": "it was red", "choice1": "a", "choice2": "b", "question": "cause", "label": 1},
        {"premise": "it was red", "choice1": "a", "choice2": "b", "question": "effect", "label": 0},
    ]
    data = load(folder(tmp_path / "t", COPA, rows))
    assert data.train == Split((["it was red because", "it was red so"],), [1, 0], [["a", "b"], ["a", "b"]])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"premise": "p", "choices": ["a"], "label": 0}, "line 2: a row needs two choices or more, found 1"),
        (
            {"premise": "p", "choices": ["a", "b"], "label": 2},
            "label 2 is not the index of one of the row's choices, 0 to 1",
        ),
        ({"premise": "p", "choices": "ab", "label": 0}, "'choices' must be a list of choices, found a string"),
        ({"premise": "p", "choices": ["a", "b"], "label": "c"}, "answer 'c' is none of the row's choices"),
    ],
)
def test_bad_choices(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    good = {"premise": "p", "choices": ["a", "b", "c"], "label": 2}
    assert words in error_of(folder(tmp_path / "t", CHOICES, [good, row]))


def test_rows_may_have_different_numbers_of_choices(tmp_path: Path, tiny: Tiny) -> None:
    rows = [
        {"premise": "the dog", "choices": ["no", "a boat", "she"], "label": 2},
        {"premise": "it was", "choices": ["red", "not"], "label": "not"},
    ]
    data = load(folder(tmp_path / "t", CHOICES, rows))
    backbone = tiny("bert")
    made = encode_split(backbone, data.task, data.train, 16)
    assert (len(made), made.rows) == (2, 3)
    assert made.choices is not None
    assert made.choices.tolist() == [3, 2]
    assert made.lengths.tolist()[-1] == 1
    assert made.labels is not None
    assert made.labels.tolist() == [2, 1]
    expected = backbone.tokenizer("it was", "not")["input_ids"]
    assert made.input_ids[4, : len(expected)].tolist() == expected
    logits = np.array([[0.1, 0.2, 3.0], [2.0, 1.0, MASKED]], dtype=np.float32)
    assert score_outputs(data.task, made, logits) == {"accuracy": 0.5}


# ---- tagging

NER = 'kind = "token-classification"\ninputs = ["tokens"]\nlabel = "tags"\n' + f"labels = {json.dumps(TAGS)}\n"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"tokens": ["a", "b"], "tags": [0]},
            "line 2: there are 1 tags in column 'tags' for 2 words in column 'tokens'",
        ),
        ({"tokens": [], "tags": []}, "'tokens' must be a list of one word or more"),
        ({"tokens": "a b", "tags": [0, 0]}, "'tokens' must be a list of one word or more, found a string"),
        ({"tokens": ["a"], "tags": [9]}, "label 9 is not a class index from 0 to 4"),
        ({"tokens": ["a"], "tags": ["B-ORG"]}, "label 'B-ORG' is none of the task's labels"),
    ],
)
def test_bad_tags(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    assert words in error_of(folder(tmp_path / "t", NER, [{"tokens": ["a"], "tags": ["O"]}, row]))


def test_tag_names_come_from_a_file_or_the_rows(tmp_path: Path) -> None:
    toml = 'kind = "token-classification"\ninputs = ["tokens"]\nlabel = "tags"\n'
    path = folder(tmp_path / "named", toml, [{"tokens": ["a", "b"], "tags": ["B-X", "O"]}])
    assert resolve_task(path, None).labels == ("O", "B-X")
    path = folder(tmp_path / "numbered", toml, [{"tokens": ["a", "b"], "tags": [1, 0]}])
    with pytest.raises(DataError, match=r"labels\.json"):
        resolve_task(path, None)
    (path / "labels.json").write_text(json.dumps(["O", "B-Y"]))
    assert resolve_task(path, None).labels == ("O", "B-Y")


@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2"])
def test_first_pieces_of_words(model_type: str, tiny: Tiny) -> None:
    """The token that a word's tag stands at is the first one of that word, for every kind of tokenizer."""
    backbone = tiny(model_type)
    rows = [["the", "dogs", "unbelievable", "boat"], ["no"], ["she", "'s", "in", "(", "it", ")"]]
    task = Task(name="t", kind="token-classification", inputs=("w",), labels=TAGS, metric="accuracy")
    made = encode_split(backbone, task, Split((rows,), [[0] * len(row) for row in rows]), 40)
    assert made.words is not None
    for number, row in enumerate(rows):
        first = made.words[number, : len(row)].tolist()
        assert first == sorted(set(first))
        assert min(first) >= 0
        for place, word in enumerate(row):
            end = first[place + 1] if place + 1 < len(row) else int(made.lengths[number])
            ids = made.input_ids[number, first[place] : end].tolist()
            text = backbone.tokenizer.decode([i for i in ids if i not in backbone.tokenizer.all_special_ids])
            known = all(i != backbone.tokenizer.unk_token_id for i in ids)
            assert not known or text.replace(" ", "").strip() == word
    assert made.words[1, 1:].tolist() == [-1] * 5


def test_words_that_were_cut_off_are_predicted_outside_and_counted(tiny: Tiny) -> None:
    backbone = tiny("bert")
    rows = [list(WORDS[:8]), list(WORDS[:3])]
    tags = [[1, 0, 0, 0, 0, 0, 0, 3], [1, 2, 0]]
    task = Task(name="t", kind="token-classification", inputs=("w",), labels=TAGS, metric="span_f1")
    made = encode_split(backbone, task, Split((rows,), tags), 6)  # four words and two special tokens
    assert made.truncated == 1
    assert made.labels is not None
    assert made.labels[0].tolist() == [1, 0, 0, 0, *[IGNORED] * 4]
    logits = np.full((2, 8, 5), -1.0, dtype=np.float32)
    for row, some in enumerate(tags):
        for place, tag in enumerate(some):
            logits[row, place, tag] = 1.0
    assert predicted_tags(made, logits, 0) == [[1, 0, 0, 0, 0, 0, 0, 0], [1, 2, 0]]
    scores = score_outputs(task, made, logits)  # two of three entities found, none wrong
    assert scores == pytest.approx({"span_f1": 0.8, "precision": 1.0, "recall": 2 / 3})


def conll_spans(tags: list[str]) -> set[tuple[int, int, str]]:
    """Entities of well-formed BIO tags, by hand."""
    spans, start = set(), None
    for place, tag in enumerate([*tags, "O"]):
        if start is not None and not tag.startswith("I-"):
            spans.add((start, place, tags[start][2:]))
            start = None
        if tag.startswith("B-"):
            start = place
    return spans


def well_formed(draw: random.Random, length: int) -> list[str]:
    tags: list[str] = []
    for _ in range(length):
        inside = [f"I-{tags[-1][2:]}"] if tags and tags[-1] != "O" else []
        tags.append(draw.choice(["O", "O", "B-A", "B-B", *inside * 3]))
    return tags


def test_entity_scores_are_those_counted_by_hand() -> None:
    draw = random.Random(0)
    for _ in range(20):
        truth = [well_formed(draw, draw.randint(1, 12)) for _ in range(8)]
        found = [row if draw.random() < 0.5 else well_formed(draw, len(row)) for row in truth]
        right = sum(len(conll_spans(a) & conll_spans(b)) for a, b in zip(truth, found, strict=True))
        gold, made = (sum(len(conll_spans(row)) for row in some) for some in (truth, found))
        scores = span_scores(truth, found)
        assert scores["span_f1"] == pytest.approx(2 * right / (gold + made) if right else 0.0)


def test_an_entity_may_begin_with_i_and_verbs_do_not_count(tiny: Tiny) -> None:
    task = Task(
        name="t",
        kind="token-classification",
        inputs=("w",),
        labels=("O", "B-V", "B-A0", "I-A0"),
        metric="span_f1",
        columns=Columns(predicate="p"),
    )
    rows, verbs = [["the", "dog", "was", "red"]], ["was"]
    made = encode_split(tiny("bert"), task, Split((rows, verbs), [[2, 3, 1, 0]]), 16)
    logits = np.eye(4, dtype=np.float32)[[3, 3, 0, 0]][None]  # I-A0 I-A0 O O: the entity, without the verb
    assert score_outputs(task, made, logits)["span_f1"] == 1.0
    ids = tiny("bert").tokenizer("the dog was red", "was")["input_ids"]
    assert made.input_ids[0].tolist() == ids


def test_predicate_index_outside_the_words(tmp_path: Path) -> None:
    toml = NER + '[columns]\npredicate = "p"\n'
    path = folder(tmp_path / "t", toml, [{"tokens": ["a", "b"], "tags": [0, 0], "p": 2}])
    assert "'p' must be the index of a word, 0 to 1, found 2" in error_of(path)


# ---- extractive QA

QA = 'kind = "extractive-qa"\ninputs = ["question", "context"]\nlabel = "answers"\n'


def qa_row(context: str, answer: str, start: int | None = None) -> dict[str, Any]:
    place = context.index(answer) if start is None else start
    return {"question": "what was it", "context": context, "answers": {"text": [answer], "answer_start": [place]}}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (qa_row("a red boat", "red", 3), "answer 'red' is not in the context at character 3"),
        (qa_row("a red boat", "red", -8), "is not in the context at character -8"),
        ({"question": "q", "context": "c", "answers": {"text": [], "answer_start": []}}, "the question has no answer"),
        ({"question": "q", "context": "c", "answers": ["c"]}, "answers must be an object"),
        ({"question": "q", "context": "c", "answers": {"text": ["c"]}}, "two lists of one length"),
    ],
)
def test_bad_answers(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    assert words in error_of(folder(tmp_path / "t", QA, [qa_row("a red boat", "boat"), row]))


def perfect(data: Any) -> np.ndarray:
    """Logits that know the labels; windows without an answer prefer token 0."""
    logits = np.full((len(data), 2, data.input_ids.shape[1]), -5.0, dtype=np.float32)
    for window, (start, end) in enumerate(data.labels.tolist()):
        strength = 5.0 if start else 1.0
        logits[window, 0, start] = logits[window, 1, end] = strength
    return np.where(data.answerable.numpy()[:, None], logits, MASKED)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2"])
def test_windows_hold_every_answer_and_give_it_back(model_type: str, tiny: Tiny) -> None:
    """Long contexts in short windows: perfect logits give back each answer, character by character."""
    backbone = tiny(model_type)
    draw = random.Random(3)
    contexts, answers = [], []
    for _ in range(12):
        words = draw.choices(WORDS, k=draw.randint(5, 60))
        first = draw.randrange(len(words) - 2)
        text = " ".join(words)
        start = len(" ".join(words[:first])) + (first > 0)
        contexts.append(text)
        answers.append([(" ".join(words[first : first + 2]), start)])
    task = Task(name="t", kind="extractive-qa", inputs=("q", "c"), metric="squad")
    split = Split((["what was it"] * 12, contexts), answers)
    made = encode_split(backbone, task, split, 24)
    assert len(made) > 12
    assert made.answerable is not None
    assert predicted_answers(made, perfect(made)) == [some[0][0] for some in answers]
    assert score_outputs(task, made, perfect(made)) == {"squad": 1.0, "exact_match": 1.0}
    samples = samples_of(made, [0, 5])
    assert len(samples) == 2


def test_a_question_without_an_answer(tmp_path: Path, tiny: Tiny) -> None:
    rows = [
        qa_row("a red boat", "boat"),
        {"question": "who", "context": "a red boat", "answers": {"text": [], "answer_start": []}},
    ]
    data = load(folder(tmp_path / "t", QA + "[columns]\nno_answer = true\n", rows))
    made = encode_split(tiny("bert"), data.task, data.train, 32)
    assert made.labels is not None
    assert made.labels[1].tolist() == [0, 0]
    assert predicted_answers(made, perfect(made)) == ["boat", ""]
    assert score_outputs(data.task, made, perfect(made))["squad"] == 1.0


def test_answer_scores_are_torchmetrics() -> None:
    found = ["the red boat", "dog", "", "a dog!"]
    gold = [["red boat", "boat"], ["cat"], [], ["Dog"]]
    reference = squad(
        [{"prediction_text": text, "id": str(n)} for n, text in enumerate(found)],
        [{"answers": {"text": g or [""], "answer_start": [0]}, "id": str(n)} for n, g in enumerate(gold)],
    )
    scores = answer_scores(found, gold)
    assert scores["squad"] == pytest.approx(float(reference["f1"]) / 100)
    assert scores["exact_match"] == pytest.approx(3 / 4)  # articles, case and punctuation do not count


def test_windows_too_short_for_a_question(tiny: Tiny) -> None:
    task = Task(name="t", kind="extractive-qa", inputs=("q", "c"), metric="squad")
    with pytest.raises(BackboneError, match="leave no room"):
        encode_split(tiny("bert"), task, Split((["what"], ["a boat"]), [[("boat", 2)]]), 6)


# ---- marked words


def test_marked_words_stand_in_front(tmp_path: Path) -> None:
    toml = (
        'kind = "classification"\ninputs = ["s1", "s2"]\nlabels = ["no", "yes"]\n[columns]\n'
        'lead = { s1 = "word", s2 = "word" }\noffsets = { s1 = ["start", "end"] }\n'
    )
    row = {"word": "red", "s1": "a red boat", "s2": "it was red", "start": 2, "end": 5, "label": 1}
    data = load(folder(tmp_path / "t", toml, [row]))
    assert data.train.texts == (["red: a red boat"], ["red: it was red"])
    bad = folder(tmp_path / "bad", toml, [row, row | {"end": 11}])
    assert "the marked word of column 's1' is said to be at characters 2 to 11, and the text has 10" in error_of(bad)


# ---- from the command line


@pytest.mark.parametrize("kind", ["choices", "tags", "answers"])
def test_every_kind_from_training_to_prediction(kind: str, tmp_path: Path) -> None:
    draw = random.Random(1)
    words = ["red", "blue", "dog", "boat"]
    if kind == "choices":
        toml = CHOICES
        rows = [{"premise": draw.choice(words), "choices": draw.sample(words, 3), "label": n % 3} for n in range(12)]
    elif kind == "tags":
        toml = NER
        rows = [
            {"tokens": (some := draw.choices(words, k=4)), "tags": [int(w == "dog") for w in some]} for _ in range(12)
        ]
    else:
        toml = QA
        rows = [qa_row(" ".join(draw.sample(words, 4)), draw.choice(words)) for _ in range(12)]
    task = folder(tmp_path / "mine", toml, rows)
    assert check_task_data(resolve_task(task, None), None).total == 0
    source, prompt, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "out.jsonl"
    common = ["--task", str(task), "--model", "tiny", "--max-length", "32"]

    def run(*arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "panda_fusion_cli", *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    run("train", *common, "--method", "prefix:length=2", "--max-steps", "2", "--out", str(source))
    run("transfer", *common, "--source", str(source), "--max-steps", "2", "--probe-steps", "2", "--out", str(prompt))
    scored = run("evaluate", str(prompt), "--task", str(task), "--model", "tiny")
    assert scored["examples"] == 12
    rows_file = tmp_path / "rows.jsonl"
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    run("predict", str(prompt), "--model", "tiny", "--input", str(rows_file), "--out", str(out))
    found = [json.loads(line) for line in out.read_text().splitlines()]
    for row, one in zip(rows[:3], found, strict=True):
        if kind == "choices":
            assert len(one["probabilities"]) == 3
            assert sum(one["probabilities"]) == pytest.approx(1)
        elif kind == "tags":
            assert len(one["tags"]) == 4
            assert set(one["tags"]) <= set(TAGS)
        else:
            assert one["answer"] in row["context"]


def test_the_balance_of_samples_needs_no_classes(tiny: Tiny) -> None:
    from panda_fusion.subsets import balanced_sample, carve_selection

    split = Split(([["a"]] * 30,), [[0]] * 30)
    assert len(balanced_sample(split, 10, 0)) == 10
    train, held = carve_selection(split, 0.1, 0)
    assert (len(train), len(held)) == (27, 3)
    assert torch.is_tensor(
        encode_split(
            tiny("bert"), Task(name="t", kind="token-classification", inputs=("w",), labels=TAGS), held, 8
        ).words
    )
