"""Finding answers in a context: long contexts are read in overlapping windows, an answer is a span of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from panda_fusion.dataset import EncodedSet, padded
from panda_fusion.errors import BackboneError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from panda_fusion.backbone import Backbone

LONGEST_QUESTION = 64
"""Tokens kept of a question, as the reference implementation of BERT does; a third of the row where that is less."""
LONGEST_ANSWER = 30
"""Tokens of the longest answer that is predicted, as in the reference implementation of BERT."""


@dataclass(frozen=True)
class Windows:
    """What answers are found and scored by.

    Attributes:
        question: [windows] number of the question that a window belongs to; ascending.
        offsets: [windows, longest, 2] characters of the context that a token stands for.
        contexts: the context of every question.
        answers: gold answers of every question, none for a question without one; None without labels.
        no_answer: whether "no answer" may be predicted.
    """

    question: NDArray[np.int64]
    offsets: NDArray[np.int32]
    contexts: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...] | None
    no_answer: bool


def encode_questions(
    backbone: Backbone,
    questions: Sequence[str],
    contexts: Sequence[str],
    answers: Sequence[Sequence[tuple[str, int]]] | None,
    max_length: int,
    no_answer: bool,
) -> EncodedSet:
    """Tokenise questions with their contexts in windows that overlap by a third of the row.

    A window that does not hold the whole first answer is trained to say so (token 0).

    Args:
        backbone: whose tokenizer and device are used.
        questions: M questions.
        contexts: M contexts.
        answers: M lists of (text, first character), or None.
        max_length: tokens of a window, question and special tokens included.
        no_answer: whether questions may have no answer.

    Raises:
        BackboneError: the tokenizer does not tell where its tokens come from, or windows of this length leave no room.
    """
    tokenizer = backbone.tokenizer
    if not tokenizer.is_fast:
        raise BackboneError(
            f"The tokenizer of backbone {backbone.name!r} is a slow one, which does not say where a token comes from; "
            "extractive QA needs a fast tokenizer (tokenizer.json)."
        )
    most = min(LONGEST_QUESTION, max_length // 3)
    if most < 1 or max_length - most - 4 < 2:
        raise BackboneError(
            f"Windows of {max_length} tokens leave no room for question and context; raise --max-length."
        )
    pieces = tokenizer(list(questions), add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    cut = [q if len(p) <= most else q[: p[most - 1][1]] for q, p in zip(questions, pieces, strict=True)]
    encoded = tokenizer(
        cut,
        list(contexts),
        truncation="only_second",
        max_length=max_length,
        stride=max(1, min(max_length // 3, max_length - most - 6)),
        return_attention_mask=False,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    rows = encoded["input_ids"]
    count = len(rows)
    question = np.asarray(encoded["overflow_to_sample_mapping"], dtype=np.int64)
    lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=count)
    longest = int(lengths.max())
    offsets = np.zeros((count, longest, 2), dtype=np.int32)
    answerable = np.zeros((count, longest), dtype=bool)
    labels = np.zeros((count, 2), dtype=np.int64)
    for window in range(count):
        size = int(lengths[window])
        offsets[window, :size] = encoded["offset_mapping"][window]
        inside = np.array([sequence == 1 for sequence in encoded.sequence_ids(window)])
        answerable[window, :size] = inside
        if answers is not None and answers[question[window]]:
            labels[window] = _place(answers[question[window]][0], offsets[window, :size], inside)
    answerable[:, 0] = True
    types = encoded.get("token_type_ids")
    device = backbone.device
    return EncodedSet(
        input_ids=padded(rows, lengths, np.int32).to(device),
        lengths=torch.from_numpy(lengths).to(device),
        token_types=None if types is None else padded(types, lengths, np.int8).to(device),
        labels=None if answers is None else torch.from_numpy(labels).to(device),
        kind="extractive-qa",
        answerable=torch.from_numpy(answerable).to(device),
        reference=windows_reference(question, offsets, contexts, answers, no_answer),
    )


def windows_reference(
    question: NDArray[np.int64],
    offsets: NDArray[np.int32],
    contexts: Sequence[str],
    answers: Sequence[Sequence[tuple[str, int]]] | None,
    no_answer: bool,
) -> Windows:
    """What scoring needs of questions beside their tokens; arguments as of `Windows` and `encode_questions`."""
    gold = None if answers is None else tuple(tuple(text for text, _ in some) for some in answers)
    return Windows(question, offsets, tuple(contexts), gold, no_answer)


def _place(answer: tuple[str, int], offsets: NDArray[np.int32], inside: NDArray[np.bool_]) -> tuple[int, int]:
    """First and last token of an answer; (0, 0) where the window does not hold all of it."""
    text, start = answer
    end = start + len(text)
    tokens = np.flatnonzero(inside)
    if not len(tokens) or offsets[tokens[0], 0] > start or offsets[tokens[-1], 1] < end:
        return 0, 0
    touched = tokens[(offsets[tokens, 1] > start) & (offsets[tokens, 0] < end)]
    return (int(touched[0]), int(touched[-1])) if len(touched) else (0, 0)


def windows_of(data: EncodedSet, questions: Sequence[int]) -> list[list[int]]:
    """The windows of every question asked for."""
    reference = cast(Windows, data.reference)
    return [np.flatnonzero(reference.question == one).tolist() for one in questions]


def predicted_answers(data: EncodedSet, logits: NDArray[np.float32]) -> list[str]:
    """The answer to every question: the span with the largest sum of its start's and its end's logit over all windows.

    Spans are of at most 30 tokens. Where there may be no answer, none ("") is given if token 0 has the larger sum.

    Args:
        data: windows with their `reference`.
        logits: [windows, 2, longest].

    Returns:
        Substrings of the contexts.
    """
    reference = cast(Windows, data.reference)
    assert data.answerable is not None
    spans = data.answerable.cpu().numpy().copy()
    spans[:, 0] = False
    count = len(reference.contexts)
    best = np.full(count, -np.inf)
    nothing = np.full(count, np.inf)
    answers = [""] * count
    width = logits.shape[-1]
    # A span's length decides which ends go with a start.
    band = np.tri(width, width, LONGEST_ANSWER - 1, dtype=bool) & ~np.tri(width, width, -1, dtype=bool)
    for window, question in enumerate(reference.question.tolist()):
        start, end = logits[window].astype(np.float64)
        nothing[question] = min(nothing[question], start[0] + end[0])
        tokens = np.flatnonzero(spans[window])
        if not len(tokens):
            continue
        sums = np.where(band[: len(tokens), : len(tokens)], start[tokens][:, None] + end[tokens], -np.inf)
        place = int(sums.argmax())
        first, last = divmod(place, len(tokens))
        if sums[first, last] > best[question]:
            best[question] = sums[first, last]
            begin, stop = reference.offsets[window, tokens[first], 0], reference.offsets[window, tokens[last], 1]
            # Byte-level tokenizers count the blank in front of a word to it.
            answers[question] = reference.contexts[question][begin:stop].strip()
    if not reference.no_answer:
        return answers
    return ["" if nothing[q] > best[q] else answers[q] for q in range(count)]


def score_answers(data: EncodedSet, logits: NDArray[np.float32]) -> dict[str, float]:
    """Token F1 and exact match of the predicted answers by torchmetrics, which is SQuAD's own scoring.

    A question without an answer is right where none is predicted (SQuAD v2).

    Args:
        data: windows with labels and `reference`.
        logits: [windows, 2, longest].
    """
    reference = cast(Windows, data.reference)
    assert reference.answers is not None
    return answer_scores(predicted_answers(data, logits), reference.answers)


def answer_scores(found: Sequence[str], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """`squad` (F1) and `exact_match`, 0 to 1, of answers to questions with these gold answers (none: no answer)."""
    from torchmetrics.functional.text import squad

    predictions = [{"prediction_text": text, "id": str(number)} for number, text in enumerate(found)]
    target: list[dict[str, Any]] = [
        {"answers": {"text": list(texts) or [""], "answer_start": [0] * max(len(texts), 1)}, "id": str(number)}
        for number, texts in enumerate(gold)
    ]
    scores = squad(predictions, target)
    return {"squad": float(scores["f1"]) / 100, "exact_match": float(scores["exact_match"]) / 100}
