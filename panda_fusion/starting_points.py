"""What a new prompt can start from: tokens of the vocabulary or of a text, their embeddings, their keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from panda_fusion.attention import recorded_attention
from panda_fusion.errors import BackboneError
from panda_fusion.injection import Rows

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone


def sampled_tokens(backbone: Backbone, count: int, generator: torch.Generator) -> torch.Tensor:
    """Token ids drawn evenly from the vocabulary, special tokens left out.

    Every token comes once before one comes twice. Lester et al. draw from the 5000 most common tokens, which only
    vocabularies sorted by frequency can tell; this draws from all.

    Args:
        backbone: whose tokenizer and embeddings.
        count: how many.
        generator: the only source of randomness.

    Returns:
        [count] int64 on the CPU.

    Raises:
        BackboneError: the vocabulary has nothing but special tokens.
    """
    special = set(backbone.tokenizer.all_special_ids)
    # Tables are padded with rows that no token has, and tokenizers can have tokens that the table lacks.
    known = set(backbone.tokenizer.get_vocab().values()) - special
    ids = torch.tensor(sorted(token for token in known if token < backbone.vocabulary), dtype=torch.int64)
    if not len(ids):
        raise BackboneError(
            f"The tokenizer of backbone {backbone.name!r} has no tokens but special ones, so none can be sampled; "
            "start the prompt with init=normal."
        )
    order = torch.randperm(len(ids), generator=generator)
    return ids[order[torch.arange(count) % len(ids)]]


def text_tokens(backbone: Backbone, text: str, count: int) -> torch.Tensor:
    """Token ids of a text without special tokens, repeated or cut to a number of tokens.

    Returns:
        [count] int64 on the CPU.

    Raises:
        BackboneError: the text has no tokens in this backbone's vocabulary.
    """
    ids = torch.tensor(backbone.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)
    if not len(ids):
        raise BackboneError(
            f"The text {text!r} has no tokens in the vocabulary of backbone {backbone.name!r}; give one that has."
        )
    return ids[torch.arange(count) % len(ids)]


@torch.no_grad()
def token_embeddings(backbone: Backbone, tokens: torch.Tensor) -> torch.Tensor:
    """[P, input width] float32 on the CPU: the input embeddings of token ids [P]."""
    return backbone.embed(tokens).cpu().float()


@torch.no_grad()
def token_keys_and_values(backbone: Backbone, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys and values that the plain backbone computes in every layer for a text of these tokens alone.

    They are taken where a trained prefix enters, so as a prefix they are what the text would attend to if the tokens
    stood in front of it (and, in an encoder, did not look at it).

    Args:
        backbone: the frozen backbone.
        tokens: [P] token ids; no special tokens are added. They have the first P positions.

    Returns:
        Two tensors [layers, P, kv_heads, head_dim] float32 on the CPU.

    Raises:
        BackboneError: P is more than the position table takes.
    """
    backbone.check_length(0, len(tokens))
    ids = tokens.to(backbone.device)[None]
    lengths = torch.full((1,), len(tokens), device=backbone.device)
    with recorded_attention() as calls:
        backbone.hidden_states(ids, lengths, torch.zeros_like(ids), None, Rows(1))
    # [1, kv_heads, P, head_dim] of every call.
    key, value = (torch.stack([call[part][0].transpose(0, 1) for call in calls]).cpu().float() for part in (0, 1))
    return key.contiguous(), value.contiguous()
