"""Which feed-forward neurons a prompt activates (Su et al., "On Transferability of Prompt Tuning")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from panda_fusion.errors import BackboneError
from panda_fusion.injection import Injection, Rows, per_layer
from panda_fusion.prompt_packs import prompt_packs

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.injection import OutputTransform
    from panda_fusion.prompt import Prompt


def neuron_modules(backbone: Backbone) -> tuple[str, ...]:
    """Per layer the module whose output are the activations inside the feed-forward sublayer.

    Raises:
        BackboneError: the architecture is one whose feed-forward sublayers are not known.
    """
    if backbone.shape.layout is None:
        raise BackboneError(
            f"Backbone {backbone.name!r} ({backbone.info.architecture}) is of an architecture whose feed-forward "
            "neurons are not known, so activated neurons cannot be compared; use --similarity panda or eavg."
        )
    return backbone.shape.layout.neurons


@torch.inference_mode()
def activated_neurons(backbone: Backbone, prompts: Sequence[Prompt], layers: Sequence[int]) -> torch.Tensor:
    """Which feed-forward neurons are activated (above 0) by each prompt, at the one token of an otherwise empty text.

    The text is the token that the backbone begins every text with (`[CLS]`, `<s>`), so no task's data take
    part. Prompts of one method and shape share a forward pass.

    Args:
        backbone: the frozen backbone of all prompts.
        prompts: N prompts, of any PEFT methods.
        layers: which layers' neurons, from 0.

    Returns:
        [N, neurons] bool on the CPU, the layers' neurons one layer after the other.

    Raises:
        BackboneError: the backbone's feed-forward sublayers are not known.
        PromptFileError: a prompt does not fit the backbone.
    """
    modules = neuron_modules(backbone)
    token = _first_token(backbone)
    found: list[torch.Tensor | None] = [None] * len(prompts)
    for pack in prompt_packs(prompts, backbone):
        count = len(pack.places)
        tensors = {name: tensor.to(backbone.device) for name, tensor in pack.tensors.items()}
        recorded: dict[int, torch.Tensor] = {}
        injection = _recording(pack.method.inject(tensors, backbone.shape), modules, recorded)
        ids = torch.full((count, 1), token, dtype=torch.int64, device=backbone.device)
        backbone.forward(ids, torch.ones_like(ids[:, 0]), None, injection, Rows(count))
        active = torch.cat([recorded[layer] for layer in layers], dim=1).cpu()
        for place, row in zip(pack.places, active, strict=True):
            found[place] = row
    return torch.stack([row for row in found if row is not None])


def _first_token(backbone: Backbone) -> int:
    """What stands at the head of a text; decoders and T5 without such a token take the one at its end."""
    for name in ("cls_token_id", "bos_token_id", "eos_token_id"):
        token = getattr(backbone.tokenizer, name, None)
        if token is not None:
            return int(token)
    raise BackboneError(
        f"The tokenizer of backbone {backbone.name!r} has no token that begins or ends a text, which activated neurons "
        "are read at; use --similarity panda or eavg."
    )


def _recording(injection: Injection, modules: Sequence[str], recorded: dict[int, torch.Tensor]) -> Injection:
    """The injection with a tap on every layer's module; it sees what the method itself makes of the module's output."""
    taps = []
    for layer, name in enumerate(modules):
        own = injection.outputs.get(name)
        if isinstance(own, tuple):
            own = own[modules[:layer].count(name)]
        taps.append(_tap(own, layer, recorded))
    return replace(injection, outputs={**injection.outputs, **per_layer(modules, taps)})


def _tap(own: OutputTransform | None, layer: int, recorded: dict[int, torch.Tensor]) -> OutputTransform:
    def transform(output: torch.Tensor, rows: Rows) -> torch.Tensor:
        result = output if own is None else own(output, rows)
        # The text is one token, so it is the last position; some architectures flatten rows and positions.
        recorded[layer] = result.reshape(rows.prompts, -1, result.shape[-1])[:, -1] > 0
        return result

    return transform
