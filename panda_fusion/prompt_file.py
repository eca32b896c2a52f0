"""Prompt files: one .safetensors file per prompt, written whole or not at all, read with every check.

Files come from strangers. Nothing in them is executed; sizes are limited before anything is read; the tensors
must be exactly those that the method and the task call for. docs/prompt-format.md is the specification.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from panda_fusion import atomic_write
from panda_fusion.errors import OptionError, PluginError, PromptFileError, UnknownNameError
from panda_fusion.printable import printable
from panda_fusion.prompt import BackboneInfo, Prompt
from panda_fusion.prompt_metadata import PromptMetadata, decode_metadata, encode_metadata
from panda_fusion.safetensors_header import (
    MAX_DATA_BYTES,
    MAX_HEADER_BYTES,
    is_plain_name,
    open_regular,
    read_header,
)
from panda_fusion.task import head_outputs

if TYPE_CHECKING:
    import torch

    from panda_fusion.backbone import Backbone, BackboneShape
    from panda_fusion.peft_method import PEFTMethod

PEFT_PREFIX = "peft."
HEAD_PREFIX = "head."
EMBEDDING = "task.embedding"
MOST_NAMES = 8
"""How many tensor names a message lists."""

_OUTPUT_LAYERS = ("out_proj", "classifier", "score", "qa_outputs", "logits_proj")
"""The last part of the names that transformers gives to the output layer of a head."""


def save_prompt(prompt: Prompt, path: str | os.PathLike[str]) -> str:
    """Write a prompt file, atomically. The same prompt always gives the same bytes.

    Args:
        prompt: `path` and `sha256` are not written.
        path: the file; missing folders are made.

    Returns:
        The file's sha256 in hexadecimal digits.

    Raises:
        PromptFileError: the prompt would not pass the checks of `load_prompt`; nothing is written.
        OutputError: the place cannot be written.
    """
    import torch
    from safetensors.torch import save

    where = printable(os.fspath(path))
    metadata = PromptMetadata(
        method=prompt.method,
        backbone=prompt.backbone,
        task=prompt.task,
        training=dict(prompt.training),
        scores=dict(prompt.scores),
        lineage=prompt.lineage,
    )
    strings = encode_metadata(where, metadata)
    named = {PEFT_PREFIX + name: tensor for name, tensor in prompt.tensors.items()}
    named |= {HEAD_PREFIX + name: tensor for name, tensor in prompt.head.items()}
    if prompt.embedding is not None:
        named[EMBEDDING] = prompt.embedding
    float32 = {name: "F32" if tensor.dtype == torch.float32 else str(tensor.dtype) for name, tensor in named.items()}
    check_tensors(where, metadata, {name: (float32[name], tuple(tensor.shape)) for name, tensor in named.items()})
    _check_finite(where, named)
    data = _canonical(
        save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in named.items()}, strings)
    )
    _check_written_sizes(where, data)
    atomic_write.write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def load_prompt(path: str | os.PathLike[str]) -> Prompt:
    """Read a prompt file and check everything that can be checked without the backbone.

    Returns:
        The prompt, tensors in float32 on the CPU, with `path` as given and the file's sha256.

    Raises:
        PromptFileError: no prompt file, damaged, from a newer version, with tensors that do not fit its own
            description, values that are not finite, or of a method that no installed plugin provides.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    where = printable(os.fspath(path))
    header = read_header(path)
    metadata = decode_metadata(where, header.metadata)
    described = {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()}
    check_tensors(where, metadata, described)
    try:
        with open_regular(path) as file:
            data = file.read(header.file_bytes + 1)
    except OSError as error:
        raise PromptFileError(f"Cannot read {where}: {error.strerror}.") from error
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise PromptFileError(
            f"{where} is damaged ({printable(str(error), 200)}); copy or download it again."
        ) from error
    if {name: ("F32", tuple(tensor.shape)) for name, tensor in tensors.items()} != described:
        raise PromptFileError(f"{where} changed while it was read; try again.")
    _check_finite(where, tensors)
    return Prompt(
        method=_method(where, metadata).spec,  # with options that the method has got since the file was written
        tensors=_below(tensors, PEFT_PREFIX),
        head=_below(tensors, HEAD_PREFIX),
        embedding=tensors.get(EMBEDDING),
        backbone=metadata.backbone,
        task=metadata.task,
        training=metadata.training,
        scores=metadata.scores,
        lineage=metadata.lineage,
        path=os.fspath(path),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def read_metadata(path: str | os.PathLike[str]) -> PromptMetadata:
    """Read a prompt file's metadata alone, without torch and without its tensors.

    Raises:
        PromptFileError: no prompt file, damaged, or from a newer version.
    """
    return decode_metadata(printable(os.fspath(path)), read_header(path).metadata)


def check_backbone(prompt: Prompt, info: BackboneInfo, given: str = "") -> None:
    """Check that a prompt was trained on this backbone.

    Args:
        prompt: any prompt.
        info: the backbone that it is to be used with.
        given: what the user called it, for the message; its recorded name if empty.

    Raises:
        PromptFileError: architecture, a size, or only the weights differ; the message says which, and what to
            do.
    """
    own = prompt.backbone
    where = printable(prompt.path) or "The prompt"
    name, own_name = printable(given or info.name, 80), printable(own.name, 80)
    if own.architecture != info.architecture:
        raise PromptFileError(
            f"{where} was trained on {own_name}, architecture {printable(own.architecture, 40)}, and {name}"
            f" is {printable(info.architecture, 40)}; use it with --model {own_name}."
        )
    for field, words in (
        ("hidden", "hidden size"),
        ("layers", "layers"),
        ("heads", "attention heads"),
        ("kv_heads", "key/value heads"),
        ("head_dim", "head size"),
        ("embedding_size", "embedding size"),
    ):
        expected, found = getattr(own, field), getattr(info, field)
        if expected != found:
            raise PromptFileError(
                f"{where} was trained on {own_name} with {words} {expected}, and {name} has {found}; use it"
                f" with --model {own_name}."
            )
    if own.fingerprint != info.fingerprint:
        raise PromptFileError(
            f"{where} was trained on other weights: {own_name} with fingerprint"
            f" {printable(own.fingerprint[:12])}, and {name} has {printable(info.fingerprint[:12])}; use the"
            " very checkpoint that it was trained on, or train it again on this one."
        )


def check_head(where: str, head: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a prompt's head is the one that its backbone has for its task.

    Args:
        where: what to call the file in an error.
        head: parameters of the prompt's head.
        shapes: name and shape of every parameter of the backbone's head (`Backbone.head(outputs).shapes`).

    Raises:
        PromptFileError: a parameter is missing, unexpected, or of another shape.
    """
    for name in [*shapes, *head]:
        found = list(head[name].shape) if name in head else "missing"
        expected = list(shapes[name]) if name in shapes else "no such parameter"
        if found != expected:
            raise PromptFileError(
                f"{where}: head parameter {printable(name, 80)} is {found}, but the backbone's head for this"
                f" task has {expected}; use the model and the task that it was trained on."
            )


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Sha256 of a file's bytes, hexadecimal. Raises PromptFileError where it cannot be read."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PromptFileError(f"Cannot read {printable(os.fspath(path))}: {error.strerror}.") from error


def shape_of(info: BackboneInfo) -> BackboneShape:
    """The sizes that PEFT methods ask for, as far as a prompt file knows them (no position table)."""
    from panda_fusion.backbone import BackboneShape

    return BackboneShape(
        layers=info.layers,
        hidden=info.hidden,
        heads=info.heads,
        kv_heads=info.kv_heads,
        head_dim=info.head_dim,
        positions=None,
        initializer_range=0.02,
        embedding_size=info.embedding_size,
    )


def check_tensors(where: str, metadata: PromptMetadata, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Check names, dtypes and shapes of a file's tensors against what its metadata call for.

    Args:
        where: what to call the file in an error.
        metadata: decoded metadata.
        tensors: tensor name in the file -> (safetensors dtype name, shape).

    Raises:
        PromptFileError: the first thing that does not fit.
    """
    for name, (dtype, shape) in tensors.items():
        if not is_plain_name(name) or not (name == EMBEDDING or name.startswith((PEFT_PREFIX, HEAD_PREFIX))):
            raise PromptFileError(
                f"{where} holds an unexpected tensor {printable(name, 60)}; prompts hold peft.*, head.* and"
                f" {EMBEDDING}."
            )
        if dtype != "F32":
            raise PromptFileError(f"{where}: tensor {name} has dtype {dtype}; prompts are stored in float32 (F32).")
        if 0 in shape:
            raise PromptFileError(f"{where}: tensor {name} is empty, shape {list(shape)}.")
    stored = _method(where, metadata).stored_shapes(shape_of(metadata.backbone))
    found = {
        name.removeprefix(PEFT_PREFIX): shape for name, (_, shape) in tensors.items() if name.startswith(PEFT_PREFIX)
    }
    if stored is not None:
        _check_stored(where, metadata.method, found, stored)
    elif not found:
        raise PromptFileError(f"{where} holds no tensor {PEFT_PREFIX}*; ask its author for a whole file.")
    embedding = tensors.get(EMBEDDING)
    if embedding is not None and embedding[1] != (metadata.backbone.output_width,):
        raise PromptFileError(
            f"{where}: tensor {EMBEDDING} has shape {list(embedding[1])} instead of the hidden size, "
            f"[{metadata.backbone.output_width}]."
        )
    _check_head(
        where,
        {name.removeprefix(HEAD_PREFIX): shape for name, (_, shape) in tensors.items() if name.startswith(HEAD_PREFIX)},
        metadata,
    )


def check_stored(prompt: Prompt, backbone: Backbone) -> None:
    """Check a prompt's tensors against the backbone at hand, which knows more than the file: model tuning stores the
    backbone's own parameters.

    Raises:
        PromptFileError: a tensor is missing, unexpected, or of another shape.
    """
    from panda_fusion.plugin_manager import peft_methods

    expected = peft_methods().create(prompt.method).stored_shapes(backbone.shape)
    if expected is not None:
        found = {name: tuple(tensor.shape) for name, tensor in prompt.tensors.items()}
        _check_stored(printable(prompt.path or prompt.task.name), prompt.method, found, expected)


def _check_stored(
    where: str, spec: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    method = printable(spec, 80)
    for name in expected:
        if name not in found:
            raise PromptFileError(
                f"{where} lacks the tensor {PEFT_PREFIX}{name} of method {method}; ask its author for a whole file."
            )
    for name, shape in found.items():
        if name not in expected:
            known = [PEFT_PREFIX + name for name in expected]
            rest = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
            raise PromptFileError(
                f"{where} holds an unexpected tensor {PEFT_PREFIX}{name}; method {method} has "
                f"{', '.join(known[:MOST_NAMES]) or 'none'}{rest}."
            )
        if shape != expected[name]:
            raise PromptFileError(
                f"{where}: tensor {PEFT_PREFIX}{name} has shape {list(shape)}, but method {method} on its"
                f" backbone has {list(expected[name])}; ask its author for a file that fits its own"
                " description."
            )


def _method(where: str, metadata: PromptMetadata) -> PEFTMethod:
    from panda_fusion.plugin_manager import peft_methods

    shown = printable(metadata.method, 80)
    try:
        return peft_methods().create(metadata.method)
    except UnknownNameError as error:
        raise PromptFileError(
            f"{where} needs the PEFT method {shown!r}, which no installed plugin provides; install the plugin"
            " it was trained with (`panda-fusion plugins list` shows those that are there)."
        ) from error
    except OptionError as error:
        raise PromptFileError(f"{where} names a PEFT method that cannot be: {printable(str(error), 300)}") from error
    except PluginError as error:
        raise PromptFileError(f"{where} needs a plugin that fails: {printable(str(error), 300)}") from error


def _check_head(where: str, head: dict[str, tuple[int, ...]], metadata: PromptMetadata) -> None:
    """The head must have an output layer as wide as the task; other shapes are the backbone's to check."""
    if not head:
        raise PromptFileError(
            f"{where} has no head (no tensor {HEAD_PREFIX}*); a prompt without the head it was trained with"
            " predicts nothing, ask its author for a whole file."
        )
    outputs = head_outputs(metadata.task.kind, metadata.task.labels)
    weights = {name.removesuffix(".weight"): shape for name, shape in head.items() if name.endswith(".weight")}
    matrices = {module: shape for module, shape in weights.items() if len(shape) == 2}
    last = {module: shape for module, shape in matrices.items() if module.split(".")[-1] in _OUTPUT_LAYERS}
    widths = sorted({shape[0] for shape in (last or matrices).values()})
    if outputs not in widths:
        what = f"{len(metadata.task.labels)} labels" if metadata.task.labels else metadata.task.kind
        raise PromptFileError(
            f"{where}: its head gives {' or '.join(map(str, widths)) or 'no'} outputs and its task"
            f" {printable(metadata.task.name, 60)!r} ({what}) needs {outputs}; ask its author for a whole"
            " file."
        )
    for name, shape in head.items():
        module = name.removesuffix(".bias")
        if name.endswith(".bias") and module in weights and shape != weights[module][:1]:
            raise PromptFileError(
                f"{where}: tensor {HEAD_PREFIX}{name} has shape {list(shape)} beside a weight of shape "
                f"{list(weights[module])}; ask its author for a whole file."
            )


def _check_finite(where: str, tensors: Mapping[str, torch.Tensor]) -> None:
    import torch

    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise PromptFileError(
                f"{where}: tensor {name} holds values that are not finite (NaN or infinity); its training"
                " diverged or the file is damaged."
            )


def _canonical(data: bytes) -> bytes:
    """The same file, its header sorted: safetensors orders metadata by chance, and hashes would differ."""
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers map the data at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _check_written_sizes(where: str, data: bytes) -> None:
    header = int.from_bytes(data[:8], "little")
    if header > MAX_HEADER_BYTES:
        raise PromptFileError(
            f"{where} would have a header of {header} bytes and at most {MAX_HEADER_BYTES} are read back;"
            " shorten labels or training notes."
        )
    if (size := len(data) - 8 - header) > MAX_DATA_BYTES:
        raise PromptFileError(
            f"{where} would hold {size} bytes of tensors and at most {MAX_DATA_BYTES} are read back; use a"
            " smaller method."
        )


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
