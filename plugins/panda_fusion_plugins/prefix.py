"""Prefix tuning: trained keys and values in front of every layer's attention (P-tuning v2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from panda_fusion import hookimpl
from panda_fusion.errors import OptionError
from panda_fusion.hookspecs import RegisterMethod
from panda_fusion.method import Options
from panda_fusion.peft_method import PEFTMethod

if TYPE_CHECKING:
    import torch

    from panda_fusion.backbone import BackboneShape
    from panda_fusion.injection import Injection


class PrefixOptions(Options, frozen=True, kw_only=True):
    """Options of `prefix`."""

    length: Annotated[int, Meta(ge=1, le=4096, description="virtual tokens in every layer")] = 20
    projection: Annotated[
        int,
        Meta(ge=0, le=65536, description="hidden size of the MLP re-parameterisation; 0 trains keys and values"),
    ] = 0


class Prefix(PEFTMethod):
    """P-tuning v2: P trained keys and values per layer, no query of their own.

    Without `projection` the trainable tensors are the stored ones, `key` and `value`
    [layers, P, kv_heads, head_dim]. With it a matrix [P, hidden] goes through an MLP (linear, tanh, linear)
    whose output is all keys and values; only that output is stored.
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

    def create(self, shape: BackboneShape, generator: torch.Generator) -> dict[str, torch.Tensor]:
        import torch

        def normal(*sizes: int) -> torch.Tensor:
            return torch.randn(sizes, generator=generator) * shape.initializer_range

        middle = self.options.projection
        if not middle:
            return {"key": normal(*self._stored_shape(shape)), "value": normal(*self._stored_shape(shape))}
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
        if not self.options.projection:
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


@hookimpl
def register_peft_methods(register: RegisterMethod) -> None:
    register("prefix", Prefix, help="trained keys and values in every layer (P-tuning v2)")
