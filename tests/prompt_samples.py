"""Prompts with random numbers, and files made wrong on purpose, for the tests of prompt files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from panda_fusion.prompt import BackboneInfo, Lineage, Prompt, SourceInfo, TaskInfo

BACKBONE = BackboneInfo(
    name="some/bert",
    architecture="bert",
    hidden=16,
    layers=2,
    heads=4,
    kv_heads=4,
    head_dim=4,
    fingerprint="ab" * 32,
)
TASK = TaskInfo(
    name="nli",
    kind="classification",
    inputs=("premise", "hypothesis"),
    label="label",
    labels=("yes", "maybe", "no"),
    metric="accuracy",
)


def make_prompt(method: str = "prefix", length: int = 3, **changes: Any) -> Prompt:
    """A prompt of random numbers for `BACKBONE` and `TASK`; `changes` replace attributes.

    Any other method string than `prefix` and `prompt` is taken as it is, with the tensors of a prefix.
    """
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    spelled = {
        "prefix": f"prefix:length={length},projection=0,init=normal",
        "prompt": f"prompt:length={length},init=normal,text=none",
    }
    values: dict[str, Any] = {
        "method": spelled.get(method, method),
        "tensors": (
            {"key": normal(2, length, 4, 4), "value": normal(2, length, 4, 4)}
            if method != "prompt"
            else {"embedding": normal(length, 16)}
        ),
        "head": {"classifier.weight": normal(3, 16), "classifier.bias": normal(3)},
        "embedding": normal(16),
        "backbone": BACKBONE,
        "task": TASK,
        "training": {"seed": 3, "steps": 40, "versions": {"torch": "2.6"}},
        "scores": {"best": 0.75, "last": 0.5, "metric": "accuracy"},
        "lineage": Lineage(
            sources=(SourceInfo(path="mnli.safetensors", sha256="cd" * 32, task="mnli", similarity=0.5),),
            teacher="target-like",
            fusion="late",
            kd="mse",
            similarity="panda",
            lambda_=0.05,
        ),
    }
    return Prompt(**(values | changes))


def contents(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file, read with safetensors alone."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


def rewrite(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a file with safetensors alone, with none of our checks."""
    save_file(tensors, path, metadata)


def change_json(path: Path, field: str, **changes: Any) -> None:
    """Replace members of one JSON metadata field of a file."""
    tensors, metadata = contents(path)
    metadata[field] = json.dumps(json.loads(metadata[field]) | changes)
    rewrite(path, tensors, metadata)
