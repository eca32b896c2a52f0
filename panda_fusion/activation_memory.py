"""How much memory a training step of one prompt takes, from a probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from panda_fusion.injection import Rows

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.peft_method import PEFTMethod


def activation_bytes(backbone: Backbone, method: PEFTMethod, rows: int, tokens: int) -> int:
    """Bytes that one prompt's forward pass keeps for the backward pass, on the backbone's device.

    Runs one pass over made-up texts and adds up what autograd saves, the frozen weights left out. With gradient
    checkpointing a layer is computed again at a time; its share comes on top.

    Args:
        backbone: the frozen backbone, in the precision and with the checkpointing that training will have.
        method: PEFT method.
        rows: rows of a batch.
        tokens: tokens of every row, virtual ones left out; no more than the position table takes are probed.
    """
    if backbone.shape.positions is not None:
        tokens = max(1, min(tokens, backbone.shape.positions - method.virtual_tokens()))
    kept = _saved(backbone, method, rows, tokens)
    if not backbone.gradient_checkpointing:
        return kept
    backbone.gradient_checkpointing = False
    try:
        return kept + _saved(backbone, method, rows, tokens) // backbone.shape.layers
    finally:
        backbone.gradient_checkpointing = True


def _saved(backbone: Backbone, method: PEFTMethod, rows: int, tokens: int) -> int:
    created = method.create(backbone, torch.Generator().manual_seed(0))
    tensors = {name: tensor[None].to(backbone.device).requires_grad_() for name, tensor in created.items()}
    weights = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.arange(rows * tokens, device=backbone.device).view(rows, tokens) % backbone.vocabulary
    lengths = torch.full((rows,), tokens, device=backbone.device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # The result holds the graph, and the graph what was saved: a freed address would be counted once only.
        _result = backbone.hidden_states(ids, lengths, None, method.inject(tensors, backbone.shape), Rows(1))
    return sum(found.values())
