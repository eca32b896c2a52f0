"""Prompts to and from the folder that the PEFT library writes.

PEFT itself is not needed. The folder holds adapter_config.json and adapter_model.safetensors (layout checked
against peft 0.21): `prompt_embeddings` is [P, width] for a prompt and [P, layers * 2 * kv_heads * head_dim]
for a prefix, where every row holds layer 0's key, layer 0's value, layer 1's key and so on; head parameters
are `base_model.` and the name that transformers gives them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from panda_fusion import __version__, atomic_write
from panda_fusion.errors import OutputError, PromptFileError
from panda_fusion.printable import printable
from panda_fusion.prompt import BackboneInfo, Prompt, TaskInfo
from panda_fusion.prompt_file import (
    HEAD_PREFIX,
    PEFT_PREFIX,
    check_head,
    check_tensors,
)
from panda_fusion.prompt_metadata import PromptMetadata
from panda_fusion.safetensors_header import check_nesting, open_regular, read_header

if TYPE_CHECKING:
    import torch

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 2**20
"""The longest adapter_config.json that is read."""

_PICKLE_FILE = "adapter_model.bin"
_EMBEDDINGS = "prompt_embeddings"
_BASE = "base_model."
_TASK_TYPES = {
    "classification": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "extractive-qa": "QUESTION_ANS",
}
_FLOATS = ("F32", "F16", "BF16")


class PeftConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What we read of an adapter_config.json; PEFT writes more, which says nothing about the tensors."""

    peft_type: str
    task_type: str | None = None
    num_virtual_tokens: int
    token_dim: int
    num_layers: int
    num_attention_heads: int
    num_transformer_submodules: int | None = None
    base_model_name_or_path: str | None = None
    peft_version: str | None = None


