"""What a tokenizer makes of texts and a frozen backbone of prompts, on disk, so that a second run computes none of it.

Tokens are kept (every run on the same rows), task embeddings (ranking the same prompts on the same samples) and
teachers' predictions (another student of the same teachers). An entry is one safetensors file named after a digest of
all that it depends on: tokenizer or backbone, prompt, texts. Entries are never wrong, at worst superfluous: when the
folder is full the ones read longest ago are deleted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from panda_fusion.errors import OutputError

if TYPE_CHECKING:
    import torch

    from panda_fusion.backbone import Backbone
    from panda_fusion.dataset import EncodedSet
    from panda_fusion.large_tensor import LargeTensor
    from panda_fusion.prompt import Prompt

VARIABLE = "PANDA_FUSION_CACHE"
"""Environment variable: the cache folder; empty: no cache."""


@dataclass(frozen=True)
class Kept:
    """One kind of what is kept.

    Attributes:
        folder: the folder of the entries, within the cache.
        limit: bytes that the entries take at most, as the file sizes add up.
        format: part of every entry's name; another number whenever the computation changes.
    """

    folder: str
    limit: int
    format: str


EMBEDDINGS = Kept("task-embeddings", 64 * 2**20, "task-embedding/1")
TEACHER_OUTPUTS = Kept("teacher-outputs", 2 * 2**30, "teacher-outputs/1")
TOKENS = Kept("tokens", 2**30, "tokens/1")

_TENSOR = "tensor"
_CHECKSUM = "sha256"


class TensorCache:
    """Tensors in a folder. What cannot be read is absent; what cannot be written is not kept.

    Attributes:
        folder: where the entries lie; made when the first one is written.
        limit: bytes of all entries together; an entry that is larger alone is not kept.
        found: how many lookups found an entry so far.
        missed: how many did not.
    """

    def __init__(self, folder: Path, limit: int = EMBEDDINGS.limit) -> None:
        self.folder = folder
        self.limit = limit
        self.found = 0
        self.missed = 0

    def get(self, key: str) -> torch.Tensor | None:
        """An entry of `put`, float32 on the CPU; None where there is none or it is damaged."""
        entry = self.get_named(key)
        return None if entry is None else entry[_TENSOR]

    def put(self, entries: Mapping[str, torch.Tensor]) -> None:
        """Keep tensors under their keys, as float32, then delete the entries read longest ago if there are too many."""
        self._put({key: {_TENSOR: tensor.detach().float()} for key, tensor in entries.items()})

    def get_named(self, key: str) -> dict[str, torch.Tensor] | None:
        """An entry of `put_named`, on the CPU; None where there is none or it is damaged."""
        entry = self._read(key)
        if entry is None:
            self.missed += 1
        else:
            self.found += 1
        return entry

    def put_named(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep tensors of any shapes and dtypes as one entry, then delete others as `put` does."""
        self._put({key: tensors})

    def _put(self, entries: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        from safetensors.torch import save

        from panda_fusion.atomic_write import write_bytes

        # A full disk or a write-protected folder must not end a run.
        with suppress(OutputError):
            for key, tensors in entries.items():
                if sum(tensor.nbytes for tensor in tensors.values()) <= self.limit:
                    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
                    write_bytes(self._path(key), save(plain, {_CHECKSUM: _checksum(key, plain)}))
        self._prune()

    def get_large(self, key: str) -> LargeTensor | None:
        """The entry as `get` finds it, left in its file."""
        from panda_fusion.errors import PromptFileError
        from panda_fusion.large_tensor import LargeTensor
        from panda_fusion.safetensors_header import read_header

        tensor = None
        with suppress(OSError, PromptFileError):
            header = read_header(self._path(key))
            stored = header.tensors.get(_TENSOR)
            if len(header.tensors) == 1 and stored is not None and stored.dtype == "F32":
                first = header.file_bytes - stored.data_offsets[1]
                tensor = LargeTensor.of_file(self._path(key), stored.shape, first)
                if header.metadata.get(_CHECKSUM) != _checksum(key, {_TENSOR: tensor}):
                    tensor = None
        if tensor is None:
            self.missed += 1
            return None
        self.found += 1
        with suppress(OSError):
            os.utime(self._path(key))
        return tensor

    def put_large(self, key: str, tensor: LargeTensor) -> None:
        """Keep what `put` would keep, the same file, without holding it in memory."""
        from panda_fusion.atomic_write import atomic_path

        size = 4 * math.prod(tensor.shape)
        if size > self.limit:
            return
        entry = {"dtype": "F32", "shape": tensor.shape, "data_offsets": (0, size)}
        header = json.dumps(
            {"__metadata__": {_CHECKSUM: _checksum(key, {_TENSOR: tensor})}, _TENSOR: entry}, separators=(",", ":")
        ).encode()
        header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8 bytes
        with suppress(OutputError), atomic_path(self._path(key)) as temporary, open(temporary, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for part in tensor.parts():
                file.write(part.numpy().data)
        self._prune()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _read(self, key: str) -> dict[str, torch.Tensor] | None:
        from safetensors import SafetensorError, safe_open

        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                stated = (file.metadata() or {}).get(_CHECKSUM)
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, not a mapping
        except (OSError, SafetensorError):
            return None
        if stated != _checksum(key, tensors):
            return None
        with suppress(OSError):
            os.utime(path)  # read just now: the last one to be deleted
        return tensors

    def _prune(self) -> None:
        files = []
        with suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(OSError):  # another process deleted it
                    if entry.is_file(follow_symlinks=False) and entry.name.endswith((".safetensors", ".tmp")):
                        files.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        size = sum(bytes_ for _, bytes_, _ in files)
        for _, bytes_, path in sorted(files):
            if size <= self.limit:
                break
            with suppress(OSError):
                os.unlink(path)
            size -= bytes_


def user_cache(kept: Kept) -> TensorCache | None:
    """The cache of one kind in the folder that `PANDA_FUSION_CACHE` names (None if empty) or in the user's own."""
    folder = os.environ.get(VARIABLE)
    if folder == "":
        return None
    if folder is None:
        from platformdirs import user_cache_dir

        folder = user_cache_dir("panda-fusion", appauthor=False)
    return TensorCache(Path(folder) / kept.folder, kept.limit)


def cache_key(kept: Kept, backbone: Backbone, *digests: str) -> str:
    """Name of an entry: a digest of the backbone (weights, precision, device) and of all else that it depends on."""
    parts = [
        kept.format,
        backbone.info.architecture,
        backbone.info.fingerprint,
        backbone.pooling,
        str(backbone.dtype),
        backbone.device.type,
        *digests,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def digest_prompt(prompt: Prompt) -> str:
    """Digest of what a prompt does to hidden states: method and tensors, neither head nor metadata."""
    return digest_tensors(prompt.method, prompt.tensors)


def digest_samples(samples: EncodedSet) -> str:
    """Digest of what the backbone sees of samples: token ids, lengths, segments and choices, not the labels."""
    width = int(samples.lengths.max()) if len(samples) else 0
    tensors = {"input_ids": samples.input_ids[:, :width], "lengths": samples.lengths}
    if samples.token_types is not None:
        tensors["token_types"] = samples.token_types[:, :width]
    if samples.choices is not None:
        tensors["choices"] = samples.choices
    return digest_tensors(f"rows={samples.rows}", tensors)


def digest_tensors(text: str, tensors: Mapping[str, torch.Tensor | LargeTensor]) -> str:
    """Digest of tensors by name, with a text that says what they are."""
    import torch

    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f";{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        for part in (tensor,) if isinstance(tensor, torch.Tensor) else tensor.parts():
            digest.update(part.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _checksum(key: str, tensors: Mapping[str, torch.Tensor | LargeTensor]) -> str:
    """Over the key too, so that a file under another entry's name does not count."""
    return digest_tensors(key, tensors)
