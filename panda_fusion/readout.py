"""Between backbone and head: which hidden states a task kind's head reads, and which of its outputs count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from panda_fusion.dataset import EncodedSet, gather

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.injection import Injection, Rows

MASKED = -1e4
"""Logit of what cannot be chosen: a choice that a row does not have, a token that cannot hold an answer."""
IGNORED = -100
"""Label of what does not count."""


def read(
    backbone: Backbone,
    data: EncodedSet,
    index: torch.Tensor,
    width: int,
    injection: Injection | None,
    rows: Rows,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Run the backbone over examples and read what the head of their kind needs.

    Args:
        backbone: the frozen backbone.
        data: the split.
        index: [G, B] example numbers.
        width: tokens of the longest row among them.
        injection: what the PEFT method adds; None: the plain model.
        rows: which prompt each example uses; grouped by prompt, as `index` is.
        dropout: probability for the backbone's own dropout layers.

    Returns:
        In the backbone's dtype: [G, B, hidden] pooled vectors; multiple-choice [G, B, R, hidden], one per choice;
        token-classification [G, B, S, hidden], the first token of every word; extractive-qa
        [G, B, T, hidden], all tokens. Virtual tokens are never among them.
    """
    batch = gather(data, index.reshape(-1), width)
    arguments = (batch.input_ids, batch.lengths, batch.token_types, injection, rows, dropout)
    if data.words is None and data.answerable is None:
        pooled = backbone.forward(*arguments)
        shape = index.shape if data.choices is None else (*index.shape, data.rows)
        return pooled.view(*shape, -1)
    hidden = backbone.hidden_states(*arguments)
    if data.words is not None:
        first = data.words[index.reshape(-1), : _slots(data.words, width)].long().clamp(min=0)
        hidden = hidden.gather(1, first[..., None].expand(-1, -1, hidden.shape[-1]))
    return hidden.view(*index.shape, *hidden.shape[1:])


def masked(logits: torch.Tensor, data: EncodedSet, index: torch.Tensor) -> torch.Tensor:
    """Logits [G, B, ...] of examples `index` [G, B] with `MASKED` where there is nothing to choose."""
    if data.choices is not None:
        real = torch.arange(logits.shape[-1], device=logits.device) < data.choices[index][..., None]
        return logits.masked_fill(~real, MASKED)
    if data.answerable is not None:
        return logits.masked_fill(~data.answerable[index, : logits.shape[-1]].unsqueeze(-2), MASKED)
    return logits


def labels_and_mask(data: EncodedSet, index: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Labels of examples `index` [G, B] and which of them count.

    Returns:
        ([G, B] or [G, B, S] labels, None or a [G, B, S] mask, True where a label counts).
    """
    assert data.labels is not None
    labels = data.labels[index]
    if data.words is None:
        return labels, None
    labels = labels[..., : _slots(data.words, width)]
    return labels, labels != IGNORED


def cut_targets(targets: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Soft targets [..., longest] or [..., most words, C] cut to the shape of a batch's logits."""
    for axis in range(2, logits.ndim):
        targets = targets.narrow(axis, 0, logits.shape[axis])
    return targets


def logits_shape(data: EncodedSet, outputs: int) -> tuple[int, ...]:
    """Shape of one example's logits over a whole split, in which those of a batch lie at the front."""
    if data.choices is not None:
        return (data.rows,)
    if data.words is not None:
        return (data.words.shape[1], outputs)
    if data.answerable is not None:
        return (2, data.input_ids.shape[1])
    return (outputs,)


def _slots(words: torch.Tensor, width: int) -> int:
    """Words that rows of `width` tokens can have at most (told without asking the device)."""
    return min(words.shape[1], width)
