"""Prompts of any methods and lengths as few packs: those that can share a forward pass lie side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from panda_fusion.plugin_manager import peft_methods
from panda_fusion.prompt_file import check_backbone, check_stored

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.peft_method import PEFTMethod
    from panda_fusion.prompt import Prompt

LARGEST_PACK = 32
"""Prompts in one pack; more gain nothing, since a pass holds a fixed number of tokens over all of them."""


@dataclass(frozen=True)
class PromptPack:
    """G prompts of one method and shape.

    Attributes:
        places: which of the prompts they are, [G] indices.
        method: their PEFT method.
        tensors: its trainable tensors [G, ...] float32 on the CPU.
    """

    places: tuple[int, ...]
    method: PEFTMethod
    tensors: dict[str, torch.Tensor]


def prompt_packs(prompts: Sequence[Prompt], backbone: Backbone, largest: int = LARGEST_PACK) -> Iterator[PromptPack]:
    """Put prompts into packs, one at a time in memory. Methods that cannot be packed make packs of one.

    Args:
        prompts: prompts of the backbone, of any PEFT methods.
        backbone: the frozen backbone.
        largest: prompts in one pack at most.

    Raises:
        PromptFileError: a prompt is another backbone's, or its tensors do not fit this one.
    """
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        check_backbone(prompt, backbone.info, backbone.name)
        check_stored(prompt, backbone)
        places.setdefault(prompt.method, []).append(place)
    for spec, group in places.items():
        method = peft_methods().create(spec)
        size = largest if method.packable else 1
        for start in range(0, len(group), size):
            members = group[start : start + size]
            trainable = [method.from_stored(prompts[place].tensors, backbone.shape) for place in members]
            tensors = {name: torch.stack([one[name] for one in trainable]) for name in trainable[0]}
            yield PromptPack(tuple(members), method, tensors)
