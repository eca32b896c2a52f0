"""A prompt: the trained tensors of a PEFT method, the task head, and everything one must know about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from panda_fusion.task import Columns

if TYPE_CHECKING:
    import torch


class BackboneInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Which frozen backbone a prompt belongs to.

    Attributes:
        name: name on the Hub as the user gave it, or the last part of a folder's path.
        architecture: transformers model type (`bert`, `roberta`, ...).
        hidden: hidden size.
        layers: number of layers.
        heads: attention heads.
        kv_heads: key/value heads (equal to `heads` without grouped queries).
        head_dim: size of one head.
        fingerprint: hex digest of the weights (`panda_fusion.backbone.fingerprint`).
        embedding_size: width of the input embeddings where it is not the hidden size.
    """

    name: str
    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    fingerprint: str
    embedding_size: int | None = None

    @property
    def output_width(self) -> int:
        """Width of the last hidden states: OPT 350m projects them back to the width of its embeddings."""
        return self.embedding_size if self.architecture == "opt" and self.embedding_size else self.hidden


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The task a prompt was trained on; enough to predict without the task's definition."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metric: str
    columns: Columns = Columns()


class SourceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One source of a prompt: its file's name without folders, the file's sha256, task, similarity to the target."""

    path: str
    sha256: str
    task: str
    similarity: float | None = None


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a prompt comes from. Empty for one trained from scratch; vanilla transfer has one source."""

    sources: tuple[SourceInfo, ...] = ()
    teacher: str | None = None
    fusion: str | None = None
    kd: str | None = None
    similarity: str | None = None
    lambda_: float | None = msgspec.field(default=None, name="lambda")


@dataclass(frozen=True)
class Prompt:
    """A prompt in memory. Tensors are float32 on the CPU, without a pack axis.

    Attributes:
        method: full method string of the stored form (`prefix:length=20,...`).
        tensors: stored tensors of the PEFT method (`key`, `value`, `embedding`, ...).
        head: head parameters under the names transformers gives them (`classifier.weight`, ...).
        embedding: [hidden], the task embedding of PanDa eq. 2; None if it was not computed.
        backbone: which backbone it belongs to.
        task: which task it was trained on.
        training: recipe, seed, steps, library versions: JSON values.
        scores: metric names and values (`best`, `last`, ...): JSON values.
        lineage: where it comes from.
        path: the file it was read from, as given; empty for one that never was in a file.
        sha256: hex digest of that file.
    """

    method: str
    tensors: Mapping[str, torch.Tensor]
    head: Mapping[str, torch.Tensor]
    embedding: torch.Tensor | None
    backbone: BackboneInfo
    task: TaskInfo
    training: Mapping[str, object] = field(default_factory=dict)
    scores: Mapping[str, object] = field(default_factory=dict)
    lineage: Lineage = field(default_factory=Lineage)
    path: str = ""
    sha256: str = ""
