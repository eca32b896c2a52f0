"""Multiple choice: every choice of a row is a text of its own, and the head gives each one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from panda_fusion.dataset import EncodedSet, encode

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone


def encode_choices(
    backbone: Backbone,
    texts: Sequence[Sequence[str]],
    choices: Sequence[Sequence[str]],
    labels: Sequence[int] | None,
    max_length: int,
) -> EncodedSet:
    """Tokenise rows with their choices: the inputs as first text, a choice as second.

    Args:
        backbone: whose tokenizer and device are used.
        texts: one or two columns of M texts.
        choices: M lists of two choices or more; rows may have different numbers.
        labels: M indices of the right choice, or None.
        max_length: tokens kept of inputs and choice together, the longer one cut first.
    """
    most = max(len(some) for some in choices)
    contexts = [" ".join(row) for row in zip(*texts, strict=True)]
    first = [context for context in contexts for _ in range(most)]
    second = [choice for some in choices for choice in (*some, *[""] * (most - len(some)))]
    rows = encode(backbone, [first, second], None, "multiple-choice", max_length)
    real = torch.tensor([place < len(some) for some in choices for place in range(most)])
    device = backbone.device
    return EncodedSet(
        input_ids=rows.input_ids,
        lengths=torch.where(real.to(device), rows.lengths, 1),
        token_types=rows.token_types,
        labels=None if labels is None else torch.tensor(labels, dtype=torch.int64, device=device),
        kind="multiple-choice",
        truncated=rows.truncated,
        rows=most,
        choices=torch.tensor([len(some) for some in choices], device=device),
    )
