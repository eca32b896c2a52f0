"""What the checks feed to methods: tiny backbones, encoded texts and made-up prompts."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from panda_fusion.testing.backbones import make_tiny_backbone
from panda_fusion.testing.check import ConformanceError

if TYPE_CHECKING:
    import torch

    from panda_fusion.backbone import Backbone
    from panda_fusion.dataset import EncodedSet
    from panda_fusion.peft_method import PEFTMethod
    from panda_fusion.prompt import Prompt

PLAIN, GROUPED, NARROW, SHARED = "plain", "grouped key/value heads", "narrow embeddings", "shared layers"
ODD_BACKBONES: dict[str, tuple[str, dict[str, int]]] = {
    PLAIN: ("bert", {"num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 20}),
    GROUPED: ("qwen3", {"num_hidden_layers": 2, "hidden_size": 40, "num_attention_heads": 4, "head_dim": 16}),
    NARROW: ("electra", {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3, "embedding_size": 10}),
    SHARED: ("albert", {"num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 2, "embedding_size": 10}),
}
"""What is special about a tiny backbone -> model type and sizes, all different, so that mixing two up shows."""

TEXTS = (
    "the dog is in the garden",
    "she has a lamp",
    "it is not for you and it was not good",
    "no",
    "what was in the box that he has",
    "we can see a red boat on the river today",
)


@cache
def tiny_backbone(model_type: str) -> Backbone:
    """A tiny random backbone on the CPU in float32, made once per process."""
    return _made(model_type, {})


@cache
def sample_backbone(special: str) -> Backbone:
    """One of `ODD_BACKBONES`, made once per process."""
    model_type, config = ODD_BACKBONES[special]
    return _made(model_type, config)


def _made(model_type: str, config: dict[str, int]) -> Backbone:
    import torch

    from panda_fusion.backbone import load_backbone

    with tempfile.TemporaryDirectory(prefix="panda-fusion-") as folder:
        path = make_tiny_backbone(model_type, Path(folder) / model_type, config=config)
        return load_backbone(str(path), device=torch.device("cpu"), dtype=torch.float32)


def encoded_texts(backbone: Backbone) -> EncodedSet:
    """`TEXTS` with two classes, tokenised."""
    from panda_fusion.dataset import encode

    labels = [number % 2 for number in range(len(TEXTS))]
    return encode(backbone, [TEXTS], labels, "classification", 32)


def perturbed(method: PEFTMethod, backbone: Backbone, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Trainable tensors of `count` prompts, [G, ...], as training might leave them: created, then moved at
    random (a method that starts as the identity would otherwise hide a mistake)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    made = [method.create(backbone, generator) for _ in range(count)]
    return {
        name: torch.stack([one[name] for one in made])
        + 0.3 * torch.randn((count, *made[0][name].shape), generator=generator)
        for name in made[0]
    }


def sample_method() -> PEFTMethod:
    """A registered PEFT method that has virtual tokens, so that metrics over tokens have something to read.

    Raises:
        ConformanceError: none is registered.
    """
    from panda_fusion.plugin_manager import peft_methods

    registry = peft_methods()
    for name in registry.names():
        method = registry.create(name)
        if method.virtual_tokens() > 0:
            return method
    raise ConformanceError(
        "no PEFT method with virtual tokens is registered, which this check needs; take the restriction of "
        "PANDA_FUSION_PLUGINS back"
    )


def sample_prompt(backbone: Backbone, method: PEFTMethod, seed: int, sized: Backbone | None = None) -> Prompt:
    """A made-up prompt of a method for a backbone, with a head and a task embedding; with `sized` its tensors and
    embedding have that backbone's sizes and do not fit."""
    import torch

    from panda_fusion.prompt import Prompt, TaskInfo

    sized = sized or backbone
    generator = torch.Generator().manual_seed(100 + seed)
    trainable = {name: tensor[0] for name, tensor in perturbed(method, sized, 1, seed).items()}
    return Prompt(
        method=method.stored().spec,
        tensors=method.to_stored(trainable, sized.shape),
        head=backbone.head(2).create(generator),
        embedding=torch.randn(sized.shape.hidden, generator=generator),
        backbone=backbone.info,
        task=TaskInfo(
            name=f"sample-{seed}",
            kind="classification",
            inputs=("text",),
            label="label",
            labels=("no", "yes"),
            metric="accuracy",
        ),
        path=f"sample-{seed}.safetensors",
    )
