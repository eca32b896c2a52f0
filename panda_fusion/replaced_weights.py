"""A model run with other parameters than its own, for PEFT methods that train the backbone itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from panda_fusion.errors import BackboneError

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextmanager
def replaced_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Let the model compute with other tensors in the place of some parameters; gradients flow to them.

    What `torch.func.functional_call` does for one call, as a context that can be entered again when gradient
    checkpointing computes a layer a second time.

    Args:
        model: any module; it has its own parameters back when the block ends.
        weights: name in `named_parameters` -> tensor of the same shape. Everywhere a shared parameter is used
            (T5's embeddings) it is replaced.

    Raises:
        BackboneError: the model has no such parameter, or it has another shape.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in weights.items():
        found = tuple(parameters[name].shape) if name in parameters else "missing"
        if found != tuple(tensor.shape):
            raise BackboneError(
                f"The PEFT method replaces parameter {name!r} by a tensor of shape {list(tensor.shape)}, but in the "
                f"backbone it is {list(found) if name in parameters else found}; use a prompt that was trained on this "
                "backbone."
            )
    new = {id(parameters[name]): tensor for name, tensor in weights.items()}
    places = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if id(parameter) in new
    ]
    try:
        for module, name, parameter in places:
            # Past nn.Module's own check, which takes nothing but leaves of the class Parameter.
            module._parameters[name] = new[id(parameter)]  # type: ignore[assignment]
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter
