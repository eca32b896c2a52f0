"""Choosing the device and the precision of the frozen backbone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from panda_fusion.errors import DeviceError

DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "fp32", "bf16"]


def choose_device(name: DeviceName) -> torch.device:
    """The torch device for a name; `auto` takes CUDA where there is one.

    Raises:
        DeviceError: CUDA was asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "Device 'cuda' was asked for, but this PyTorch finds no CUDA device; use --device cpu or auto."
        )
    return torch.device(name)


def choose_precision(name: PrecisionName, device: torch.device) -> torch.dtype:
    """The dtype of the frozen weights and of the hidden states; prompts, heads and losses stay float32.

    `auto` takes bfloat16 where the hardware multiplies it natively, else float32.
    """
    if name == "bf16":
        return torch.bfloat16
    if name == "fp32":
        return torch.float32
    return torch.bfloat16 if _native_bf16(device) else torch.float32


@contextmanager
def single_thread(device: torch.device) -> Iterator[None]:
    """Run the block on one CPU thread: steps of microseconds only lose by waiting for each other's threads."""
    if device.type != "cpu":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def precision_name(dtype: torch.dtype) -> str:
    """`bf16` or `fp32`, as reports and metadata print it."""
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def _native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        # From compute capability 8.0 on; is_bf16_supported() also says yes where it is emulated.
        return torch.cuda.get_device_capability(device)[0] >= 8
    # Private, but the only place where PyTorch says which CPU instructions it may use.
    return any(
        getattr(torch.cpu, probe, lambda: False)() for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
