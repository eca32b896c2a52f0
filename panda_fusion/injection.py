"""How trained tensors enter the frozen backbone's forward pass, and which rows use which prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Rows:
    """Which prompt of a pack each of the N rows of a batch uses.

    Attributes:
        prompts: G, the number of prompts in the pack.
        index: [N] int64 prompt number per row; None where the rows lie grouped, N / G for each prompt in
            turn (the case of training, which needs no gather).
    """

    prompts: int
    index: torch.Tensor | None = None

    def spread(self, tensor: torch.Tensor, rows: int) -> torch.Tensor:
        """[G, ...] to [N, ...]: what belongs to a prompt, once for each row that uses it."""
        if self.index is not None:
            return tensor.index_select(0, self.index)
        if self.prompts == 1:
            return tensor.expand(rows, *tensor.shape[1:])
        each = rows // self.prompts
        return tensor.unsqueeze(1).expand(-1, each, *tensor.shape[1:]).reshape(rows, *tensor.shape[1:])


OutputTransform = Callable[[torch.Tensor, Rows], torch.Tensor]
"""Maps a submodule's output [N, T, features] and the rows to a new output of the same shape."""


@dataclass(frozen=True)
class Injection:
    """What a PEFT method adds to a forward pass. Everything carries the pack axis G in front.

    Attributes:
        key: [G, layers, P, kv_heads, head_dim]: P keys that every layer's attention sees before the text's.
        value: the values beside `key`, same shape.
        embedding: [G, P, input width]: P input embeddings in front of the text's.
        weights: name of a parameter (as in `named_parameters` of the base model) -> [1, ...], what stands in its place;
            for methods that are not packable.
        outputs: submodule name (as in `named_modules` of the base model) -> transform of its output, or a tuple
            of transforms, the k-th for the k-th call of the module in one forward pass (ALBERT runs one module for
            all layers). `per_layer` makes it from one transform per layer.
    """

    key: torch.Tensor | None = None
    value: torch.Tensor | None = None
    embedding: torch.Tensor | None = None
    outputs: Mapping[str, OutputTransform | tuple[OutputTransform, ...]] = field(default_factory=dict)
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def prefix_length(self) -> int:
        """P of the attention prefix (0 without one)."""
        return 0 if self.key is None else self.key.shape[2]

    @property
    def embedding_length(self) -> int:
        """P of the input prompt (0 without one)."""
        return 0 if self.embedding is None else self.embedding.shape[1]


def per_layer(
    names: Sequence[str], transforms: Sequence[OutputTransform]
) -> dict[str, OutputTransform | tuple[OutputTransform, ...]]:
    """`Injection.outputs` from one transform per layer.

    Args:
        names: a module of each layer (a field of `BackboneShape.layout`, or `layer_modules`); layers that share the
            module have the same name.
        transforms: one per layer.
    """
    calls: dict[str, tuple[OutputTransform, ...]] = {}
    for name, transform in zip(names, transforms, strict=True):
        calls[name] = (*calls.get(name, ()), transform)
    return {name: own[0] if len(own) == 1 else own for name, own in calls.items()}
