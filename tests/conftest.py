"""What all tests share: few threads, no network, and tiny random backbones that are made once."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Before anything imports torch: tests run side by side, tiny tensors gain nothing from threads, and two workers of two
# threads on two cores wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Nothing that a user keeps is read or written; tests of the cache name a folder of their own.
os.environ["PANDA_FUSION_CACHE"] = ""

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """From a model type to the folder of a tiny random backbone, as transformers loads it. Do not write there."""
    from panda_fusion.testing import make_tiny_backbone

    @cache
    def folder(model_type: str) -> Path:
        return make_tiny_backbone(model_type, tmp_path_factory.mktemp("backbone") / model_type)

    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Callable[[str], Path]) -> Callable[[str], Backbone]:
    """From a model type to that backbone on the CPU in float32. Shared: load one of your own to change it."""
    import torch

    from panda_fusion.backbone import load_backbone

    @cache
    def backbone(model_type: str) -> Backbone:
        return load_backbone(str(tiny_folder(model_type)), device=torch.device("cpu"), dtype=torch.float32)

    return backbone
