"""A PEFT method without virtual tokens: every layer's output is scaled and shifted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from msgspec import Meta

from panda_fusion.backbone import Backbone, BackboneShape
from panda_fusion.injection import Injection, OutputTransform, Rows, per_layer
from panda_fusion.method import Options
from panda_fusion.peft_method import PEFTMethod


class LayerAffineOptions(Options, frozen=True, kw_only=True):
    """Options of `layer-affine`."""

    scale: Annotated[bool, Meta(description="train a scale beside the shift")] = True


class LayerAffine(PEFTMethod):
    """h * scale + shift after every layer, close to (IA)^3 and to tuning biases only.

    Tensors: `shift` and, with the option `scale`, `scale`, each [layers, hidden]. Both start as the identity,
    so that an untrained prompt leaves the backbone as it is.
    """

    Options = LayerAffineOptions
    options: LayerAffineOptions

    def virtual_tokens(self) -> int:
        return 0

    def stored_shapes(self, shape: BackboneShape) -> dict[str, tuple[int, ...]]:
        names = ("shift", "scale") if self.options.scale else ("shift",)
        return dict.fromkeys(names, (shape.layers, shape.hidden))

    def create(self, backbone: Backbone, generator: torch.Generator) -> dict[str, torch.Tensor]:
        size = (backbone.shape.layers, backbone.shape.hidden)
        tensors = {"shift": torch.zeros(size)}
        if self.options.scale:
            tensors["scale"] = torch.ones(size)
        return tensors

    def inject(self, tensors: Mapping[str, torch.Tensor], shape: BackboneShape) -> Injection:
        scale = tensors["scale"] if self.options.scale else None
        transforms = [
            _affine(None if scale is None else scale[:, layer], tensors["shift"][:, layer])
            for layer in range(shape.layers)
        ]
        return Injection(outputs=per_layer(shape.layer_modules, transforms))


def _affine(scale: torch.Tensor | None, shift: torch.Tensor) -> OutputTransform:
    """The transform of one layer; scale and shift are [G, hidden]."""

    def transform(output: torch.Tensor, rows: Rows) -> torch.Tensor:
        # [G, hidden] -> [N, 1, hidden], in the backbone's dtype: each row gets what its own prompt trained.
        moved = output
        if scale is not None:
            moved = moved * rows.spread(scale, len(output)).unsqueeze(1).to(output.dtype)
        return moved + rows.spread(shift, len(output)).unsqueeze(1).to(output.dtype)

    return transform