def export_peft(prompt: Prompt, folder: str | os.PathLike[str]) -> list[str]:
    """Write a folder that `peft.PeftModel.from_pretrained(base model with its head, folder)` loads.

    The base model is the one of `AutoModelFor...` with `num_labels` set to the number of labels. The
    configuration is written last, so that an interrupted export does not load. Labels, scores and the
    fingerprint have no place in PEFT's files.

    Args:
        prompt: its method must store `key` and `value`, or `embedding`, and nothing else.
        folder: made if it is missing; files of the same names are replaced.

    Returns:
        Sentences about what differs between here and PEFT; to be shown to the user.

    Raises:
        PromptFileError: PEFT has no counterpart of the method or of the task's kind.
        OutputError: the folder cannot be written.
    """
    from safetensors.torch import save

    where = printable(prompt.path) or "The prompt"
    info = prompt.backbone
    task_type = _TASK_TYPES.get(prompt.task.kind)
    if task_type is None:
        raise PromptFileError(
            f"{where} is for a {printable(prompt.task.kind)} task, for which PEFT has no task type; it cannot"
            " be exported."
        )
    names = set(prompt.tensors)
    config: dict[str, Any] = {
        "auto_mapping": None,
        "base_model_name_or_path": info.name,
        "inference_mode": True,
        "modules_to_save": sorted({name.split(".")[0] for name in prompt.head}),
        "num_layers": info.layers,
        "num_transformer_submodules": 1,
        "revision": None,
        "task_type": task_type,
    }
    warnings: list[str] = []
    if names == {"key", "value"}:
        embeddings = _rows_of(prompt.tensors["key"], prompt.tensors["value"])
        config |= {
            "peft_type": "PREFIX_TUNING",
            "num_attention_heads": info.kv_heads,
            "token_dim": info.kv_heads * info.head_dim,
            "encoder_hidden_size": info.hidden,
            "init_weights": None,
            "prefix_projection": False,
        }
    elif names == {"embedding"}:
        embeddings = prompt.tensors["embedding"]
        config |= {
            "peft_type": "PROMPT_TUNING",
            "num_attention_heads": info.heads,
            "token_dim": embeddings.shape[1],
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_text": None,
            "tokenizer_name_or_path": None,
            "tokenizer_kwargs": None,
        }
        warnings.append(
            "PEFT gives the first virtual token to the head of an encoder, and panda-fusion the first token"
            " of the text, so the exported prompt predicts differently there; train it on in PEFT, or use a"
            " prefix, whose predictions are the same."
        )
    else:
        raise PromptFileError(
            f"{where} is a prompt of method {printable(prompt.method, 80)}, for which PEFT has no"
            " counterpart; only prefix and input prompts can be exported."
        )
    config["num_virtual_tokens"] = embeddings.shape[0]
    tensors = {_EMBEDDINGS: embeddings} | {_BASE + name: tensor for name, tensor in prompt.head.items()}
    data = save(
        {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()},
        {"format": "pt"},
    )
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise OutputError(
            f"Cannot write {printable(str(target))}: it is a file and PEFT wants a folder; name another place."
        )
    try:
        (target / CONFIG_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot replace {printable(str(target / CONFIG_FILE))}: {error.strerror}.") from error
    atomic_write.write_bytes(target / TENSOR_FILE, data)
    atomic_write.write_bytes(
        target / CONFIG_FILE,
        msgspec.json.format(msgspec.json.encode(config, order="sorted"), indent=2) + b"\n",
    )
    return warnings


def import_peft(
    folder: str | os.PathLike[str],
    backbone: BackboneInfo,
    task: TaskInfo,
    head_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Prompt:
    """Read a prefix or a prompt that PEFT saved.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors. Pickles (.bin) are never opened.
        backbone: the backbone that it was trained on; PEFT's files name it and carry no fingerprint.
        task: the task that it was trained on, which PEFT's files do not name.
        head_shapes: name and shape of every parameter of the backbone's head for the task
            (`Backbone.head(outputs).shapes`); None: only the output layer is checked.

    Returns:
        The prompt, without task embedding and scores; `training` tells where it comes from. Half precision is
        widened to float32.

    Raises:
        PromptFileError: files are missing or damaged, hold another method, or do not fit the backbone or the
            task.
    """
    import torch

    path = Path(folder)
    config = _read_config(path)
    where = printable(str(path / TENSOR_FILE))
    _check_config(printable(str(path / CONFIG_FILE)), config, backbone, task)
    tensors = _read_tensors(path)
    length = config.num_virtual_tokens
    embeddings = tensors.pop(_EMBEDDINGS, None)
    if embeddings is None:
        raise PromptFileError(f"{where} lacks the tensor {_EMBEDDINGS}; it holds no prefix or prompt of PEFT.")
    if config.peft_type == "PREFIX_TUNING":
        expected = (length, backbone.layers * 2 * backbone.kv_heads * backbone.head_dim)
    else:
        expected = (length, backbone.embedding_size or backbone.hidden)
    if tuple(embeddings.shape) != expected:
        raise PromptFileError(
            f"{where}: tensor {_EMBEDDINGS} has shape {list(embeddings.shape)}, and {length} virtual tokens"
            f" on {printable(backbone.name, 80)} have {list(expected)}; name the model that it was"
            " trained on."
        )
    if config.peft_type == "PREFIX_TUNING":
        rows = embeddings.view(length, backbone.layers, 2, backbone.kv_heads, backbone.head_dim)
        key, value = rows.permute(2, 1, 0, 3, 4)
        stored = {"key": key.contiguous(), "value": value.contiguous()}
    else:
        stored = {"embedding": embeddings}
    head = _head_of(where, tensors, head_shapes)
    metadata = PromptMetadata(method=_method_string(config), backbone=backbone, task=task)
    named = {PEFT_PREFIX + name: tensor for name, tensor in stored.items()}
    named |= {HEAD_PREFIX + name: tensor for name, tensor in head.items()}
    check_tensors(where, metadata, {name: ("F32", tuple(tensor.shape)) for name, tensor in named.items()})
    for name, tensor in named.items():
        if not bool(torch.isfinite(tensor).all()):
            raise PromptFileError(f"{where}: {name} holds values that are not finite; its training diverged.")
    training = {
        "imported_from": "peft",
        "peft_type": config.peft_type,
        "peft_version": config.peft_version,
        "base_model": config.base_model_name_or_path,
        "libraries": {"panda-fusion": __version__},
    }
    return Prompt(
        method=metadata.method,
        tensors=stored,
        head=head,
        embedding=None,
        backbone=backbone,
        task=task,
        training=training,
    )


def _rows_of(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Keys and values [layers, P, kv_heads, head_dim] to PEFT's [P, layers * 2 * kv_heads * head_dim]."""
    import torch

    return torch.stack((key, value), dim=1).permute(2, 0, 1, 3, 4).flatten(1)


def _method_string(config: PeftConfig) -> str:
    from panda_fusion.plugin_manager import peft_methods

    name = _importable()[config.peft_type]
    return peft_methods().create(f"{name}:length={config.num_virtual_tokens}").spec


def _importable() -> dict[str, str]:
    """PEFT type -> name of the registered method that reads it."""
    from panda_fusion.plugin_manager import peft_methods

    methods = peft_methods()
    return {kind: name for name in methods.names() for kind in methods.load(name).peft_types}


def _read_config(folder: Path) -> PeftConfig:
    path = folder / CONFIG_FILE
    where = printable(str(path))
    if not folder.is_dir():
        raise PromptFileError(
            f"{printable(str(folder))} is no folder; name the folder that PEFT's save_pretrained wrote."
        )
    if not path.exists():
        raise PromptFileError(
            f"{printable(str(folder))} holds no {CONFIG_FILE}; name the folder that PEFT's save_pretrained wrote."
        )
    try:
        with open_regular(path) as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
        if len(raw) > MAX_CONFIG_BYTES:
            raise PromptFileError(
                f"{where} is longer than {MAX_CONFIG_BYTES} bytes, which no configuration of PEFT is."
            )
        check_nesting(raw)
        # Another method's configuration lacks the fields of a prompt; name the method rather than the field.
        kind = msgspec.json.decode(raw, type=dict[str, Any]).get("peft_type")
        importable = _importable()
        if not isinstance(kind, str) or kind not in importable:
            raise PromptFileError(
                f"{where} is of PEFT type {printable(str(kind), 40)!r}; {', '.join(importable)} can be imported."
            )
        return msgspec.json.decode(raw, type=PeftConfig)
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise PromptFileError(
            f"{where} is no configuration of a PEFT prompt ({printable(str(error), 200)}); save it again with"
            " save_pretrained."
        ) from error


def _check_config(where: str, config: PeftConfig, backbone: BackboneInfo, task: TaskInfo) -> None:
    if config.num_transformer_submodules not in (None, 1):
        raise PromptFileError(f"{where} is for an encoder-decoder, whose prompts cannot be imported.")
    expected = _TASK_TYPES.get(task.kind)
    if expected is None or config.task_type not in (None, expected):
        raise PromptFileError(
            f"{where} has task type {printable(str(config.task_type), 40)} and task"
            f" {printable(task.name, 60)!r} is of kind {task.kind}, PEFT's {expected}; name the task that it"
            " was trained on."
        )
    prefix = config.peft_type == "PREFIX_TUNING"
    width = backbone.kv_heads * backbone.head_dim if prefix else (backbone.embedding_size or backbone.hidden)
    for words, found, fits in (
        ("layers", config.num_layers, backbone.layers),
        ("attention heads", config.num_attention_heads, backbone.kv_heads if prefix else backbone.heads),
        ("token_dim", config.token_dim, width),
    ):
        if found != fits:
            raise PromptFileError(
                f"{where} is for a model with {words} {found}, and {printable(backbone.name, 80)} has {fits};"
                " name the model that it was trained on."
            )
    if not 1 <= config.num_virtual_tokens <= 4096:
        raise PromptFileError(f"{where} has {config.num_virtual_tokens} virtual tokens; 1 to 4096 are possible.")


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / TENSOR_FILE
    where = printable(str(path))
    if not path.exists():
        if (folder / _PICKLE_FILE).exists():
            raise PromptFileError(
                f"{printable(str(folder / _PICKLE_FILE))} is a pickle, which can run code and is never"
                " opened; load it with PEFT where you trust it and save it again with save_pretrained(...,"
                " safe_serialization=True)."
            )
        raise PromptFileError(f"{printable(str(folder))} holds no {TENSOR_FILE}; save it again with save_pretrained.")
    header = read_header(path)
    for name, entry in header.tensors.items():
        if entry.dtype not in _FLOATS:
            raise PromptFileError(
                f"{where}: tensor {name} has dtype {entry.dtype}; {', '.join(_FLOATS)} can be imported."
            )
    try:
        with open_regular(path) as file:
            return {name: tensor.to(torch.float32) for name, tensor in load(file.read(header.file_bytes + 1)).items()}
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise PromptFileError(f"{where} is damaged ({printable(str(error), 200)}); save it again.") from error


def _head_of(
    where: str, tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]] | None
) -> dict[str, torch.Tensor]:
    for name in tensors:
        if not name.startswith(_BASE):
            raise PromptFileError(
                f"{where} holds an unexpected tensor {printable(name, 80)}; a prompt of PEFT has"
                f" {_EMBEDDINGS} and {_BASE}* for the head."
            )
    head = {name.removeprefix(_BASE): tensor for name, tensor in tensors.items()}
    if shapes is not None:
        check_head(where, head, shapes)
    return head
