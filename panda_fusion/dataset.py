"""Tokenised examples and the batches cut from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone

AT_ONCE = 1024
"""Rows that are tokenised together: what a tokenizer keeps of a row takes kilobytes until its numbers are taken out."""
MEGABATCH = 50
"""Batches that are drawn together before they are sorted by length."""


@dataclass(frozen=True)
class EncodedSet:
    """M tokenised examples of one split, kept on the training device.

    Attributes:
        input_ids: [M * rows, longest] int32, padded on the right; example m has the rows m * rows and following.
        lengths: [M * rows] int64 real tokens per row.
        token_types: [M * rows, longest] int8 segment ids, or None for backbones without segments.
        labels: [M] int64 class indices or float32 values; [M, S] int64 with -100 where nothing counts:
            token-classification has one per word, extractive-qa the tokens where the answer starts and ends
            (0: no answer in this window). None for examples without labels.
        kind: task kind.
        truncated: how many examples were cut at the maximum length.
        rows: token rows of one example: 1, or the most choices of any example of a multiple-choice task.
        choices: [M] int64 real choices per example (multiple-choice); the rows of others hold a single token.
        words: [M, S] int32 first token of every word (token-classification); -1: the word was cut off, or is none.
        answerable: [M, longest] bool tokens where an answer may start or end (extractive-qa): the context and token 0.
        reference: what scoring and decoding need beside the tensors; lost in a `subset`.
    """

    input_ids: torch.Tensor
    lengths: torch.Tensor
    token_types: torch.Tensor | None
    labels: torch.Tensor | None
    kind: str
    truncated: int = 0
    rows: int = 1
    choices: torch.Tensor | None = None
    words: torch.Tensor | None = None
    answerable: torch.Tensor | None = None
    reference: object = None

    def __len__(self) -> int:
        return self.input_ids.shape[0] // self.rows

    def example_lengths(self) -> np.ndarray:
        """[M] tokens of every example's longest row, on the host."""
        return self.lengths.view(-1, self.rows).amax(1).cpu().numpy()

    def subset(self, indices: Sequence[int] | np.ndarray) -> EncodedSet:
        """The examples at these indices, in this order."""
        index = torch.as_tensor(np.asarray(indices), dtype=torch.int64, device=self.input_ids.device)
        rows = row_index(index, self.rows)

        def pick(tensor: torch.Tensor | None, at: torch.Tensor) -> torch.Tensor | None:
            return None if tensor is None else tensor[at]

        return replace(
            self,
            input_ids=self.input_ids[rows],
            lengths=self.lengths[rows],
            token_types=pick(self.token_types, rows),
            labels=pick(self.labels, index),
            choices=pick(self.choices, index),
            words=pick(self.words, index),
            answerable=pick(self.answerable, index),
            reference=None,
        )


def row_index(examples: torch.Tensor, rows: int) -> torch.Tensor:
    """[N] example numbers to the [N * rows] numbers of their token rows."""
    if rows == 1:
        return examples
    return (examples[:, None] * rows + torch.arange(rows, device=examples.device)).flatten()


