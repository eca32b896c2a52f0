"""Tokens on disk: what is found equals what was made, for every kind; and what an entry depends on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from panda_fusion import dataset, token_cache
from panda_fusion.backbone import Backbone
from panda_fusion.dataset import EncodedSet
from panda_fusion.encoding import encode_split
from panda_fusion.rows import Split
from panda_fusion.task import Columns, Task
from panda_fusion.tensor_cache import TensorCache
from panda_fusion.token_cache import encode_kept, token_key

Tiny = Callable[[str], Backbone]
TAGS = ("O", "B-X", "I-X", "B-V")
LONG = "the dog was not in the boat and it was red " * 3
ONE = Task(name="one", kind="classification", inputs=("text",), labels=("a", "b", "c"))
EXAMPLES: dict[str, tuple[Task, Split]] = {
    "classification": (ONE, Split((["the dog", LONG, ""],), [2, 0, 1])),
    "pairs": (
        Task(name="pair", kind="classification", inputs=("one", "two"), labels=("a", "b")),
        Split((["the dog", LONG], ["a boat, it was", "héllo 漢字"]), [1, 0]),
    ),
    "regression": (
        Task(name="value", kind="regression", inputs=("text",), metric="pearson_spearman"),
        Split((["the dog", "red", "it was"],), [0.1, 1 / 3, 5.0]),
    ),
    "multiple-choice": (
        Task(name="which", kind="multiple-choice", inputs=("text",), columns=Columns(choices=("choices",))),
        Split((["the dog", "it was"],), [2, 0], [["no", "a boat", "she"], ["red", "not"]]),
    ),
    "tags": (
        Task(name="tags", kind="token-classification", inputs=("words",), labels=TAGS, metric="span_f1"),
        Split(([["the", "dog"], LONG.split(), ["was"]],), [[1, 2], [0] * len(LONG.split()), [0]]),
    ),
    "roles": (
        Task(
            name="roles",
            kind="token-classification",
            inputs=("words",),
            labels=TAGS,
            metric="span_f1",
            columns=Columns(predicate="verb"),
        ),
        Split(([["the", "dog", "was"], ["it", "was", "red"]], ["was", "was"]), [[1, 2, 3], [1, 3, 0]]),
    ),
    "answers": (
        Task(
            name="answers",
            kind="extractive-qa",
            inputs=("question", "context"),
            metric="squad",
            columns=Columns(no_answer=True),
        ),
        Split((["what was it", "who"], [LONG, "the dog was in the boat"]), [[("boat", 27), ("red", 39)], []]),
    ),
}


def assert_same(one: EncodedSet, other: EncodedSet) -> None:
    """Bit for bit, with types and shapes."""
    for field in fields(EncodedSet):
        compare(getattr(one, field.name), getattr(other, field.name), field.name)


def compare(one: Any, other: Any, name: str) -> None:
    assert type(one) is type(other), name
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, name
        assert one.device == other.device, name
        assert torch.equal(one, other), name
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, name
        assert np.array_equal(one, other), name
    elif hasattr(one, "__dataclass_fields__"):
        for field in fields(one):
            compare(getattr(one, field.name), getattr(other, field.name), f"{name}.{field.name}")
    else:
        assert one == other, name


def forbid(*_: object) -> EncodedSet:
    raise AssertionError("tokenised")


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("model", ["bert", "gpt2"])
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_what_is_found_is_what_was_made(
    name: str, model: str, labelled: bool, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, split = EXAMPLES[name]
    split = split if labelled else replace(split, labels=[])
    plain = encode_split(tiny(model), task, split, 24)
    assert_same(encode_kept(tiny(model), task, split, 24, TensorCache(tmp_path)), plain)
    monkeypatch.setattr(token_cache, "encode_split", forbid)
    cache = TensorCache(tmp_path)
    assert_same(encode_kept(tiny(model), task, split, 24, cache), plain)
    assert (cache.found, cache.missed) == (1, 0)


def test_what_tokens_depend_on(tiny: Tiny) -> None:
    task, split = EXAMPLES["pairs"]
    tokenizer = tiny("bert").tokenizer

    def key(own: Any = tokenizer, task: Task = task, split: Split = split, length: int = 24) -> str:
        return token_key(own, task, split, length)

    more, cut = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    more.add_tokens(["boat,"])  # the same name, another vocabulary
    cut.truncation_side = "left"
    others = [
        key(own=more),
        key(own=cut),
        key(own=tiny("gpt2").tokenizer),
        key(length=25),
        key(task=EXAMPLES["regression"][0]),
        key(split=replace(split, labels=[0, 1])),
        key(split=replace(split, labels=[])),
        key(split=replace(split, texts=split.texts[::-1])),
        key(split=replace(split, texts=(["the dog", LONG[:-1]], split.texts[1]))),
        key(split=split.select([1, 0])),
    ]
    assert len({key(), *others}) == len(others) + 1
    first = key()
    tokenizer(["a text"], truncation=True, max_length=5, padding=True)  # leaves its settings in the tokenizer
    assert key() == first
    renamed = Task(name="other", kind=task.kind, inputs=("premise", "text"), labels=("x", "y"))
    assert key(own=copy.deepcopy(tokenizer), task=renamed) == first


def test_a_changed_tokenizer_tokenises_anew(tiny: Tiny, tmp_path: Path) -> None:
    task, split = EXAMPLES["pairs"]
    cache = TensorCache(tmp_path)
    first = encode_kept(tiny("bert"), task, split, 24, cache)
    changed = SimpleNamespace(tokenizer=copy.deepcopy(tiny("bert").tokenizer), device=torch.device("cpu"), name="b")
    changed.tokenizer.add_tokens(["dog"])
    made = encode_kept(changed, task, split, 24, cache)  # type: ignore[arg-type]
    assert not torch.equal(made.input_ids, first.input_ids)
    assert_same(made, encode_split(changed, task, split, 24))  # type: ignore[arg-type]


@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
def test_damaged_tokens_are_made_and_kept_again(place: float, tiny: Tiny, tmp_path: Path) -> None:
    task, split = EXAMPLES["answers"]
    plain = encode_kept(tiny("bert"), task, split, 24, TensorCache(tmp_path))
    (file,) = tmp_path.iterdir()
    sound = file.read_bytes()
    at = int(place * len(sound))
    file.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
    cache = TensorCache(tmp_path)
    assert_same(encode_kept(tiny("bert"), task, split, 24, cache), plain)
    assert (cache.found, cache.missed) == (0, 1)
    assert file.read_bytes() == sound


def test_padding_takes_no_room(tiny: Tiny, tmp_path: Path) -> None:
    split = Split((["red"] * 500 + [LONG * 9],), [0] * 501)
    made = encode_kept(tiny("bert"), ONE, split, 256, TensorCache(tmp_path))
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < made.input_ids.nbytes / 10


def test_what_a_slow_tokenizer_makes_is_not_kept(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SimpleNamespace(tokenizer=SimpleNamespace(is_fast=False))
    task, split = EXAMPLES["pairs"]
    plain = encode_split(tiny("bert"), task, split, 24)
    monkeypatch.setattr(token_cache, "encode_split", lambda *_: plain)
    assert encode_kept(slow, task, split, 24, TensorCache(tmp_path / "cache")) is plain  # type: ignore[arg-type]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_rows_are_tokenised_some_at_a_time(model: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [["the dog", LONG, "", "red", LONG + "not", "it was", "she"], ["a", "boat"] * 3 + ["who"]]
    whole = dataset.encode(tiny(model), texts, [0] * 7, "classification", 24)
    assert whole.truncated == 2
    monkeypatch.setattr(dataset, "AT_ONCE", 3)
    assert_same(dataset.encode(tiny(model), texts, [0] * 7, "classification", 24), whole)
