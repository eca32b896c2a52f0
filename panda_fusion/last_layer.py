"""The last layer for one token alone, where a head reads no other.

Keys and values of the last layer are needed for every token, but its queries, its feed-forward sublayer and its
norms for the pooled token only: of a twelfth layer's work five sixths, in the forward and in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_BERT = ("attention.self", "key", "value")
_PROJECTIONS = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": ("attention", "k_lin", "v_lin"),
}
"""Model type -> its attention module below a layer, and that module's key and value projections. All hand keys and
values to the attention function as they come out of these (no rotation in between)."""

_active: list[nn.Module] = []


def can_read_one_token(model_type: str) -> bool:
    """Whether `one_token` knows the architecture."""
    return model_type in _PROJECTIONS


@contextmanager
def one_token(model: nn.Module, layer: str, token: int) -> Iterator[None]:
    """Let the last layer compute its output for one token of every row.

    Args:
        model: a base model of which `can_read_one_token` is true.
        layer: name of its last layer module.
        token: position of the token in the sequence that the model is given.

    The model's last hidden states are [N, 1, hidden] in the block.
    """
    path, *projections = _PROJECTIONS[model.config.model_type]  # type: ignore[union-attr, index]
    module = model.get_submodule(layer)
    attention = module.get_submodule(path)
    everything: list[torch.Tensor] = []

    def one(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        everything.append(inputs[0])
        return (inputs[0][:, token : token + 1], *inputs[1:])

    def all_tokens(_module: nn.Module, _inputs: tuple[Any, ...]) -> tuple[torch.Tensor]:
        return (everything[-1],)

    handles = [module.register_forward_pre_hook(one)]
    handles += [attention.get_submodule(name).register_forward_pre_hook(all_tokens) for name in projections]
    _active.append(attention)
    try:
        yield
    finally:
        _active.pop()
        for handle in handles:
            handle.remove()


def unfolded(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [N, heads, T, head_dim] of an attention call.

    A module that believes to see one token views those of all tokens as [N, T * heads, 1, head_dim].
    """
    if not _active or module is not _active[-1]:
        return key, value
    heads = query.shape[1]

    def view(folded: torch.Tensor) -> torch.Tensor:
        return folded.view(folded.shape[0], -1, heads, folded.shape[-1]).transpose(1, 2)

    return view(key.transpose(1, 2)), view(value.transpose(1, 2))
