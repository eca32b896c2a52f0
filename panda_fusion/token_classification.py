"""Tagging words: the first piece of a word carries its tag, and words that were cut off count as untagged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from panda_fusion.dataset import EncodedSet, padded
from panda_fusion.errors import BackboneError
from panda_fusion.readout import IGNORED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from panda_fusion.backbone import Backbone

OUTSIDE = "O"
VERB = "V"
"""The span of a predicate, which the scores of semantic role labelling leave out."""


@dataclass(frozen=True)
class Words:
    """What tags are scored by.

    Attributes:
        counts: words of every row, those that were cut off too.
        tags: gold tags of every row; None without labels.
        predicates: whether rows ask for the roles of one predicate.
    """

    counts: tuple[int, ...]
    tags: tuple[tuple[int, ...], ...] | None
    predicates: bool


def encode_words(
    backbone: Backbone,
    words: Sequence[Sequence[str]],
    predicates: Sequence[str] | None,
    tags: Sequence[Sequence[int]] | None,
    max_length: int,
) -> EncodedSet:
    """Tokenise rows of words.

    Words are joined by blanks and found again by their places in the text, so that every fast tokenizer will do.

    Args:
        backbone: whose tokenizer and device are used.
        words: M lists of words.
        predicates: M words whose roles are asked for, which become a second text; None: none.
        tags: M lists of tag indices, one per word, or None.
        max_length: tokens kept of a row; words at the end are cut.

    Raises:
        BackboneError: the tokenizer does not tell where its tokens come from.
    """
    if not backbone.tokenizer.is_fast:
        raise BackboneError(
            f"The tokenizer of backbone {backbone.name!r} is a slow one, which does not say where a token comes from; "
            "tagging needs a fast tokenizer (tokenizer.json)."
        )
    texts = [" ".join(row) for row in words]
    columns = [texts] if predicates is None else [texts, list(predicates)]
    encoded = backbone.tokenizer(
        *columns,
        truncation="only_first" if predicates is not None else True,
        max_length=max_length,
        return_attention_mask=False,
        return_offsets_mapping=True,
    )
    rows = encoded["input_ids"]
    most = max(len(row) for row in words)
    first = np.full((len(words), most), -1, dtype=np.int32)
    for number, row in enumerate(words):
        found = _first_pieces(row, encoded["offset_mapping"][number], encoded.sequence_ids(number))
        first[number, : len(row)] = found
    labels = None
    if tags is not None:
        labels = np.full((len(words), most), IGNORED, dtype=np.int64)
        for number, some in enumerate(tags):
            labels[number, : len(some)] = np.where(first[number, : len(some)] >= 0, some, IGNORED)
    lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    types = encoded.get("token_type_ids")
    device = backbone.device
    return EncodedSet(
        input_ids=padded(rows, lengths, np.int32).to(device),
        lengths=torch.from_numpy(lengths).to(device),
        token_types=None if types is None else padded(types, lengths, np.int8).to(device),
        labels=None if labels is None else torch.from_numpy(labels).to(device),
        kind="token-classification",
        truncated=sum(int(first[number, len(row) - 1]) < 0 for number, row in enumerate(words)),
        words=torch.from_numpy(first).to(device),
        reference=words_reference(words, tags, predicates is not None),
    )


def words_reference(words: Sequence[Sequence[str]], tags: Sequence[Sequence[int]] | None, predicates: bool) -> Words:
    """What scoring needs of rows beside their tokens; arguments as of `Words` and `encode_words`."""
    return Words(
        counts=tuple(len(row) for row in words),
        tags=None if tags is None else tuple(tuple(some) for some in tags),
        predicates=predicates,
    )


def _first_pieces(
    words: Sequence[str], offsets: Sequence[tuple[int, int]], sequences: Sequence[int | None]
) -> list[int]:
    """The first token of every word, -1 where none is left of it."""
    found = []
    token, start = 0, 0
    for word in words:
        end = start + len(word)
        while token < len(offsets) and (sequences[token] != 0 or offsets[token][1] <= start):
            token += 1
        inside = token < len(offsets) and offsets[token][0] < end and offsets[token][0] < offsets[token][1]
        found.append(token if inside else -1)
        if inside:
            token += 1
        start = end + 1
    return found


def predicted_tags(data: EncodedSet, logits: NDArray[np.float32], outside: int) -> list[list[int]]:
    """The likeliest tag of every word; `outside` for words that were cut off.

    Args:
        data: M rows with their `reference`.
        logits: [M, S, tags].
        outside: index of the tag that stands for none.
    """
    reference = cast(Words, data.reference)
    assert data.words is not None
    best = np.where(data.words.cpu().numpy() >= 0, logits.argmax(-1), outside)
    return [row[:count].tolist() for row, count in zip(best, reference.counts, strict=True)]


def outside_tag(labels: Sequence[str]) -> int:
    """Index of the tag `O`; of the first one where there is none (parts of speech)."""
    return labels.index(OUTSIDE) if OUTSIDE in labels else 0


def score_tags(metric: str, labels: Sequence[str], data: EncodedSet, logits: NDArray[np.float32]) -> dict[str, float]:
    """Entity-level micro F1, precision and recall by nervaluate, or accuracy over all words.

    An entity counts where type, start and end are right. A tag I-X that follows no X begins an entity, as the CoNLL
    scorer has it. With predicates, spans of the type V are left out.

    Args:
        metric: `span_f1` or `accuracy`.
        labels: tag names.
        data: M rows with labels and `reference`.
        logits: [M, S, tags].
    """
    reference = cast(Words, data.reference)
    assert reference.tags is not None
    found = predicted_tags(data, logits, outside_tag(labels))
    if metric == "accuracy":
        pairs = [
            (a, b) for row, gold in zip(found, reference.tags, strict=True) for a, b in zip(row, gold, strict=True)
        ]
        return {"accuracy": sum(a == b for a, b in pairs) / len(pairs)}
    names = [_well_formed([labels[tag] for tag in row], reference.predicates) for row in found]
    truth = [_well_formed([labels[tag] for tag in row], reference.predicates) for row in reference.tags]
    return span_scores(truth, names)


def span_scores(truth: list[list[str]], found: list[list[str]]) -> dict[str, float]:
    """Strict entity scores of well-formed BIO tags: `span_f1`, `precision`, `recall`; 0 where there are no entities."""
    from nervaluate import Evaluator

    types = sorted({tag[2:] for row in (*truth, *found) for tag in row if tag != OUTSIDE})
    if not types:
        return {"span_f1": 0.0, "precision": 0.0, "recall": 0.0}
    strict = Evaluator(truth, found, tags=types, loader="list").evaluate()["overall"]["strict"]
    return {"span_f1": float(strict.f1), "precision": float(strict.precision), "recall": float(strict.recall)}


def _well_formed(tags: Sequence[str], without_verbs: bool) -> list[str]:
    """BIO tags in which every entity begins with B-."""
    made: list[str] = []
    before = OUTSIDE
    for tag in tags:
        if tag != OUTSIDE and without_verbs and tag[2:] == VERB:
            tag = OUTSIDE
        if tag.startswith("I-") and before[2:] != tag[2:]:
            tag = f"B-{tag[2:]}"
        made.append(tag)
        before = tag
    return made
