"""Linear layers of a frozen backbone on the CPU, their weights laid out once as the hardware reads them.

oneDNN multiplies blocks of a matrix, so a plain weight is laid out anew for every product, forward and backward. A
frozen weight never changes: it is laid out once for either direction. The products are the same; on four
cores they take a tenth to a quarter less time. What this costs is memory: a second copy of the weights, and a third
one once gradients have flowed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

LARGEST = 2 * 2**30
"""Bytes of linear weights up to which they are packed: copies of larger ones would be missed elsewhere."""


class PackedLinear(nn.Linear):
    """A frozen linear layer with a packed copy of its weight.

    Its parameters are those of the layer that it was made of, and used whenever they have been replaced.
    """

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, parameter)
        if layer.bias is None:
            self.register_parameter("bias", None)
        self.training = layer.training
        self._sources = (layer.weight, layer.bias)
        self._packed = _packed(layer.weight)
        self._transposed: torch.Tensor | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """What `nn.Linear` gives."""
        own = self._parameters  # attributes of a module are looked up slowly
        if own["weight"] is not self._sources[0] or own["bias"] is not self._sources[1]:
            return nn.functional.linear(input, own["weight"], own["bias"])  # type: ignore[arg-type]
        if torch.is_grad_enabled() and input.requires_grad:
            product: torch.Tensor = _Product.apply(input, self)
            return product
        return self.product(input)

    def product(self, input: torch.Tensor) -> torch.Tensor:
        """input W^T + b."""
        return _product(input, self._packed, self._sources[1])

    def transposed_product(self, gradient: torch.Tensor) -> torch.Tensor:
        """gradient W."""
        if self._transposed is None:
            self._transposed = _packed(self._sources[0].t().contiguous())
        return _product(gradient, self._transposed, None)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, layer: PackedLinear) -> torch.Tensor:
        ctx.layer = layer
        return layer.product(input)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.layer.transposed_product(gradients[0]), None


def pack_linear_layers(layers: Iterable[nn.Module]) -> bool:
    """Replace the linear layers within the layers of a frozen bfloat16 model on the CPU by packed ones, in place.

    Returns:
        Whether it was done: not where PyTorch has no oneDNN with bfloat16, nor for weights of more than `LARGEST`.
    """
    if not can_pack():
        return False
    places = [
        (module, name, child)
        for layer in layers
        for module in layer.modules()
        for name, child in module.named_children()
        if type(child) is nn.Linear and child.weight.dtype == torch.bfloat16
    ]
    if sum(2 * child.weight.numel() for _, _, child in places) > LARGEST:
        return False
    for module, name, child in places:
        setattr(module, name, PackedLinear(child))
    return True


def can_pack() -> bool:
    """Whether this PyTorch has what is needed on this processor. These operators are made for its own compiler, so that
    another release may lack them."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        weight = torch.ones(32, 32, dtype=torch.bfloat16)
        return torch.equal(_product(weight, _packed(weight), None), torch.full_like(weight, 32))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def _packed(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return packed


def _product(input: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, packed, bias, "none", [], "")
    return product