def encode(
    backbone: Backbone,
    texts: Sequence[Sequence[str]],
    labels: Sequence[int] | Sequence[float] | None,
    kind: str,
    max_length: int,
) -> EncodedSet:
    """Tokenise one or two text columns with the backbone's tokenizer.

    Args:
        backbone: whose tokenizer and device are used.
        texts: one or two columns of M texts; two become a pair, the longer one cut first.
        labels: M class indices or values, or None.
        kind: task kind; `regression` makes the labels float32.
        max_length: tokens kept of an example, special ones included.
    """
    columns = [list(column) for column in texts]
    rows: list[np.ndarray] = []
    types: list[np.ndarray] = []
    truncated = 0
    for start in range(0, len(columns[0]), AT_ONCE):
        encoded = backbone.tokenizer(
            *(column[start : start + AT_ONCE] for column in columns),
            truncation="longest_first",
            max_length=max_length,
            return_attention_mask=False,
        )
        some = [np.asarray(row, np.int32) for row in encoded["input_ids"]]
        rows += some
        types += [np.asarray(row, np.int8) for row in encoded.get("token_type_ids", ())]
        # The tokenizer keeps what it cut off beside an encoding; only full rows can have any.
        truncated += sum(bool(encoded.encodings[i].overflowing) for i, row in enumerate(some) if len(row) >= max_length)
    lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    label_type = torch.float32 if kind == "regression" else torch.int64
    device = backbone.device
    return EncodedSet(
        input_ids=padded(rows, lengths, np.int32).to(device),
        lengths=torch.from_numpy(lengths).to(device),
        token_types=padded(types, lengths, np.int8).to(device) if types else None,
        labels=None if labels is None else torch.tensor(labels, dtype=label_type, device=device),
        kind=kind,
        truncated=truncated,
    )


def padded(rows: Sequence[Sequence[int] | np.ndarray], lengths: np.ndarray, dtype: type) -> torch.Tensor:
    """[M, longest] from lists of unequal length, zeros behind each row's end."""
    table: np.ndarray = np.zeros((len(rows), int(lengths.max(initial=1))), dtype=dtype)
    table[np.arange(table.shape[1]) < lengths[:, None]] = np.concatenate([np.asarray(r, dtype) for r in rows])
    return torch.from_numpy(table)


@dataclass(frozen=True)
class Batch:
    """N token rows cut to their common longest length T, on the training device.

    Attributes:
        input_ids: [N, T] int64.
        lengths: [N] int64.
        token_types: [N, T] int64 or None.
    """

    input_ids: torch.Tensor
    lengths: torch.Tensor
    token_types: torch.Tensor | None


def gather(data: EncodedSet, index: torch.Tensor, width: int) -> Batch:
    """The token rows of the examples at `index` (int64, on the data's device), cut to `width` tokens."""
    types = data.token_types
    index = row_index(index, data.rows)
    return Batch(
        input_ids=data.input_ids[index, :width].long(),
        lengths=data.lengths[index],
        token_types=None if types is None else types[index, :width].long(),
    )


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Cut one epoch into batches of similar length.

    Examples are shuffled by (seed, epoch), cut into groups of up to 50 batches (at least four groups, so that
    small sets stay mixed), sorted by length within a group and cut into batches. The order of the batches depends on
    the epoch alone: prompts of a pack draw their own examples and still meet batches of equal length, so a
    pack pads no more than a single prompt does.

    Args:
        lengths: [M] tokens per example.
        batch_size: rows per batch; the last one may be smaller.
        seed: the prompt's seed.
        epoch: from 0.

    Returns:
        Index arrays that together hold every example once.
    """
    count = len(lengths)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    batches_in_all = -(-count // batch_size)
    group = max(1, min(MEGABATCH, batches_in_all // 4)) * batch_size
    batches: list[np.ndarray] = []
    for start in range(0, count, group):
        members = order[start : start + group]
        members = members[np.argsort(lengths[members], kind="stable")]
        batches.extend(members[i : i + batch_size] for i in range(0, len(members), batch_size))
    shuffle = np.random.default_rng(epoch).permutation(len(batches))
    return [batches[i] for i in shuffle]


def length_sorted_chunks(lengths: np.ndarray, tokens: int, prompts: int) -> list[np.ndarray]:
    """Cut examples, longest first, into chunks for a pass without gradients.

    Args:
        lengths: [M] tokens per example.
        tokens: the most padded tokens that one pass may hold over all prompts of the pack.
        prompts: size of the pack; every prompt sees every row.
    """
    order = np.argsort(-lengths, kind="stable")
    chunks = []
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        size = max(1, tokens // (longest * prompts))
        chunks.append(order[start : start + size])
        start += size
    return chunks
