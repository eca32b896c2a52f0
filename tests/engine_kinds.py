"""Hand-made tokenised sets of the task kinds whose heads read more than one pooled vector per row."""

from __future__ import annotations

import random

import torch

from panda_fusion.backbone import Backbone
from panda_fusion.dataset import EncodedSet
from panda_fusion.readout import IGNORED
from panda_fusion.task import Task
from panda_fusion.testing.backbones import WORDS

CHOICES = Task(name="which", kind="multiple-choice", inputs=("text",), metric="accuracy")
TAGS = Task(name="tags", kind="token-classification", inputs=("words",), labels=("O", "B-X", "I-X"), metric="accuracy")
ANSWERS = Task(name="where", kind="extractive-qa", inputs=("question", "text"), metric="squad")
KINDS = (CHOICES, TAGS, ANSWERS)


def encoded_kind(backbone: Backbone, task: Task, count: int, seed: int = 0) -> EncodedSet:
    """`count` random examples of a kind; lengths, numbers of choices and of words differ."""
    return _MAKERS[task.kind](backbone, count, random.Random(seed))


def _rows(backbone: Backbone, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    made = backbone.tokenizer(texts, padding=True, return_tensors="pt")
    lengths = made["attention_mask"].sum(1)
    types = made.get("token_type_ids")
    ids = made["input_ids"].masked_fill(made["attention_mask"] == 0, 0)
    return ids.int(), lengths, None if types is None else types.to(torch.int8)


def _text(draw: random.Random, longest: int = 9) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))


def _choices(backbone: Backbone, count: int, draw: random.Random) -> EncodedSet:
    numbers = [draw.randint(2, 4) for _ in range(count)]
    numbers[0] = 4
    texts = [_text(draw) if place < number else "" for number in numbers for place in range(4)]
    ids, lengths, types = _rows(backbone, texts)
    real = torch.arange(4) < torch.tensor(numbers)[:, None]
    return EncodedSet(
        input_ids=ids,
        lengths=torch.where(real.flatten(), lengths, 1),
        token_types=types,
        labels=torch.tensor([draw.randrange(number) for number in numbers]),
        kind="multiple-choice",
        rows=4,
        choices=torch.tensor(numbers),
    )


def _tags(backbone: Backbone, count: int, draw: random.Random) -> EncodedSet:
    texts = [_text(draw) for _ in range(count)]
    ids, lengths, types = _rows(backbone, texts)
    most = max(len(text.split()) for text in texts)
    words = torch.full((count, most), -1, dtype=torch.int32)
    labels = torch.full((count, most), IGNORED)
    for row, text in enumerate(texts):
        for place in range(len(text.split())):
            words[row, place] = place + 1  # behind the first token; every word is one piece here
            labels[row, place] = draw.randrange(3)
    return EncodedSet(ids, lengths, types, labels, "token-classification", words=words)


def _answers(backbone: Backbone, count: int, draw: random.Random) -> EncodedSet:
    ids, lengths, types = _rows(backbone, [_text(draw) for _ in range(count)])
    places = torch.arange(ids.shape[1])
    answerable = (places < (lengths - 1)[:, None]) & (places != 1)
    labels = torch.tensor(
        [sorted(draw.choices([0, *range(2, max(int(n) - 1, 3))], k=2)) if n > 3 else [0, 0] for n in lengths]
    )
    return EncodedSet(ids, lengths, types, labels, "extractive-qa", answerable=answerable)


_MAKERS = {"multiple-choice": _choices, "token-classification": _tags, "extractive-qa": _answers}
