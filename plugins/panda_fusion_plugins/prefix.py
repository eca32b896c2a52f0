"""Prefix tuning: trained keys and values in front of every layer's attention (P-tuning v2)."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from panda_fusion import hookimpl
from panda_fusion.errors import OptionError
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.method import Options
from panda_fusion.peft_method import PEFTMethod

if TYPE_CHECKING:
    import torch

    from panda_fusion.backbone import Backbone, BackboneShape
    from panda_fusion.injection import Injection


class PrefixOptions(Options, frozen=True, kw_only=True):
    """Options of `prefix`."""

    length: Annotated[int, Meta(ge=1, le=4096, description="virtual tokens in every layer")] = 20
    projection: Annotated[
        int,
        Meta(ge=0, le=65536, description="hidden size of the MLP re-parameterisation; 0 trains keys and values"),
    ] = 0
    init: Annotated[
        Literal["normal", "sparse", "constant", "vocab"],
        Meta(
            description="how keys and values start: normal at the backbone's scale; the same with a tenth set to zero; "
            "all zero; those that the backbone computes for sampled tokens"
        ),
    ] = "normal"

    def __post_init__(self) -> None:
        if self.projection and self.init != "normal":
            raise ValueError("init is that of keys and values, which projection computes; leave one of the two out.")


SPARSITY = 0.1
"""Share of the virtual tokens at which an element of a sparse prefix is zero (torch.nn.init.sparse_)."""


class Prefix(PEFTMethod):
    """P-tuning v2: P trained keys and values per layer, no query of their own.

    Without `projection` the trainable tensors are the stored ones, `key` and `value`
    [layers, P, kv_heads, head_dim]. With it a matrix [P, hidden] goes through an MLP (linear, tanh, linear)
    whose output is all keys and values; only that output is stored.

    How they start (PanDa, Figure 2, compares the first three): `normal`, N(0, initializer_range of the backbone);
    `sparse`, the same, then for every layer, head and dimension ceil(0.1 P) of the P tokens set to zero; `constant`,
    zeros; `vocab`, the keys and values that the plain backbone computes for a text of P sampled tokens.
    """

    Options = PrefixOptions
    peft_types = ("PREFIX_TUNING",)
    options: PrefixOptions

    def virtual_tokens(self) -> int:
        return self.options.length

    def _stored_shape(self, shape: BackboneShape) -> tuple[int, int, int, int]:
        return (shape.layers, self.options.length, shape.kv_heads, shape.head_dim)

    def stored_shapes(self, shape: BackboneShape) -> dict[str, tuple[int, ...]]:
        return {"key": self._stored_shape(shape), "value": self._stored_shape(shape)}

    def create(self, backbone: Backbone, generator: torch.Generator) -> dict[str, torch.Tensor]:
        import torch

        shape = backbone.shape

        def normal(*sizes: int) -> torch.Tensor:
            return torch.randn(sizes, generator=generator) * shape.initializer_range

        middle = self.options.projection
        if not middle:
            size = self._stored_shape(shape)
            if self.options.init == "constant":
                return {"key": torch.zeros(size), "value": torch.zeros(size)}
            if self.options.init == "vocab":
                from panda_fusion.starting_points import sampled_tokens, token_keys_and_values

                key, value = token_keys_and_values(backbone, sampled_tokens(backbone, size[1], generator))
                return {"key": key, "value": value}
            drawn = {"key": normal(*size), "value": normal(*size)}
            return (
                {name: _thinned(one, generator) for name, one in drawn.items()}
                if self.options.init == "sparse"
                else drawn
            )
        width = shape.layers * 2 * shape.kv_heads * shape.head_dim
        return {
            "embedding": torch.randn((self.options.length, shape.hidden), generator=generator),
            "down_weight": torch.randn((shape.hidden, middle), generator=generator) * shape.hidden**-0.5,
            "down_bias": torch.zeros(middle),
            "up_weight": torch.randn((middle, width), generator=generator) * middle**-0.5,
            "up_bias": torch.zeros(width),
        }

    def _key_value(
        self, tensors: Mapping[str, torch.Tensor], shape: BackboneShape
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[G, layers, P, kv_heads, head_dim] keys and values from trainable tensors [G, ...]."""
        if not self.options.projection:
            return tensors["key"], tensors["value"]
        middle = (tensors["embedding"] @ tensors["down_weight"] + tensors["down_bias"].unsqueeze(1)).tanh()
        flat = middle @ tensors["up_weight"] + tensors["up_bias"].unsqueeze(1)
        pack, length = flat.shape[:2]
        split = flat.view(pack, length, shape.layers, 2, shape.kv_heads, shape.head_dim)
        key, value = split.permute(3, 0, 2, 1, 4, 5)
        return key, value

    def inject(self, tensors: Mapping[str, torch.Tensor], shape: BackboneShape) -> Injection:
        from panda_fusion.injection import Injection

        key, value = self._key_value(tensors, shape)
        return Injection(key=key, value=value)

    def stored(self) -> PEFTMethod:
        if not self.options.projection and self.options.init == "normal":
            return self
        plain = Prefix(PrefixOptions(length=self.options.length))
        plain.name = self.name
        return plain

    def to_stored(self, tensors: Mapping[str, torch.Tensor], shape: BackboneShape) -> dict[str, torch.Tensor]:
        key, value = self._key_value({name: t.detach().unsqueeze(0) for name, t in tensors.items()}, shape)
        return {"key": key[0].clone(), "value": value[0].clone()}

    def from_stored(self, stored: Mapping[str, torch.Tensor], shape: BackboneShape) -> dict[str, torch.Tensor]:
        if self.options.projection:
            raise OptionError(
                "A stored prefix has no MLP to go on with, so prefix:projection must be 0 to start from one; "
                f"projection is {self.options.projection}."
            )
        return super().from_stored(stored, shape)

    def token_matrix(self, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[P, layers * 2 * kv_heads * head_dim], every layer's key beside its value."""
        import torch

        both = torch.stack((stored["key"], stored["value"]), dim=1)
        return both.permute(2, 0, 1, 3, 4).flatten(1)


def _thinned(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """[layers, P, kv_heads, head_dim] with ceil(SPARSITY * P) of the P tokens, drawn for each column, set to zero."""
    import torch

    rank = torch.rand(tensor.shape, generator=generator).argsort(dim=1).argsort(dim=1)
    return tensor.masked_fill(rank < ceil(SPARSITY * tensor.shape[1]), 0.0)


@hookimpl
def register_peft_methods(register: RegisterMethod) -> None:
    register("prefix", Prefix, help="trained keys and values in every layer (P-tuning v2)")
