"""Bottleneck adapters: small networks behind the sublayers of every layer (Houlsby et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from panda_fusion import hookimpl
from panda_fusion.errors import BackboneError
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.method import Options
from panda_fusion.peft_method import PEFTMethod

if TYPE_CHECKING:
    import torch

    from panda_fusion.backbone import Backbone, BackboneShape
    from panda_fusion.injection import Injection, OutputTransform, Rows
    from panda_fusion.layout import Layout


class AdapterOptions(Options, frozen=True, kw_only=True):
    """Options of `adapter`."""

    reduction: Annotated[int, Meta(ge=1, le=65536, description="hidden size divided by the size of the bottleneck")] = (
        16
    )
    placement: Annotated[
        Literal["both", "feedforward"],
        Meta(description="behind attention and feed-forward (Houlsby), or behind feed-forward alone (Pfeiffer)"),
    ] = "both"
    activation: Annotated[Literal["gelu", "relu", "swish"], Meta(description="function between the projections")] = (
        "gelu"
    )


class Adapter(PEFTMethod):
    """Houlsby et al.: h + up(f(down(h))) behind a sublayer's output projection, before the residual is added.

    Tensors, A being the adapters of a layer (attention's first) and B = hidden / reduction, rounded down, at least 1:
    `down_weight` [layers, A, hidden, B], `down_bias` [layers, A, B], `up_weight` [layers, A, B, hidden], `up_bias`
    [layers, A, hidden]. `up` starts at zero, so that an untrained adapter leaves the backbone exactly as it is, `down`
    normal with variance 1 / hidden; Houlsby et al. draw both near zero to the same end.
    """

    Options = AdapterOptions
    learning_rate = 1e-3
    options: AdapterOptions

    def virtual_tokens(self) -> int:
        return 0

    def stored_shapes(self, shape: BackboneShape) -> dict[str, tuple[int, ...]]:
        adapters = (shape.layers, 2 if self.options.placement == "both" else 1)
        bottleneck = max(1, shape.hidden // self.options.reduction)
        return {
            "down_weight": (*adapters, shape.hidden, bottleneck),
            "down_bias": (*adapters, bottleneck),
            "up_weight": (*adapters, bottleneck, shape.hidden),
            "up_bias": (*adapters, shape.hidden),
        }

    def create(self, backbone: Backbone, generator: torch.Generator) -> dict[str, torch.Tensor]:
        import torch

        _known(backbone.shape.layout)
        tensors = {name: torch.zeros(size) for name, size in self.stored_shapes(backbone.shape).items()}
        tensors["down_weight"].normal_(0, backbone.shape.hidden**-0.5, generator=generator)
        return tensors

    def inject(self, tensors: Mapping[str, torch.Tensor], shape: BackboneShape) -> Injection:
        from panda_fusion.injection import Injection, per_layer

        layout = _known(shape.layout)
        names = [layout.feedforward_outputs]
        if self.options.placement == "both":
            names.insert(0, layout.attention_outputs)
        # Unbound once: taking slices one by one would make the backward pass write whole tensors for each.
        parts = {name: tensor.flatten(1, 2).unbind(1) for name, tensor in tensors.items()}
        transforms = [
            _bottleneck({name: part[place] for name, part in parts.items()}, self.options.activation)
            for place in range(shape.layers * len(names))
        ]
        outputs: dict[str, OutputTransform | tuple[OutputTransform, ...]] = {}
        for place, modules in enumerate(names):
            outputs |= per_layer(modules, transforms[place :: len(names)])
        return Injection(outputs=outputs)


def _known(layout: Layout | None) -> Layout:
    if layout is None:
        raise BackboneError(
            "PEFT method 'adapter' sits behind the sublayers of a backbone, and this one is of an architecture whose "
            "sublayers are not known; use prefix or prompt, or a backbone of another architecture (docs/support.md)."
        )
    return layout


def _bottleneck(tensors: Mapping[str, torch.Tensor], activation: str) -> OutputTransform:
    """The transform of one adapter; its tensors are [G, hidden, B], [G, B], [G, B, hidden], [G, hidden]."""

    def transform(output: torch.Tensor, rows: Rows) -> torch.Tensor:
        import torch

        # [batch, tokens, hidden] with one batch per prompt, or, where rows are mixed, one per row.
        own = {name: tensor.to(output.dtype) for name, tensor in tensors.items()}
        states = output
        if rows.index is not None:
            own = {name: tensor.index_select(0, rows.index) for name, tensor in own.items()}
        else:
            states = output.reshape(rows.prompts, -1, output.shape[-1])
        middle = torch.baddbmm(own["down_bias"].unsqueeze(1), states, own["down_weight"])
        if activation == "gelu":
            middle = torch.nn.functional.gelu(middle)
        elif activation == "relu":
            middle = middle.relu()
        else:
            middle = torch.nn.functional.silu(middle)
        return output + torch.baddbmm(own["up_bias"].unsqueeze(1), middle, own["up_weight"]).view(output.shape)

    return transform


@hookimpl
def register_peft_methods(register: RegisterMethod) -> None:
    register("adapter", Adapter, help="bottleneck networks behind the sublayers (Houlsby et al.)")
