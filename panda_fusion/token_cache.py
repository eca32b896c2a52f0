"""Tokenised splits on disk: a second run on the same rows with the same tokenizer tokenises nothing."""

from __future__ import annotations

import hashlib
import importlib.metadata
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch

from panda_fusion.dataset import EncodedSet
from panda_fusion.encoding import encode_split
from panda_fusion.extractive_qa import Windows, windows_reference
from panda_fusion.tensor_cache import TOKENS
from panda_fusion.token_classification import words_reference

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from panda_fusion.backbone import Backbone
    from panda_fusion.prompt import TaskInfo
    from panda_fusion.rows import Split
    from panda_fusion.task import Task
    from panda_fusion.tensor_cache import TensorCache

TENSORS = ("input_ids", "lengths", "token_types", "labels", "choices", "words", "answerable")
"""The tensors of an `EncodedSet`."""
OF_WINDOWS = ("question", "offsets")
"""The arrays of `panda_fusion.extractive_qa.Windows`, with such names in an entry."""
_SIZES = "sizes"
_RAGGED = "ragged."


def encode_kept(
    backbone: Backbone, task: Task | TaskInfo, split: Split, max_length: int, cache: TensorCache | None
) -> EncodedSet:
    """Like `panda_fusion.encoding.encode_split`, with the same result, out of the cache where it is there.

    Args:
        backbone: whose tokenizer and device are used; what a slow tokenizer makes is not kept.
        task: the task, or what a prompt file says of it.
        split: its rows.
        max_length: tokens kept of a row.
        cache: where tokens are kept (`panda_fusion.tensor_cache.TOKENS`); None: nowhere.
    """
    # A slow tokenizer is a program of its own that no digest can tell from another.
    if cache is None or not backbone.tokenizer.is_fast:
        return encode_split(backbone, task, split, max_length)
    key = token_key(backbone.tokenizer, task, split, max_length)
    entry = cache.get_named(key)
    if entry is not None:
        return _unpacked(entry, task, split, backbone.device)
    made = encode_split(backbone, task, split, max_length)
    cache.put_named(key, _packed(made))
    return made


def token_key(tokenizer: Any, task: Task | TaskInfo, split: Split, max_length: int) -> str:
    """Name of an entry: a digest of the tokenizer itself (not of its name), the rows and what the kind reads of them.

    Args:
        tokenizer: a fast tokenizer of transformers.
        task: the task, or what a prompt file says of it.
        split: its rows.
        max_length: tokens kept of a row.
    """
    backend = tokenizer.backend_tokenizer
    # What the last call has left; every call sets both anew.
    backend.no_truncation()
    backend.no_padding()
    settings = [
        TOKENS.format,
        *(importlib.metadata.version(library) for library in ("tokenizers", "transformers")),
        type(tokenizer).__qualname__,
        tokenizer.truncation_side,
        tokenizer.model_input_names,
        tokenizer.split_special_tokens,
        task.kind,
        bool(task.columns.predicate),
        task.columns.no_answer,
        max_length,
    ]
    digest = hashlib.sha256(msgspec.msgpack.encode(settings))
    digest.update(backend.to_str().encode())
    digest.update(msgspec.msgpack.encode([split.texts, split.labels, split.choices]))
    return digest.hexdigest()


def _packed(data: EncodedSet) -> dict[str, torch.Tensor]:
    """The tensors of an entry. Padding is left out: one long row would make the entry of a large set several times as
    large."""
    tensors = {name: tensor.cpu() for name in TENSORS if (tensor := getattr(data, name)) is not None}
    if isinstance(data.reference, Windows):
        tensors |= {name: torch.from_numpy(getattr(data.reference, name)) for name in OF_WINDOWS}
    width = data.input_ids.shape[1]
    real = _real(tensors["lengths"], width)
    packed = {_SIZES: torch.tensor([width, data.rows, data.truncated])}
    for name, tensor in tensors.items():
        if tensor.shape[:2] == real.shape and not tensor[~real].any():
            packed[_RAGGED + name] = tensor[real]
        else:
            packed[name] = tensor
    return packed


def _unpacked(
    entry: Mapping[str, torch.Tensor], task: Task | TaskInfo, split: Split, device: torch.device
) -> EncodedSet:
    """What `_packed` was given. Texts, words and answers for scoring are taken from the rows."""
    width, rows, truncated = entry[_SIZES].tolist()
    real = _real(entry["lengths"], width)
    tensors = {}
    for name, tensor in entry.items():
        if name.startswith(_RAGGED):
            table = np.zeros((*real.shape, *tensor.shape[1:]), dtype=tensor.numpy().dtype)
            table[real.numpy()] = tensor.numpy()
            tensors[name.removeprefix(_RAGGED)] = torch.from_numpy(table)
        else:
            tensors[name] = tensor
    labels = split.labels or None
    reference: object = None
    if task.kind == "token-classification":
        reference = words_reference(split.texts[0], labels, bool(task.columns.predicate))
    elif task.kind == "extractive-qa":
        question, offsets = (tensors[name].numpy() for name in OF_WINDOWS)
        reference = windows_reference(question, offsets, split.texts[1], labels, task.columns.no_answer)
    found = {name: tensors[name].to(device) if name in tensors else None for name in TENSORS}
    return EncodedSet(**found, kind=task.kind, truncated=truncated, rows=rows, reference=reference)  # type: ignore[arg-type]


def _real(lengths: torch.Tensor, width: int) -> torch.Tensor:
    """[rows, width] booleans: whether there is a token."""
    return torch.arange(width) < lengths[:, None]
