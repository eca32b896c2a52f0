"""Source prompts side by side: checked against each other and stacked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from panda_fusion.errors import PromptFileError
from panda_fusion.prompt import Lineage, SourceInfo
from panda_fusion.prompt_match import check_one_method

if TYPE_CHECKING:
    from panda_fusion.backbone import BackboneShape
    from panda_fusion.distillation import DistillationMethods
    from panda_fusion.peft_method import PEFTMethod
    from panda_fusion.prompt import Prompt
    from panda_fusion.similarity import Similarity


def stack_sources(sources: Sequence[Prompt], shape: BackboneShape) -> tuple[PEFTMethod, dict[str, torch.Tensor]]:
    """K source prompts as one pack.

    Args:
        sources: prompts of one backbone, at least one.
        shape: sizes of that backbone.

    Returns:
        Their method, and its trainable tensors [K, ...] float32 on the CPU.

    Raises:
        PromptFileError: the sources differ in method or shape.
    """
    from panda_fusion.plugin_manager import peft_methods

    check_one_method([(source.path or source.task.name, source.method) for source in sources])
    first = sources[0]
    for other in sources[1:]:
        if _sizes(other) != _sizes(first):
            raise PromptFileError(
                f"Sources must have tensors of one shape to be used together, but {_name(first)} has {_sizes(first)} "
                f"and {_name(other)} has {_sizes(other)}; transfer from them one at a time."
            )
    method = peft_methods().create(first.method)
    trainable = [method.from_stored(source.tensors, shape) for source in sources]
    return method, {name: torch.stack([one[name] for one in trainable]) for name in trainable[0]}


def _sizes(prompt: Prompt) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in sorted(prompt.tensors.items())}


def _name(prompt: Prompt) -> str:
    return repr(prompt.path or prompt.task.name)


def start_from(source: Prompt, method: PEFTMethod, shape: BackboneShape) -> dict[str, torch.Tensor]:
    """The trainable tensors of `method` that start at a source prompt (vanilla transfer, SPoT).

    Raises:
        PromptFileError: the source is of another method or shape.
        OptionError: the method's options cannot start from a stored prompt.
    """
    if method.stored().spec != source.method:
        raise PromptFileError(
            f"Prompt {_name(source)} is {source.method}, so training cannot start from it with {method.spec}; leave "
            "--method out or give the same one."
        )
    return method.from_stored(source.tensors, shape)


def source_info(source: Prompt, similarity: float | None = None) -> SourceInfo:
    """What a prompt's file says of one source; the folders of this machine are left out."""
    return SourceInfo(path=Path(source.path).name, sha256=source.sha256, task=source.task.name, similarity=similarity)


def transfer_lineage(
    sources: Sequence[Prompt], similarities: Sequence[float], methods: DistillationMethods, similarity: Similarity
) -> Lineage:
    """What a transferred prompt's file says of where it comes from."""
    return Lineage(
        sources=tuple(source_info(source, value) for source, value in zip(sources, similarities, strict=True)),
        teacher=methods.teacher.spec,
        fusion=methods.fusion.spec,
        kd=methods.kd.spec,
        similarity=similarity.spec,
        lambda_=methods.lambda_,
    )
