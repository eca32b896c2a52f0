"""docs/support.md says what runs: the page is made again and compared."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from panda_fusion.testing import MODEL_TYPES

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_support_docs", ROOT / "scripts" / "write_support_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(script: ModuleType) -> None:
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run python scripts/write_support_docs.py"


def test_every_tiny_backbone_and_every_method_is_on_the_page(script: ModuleType) -> None:
    from panda_fusion.plugin_manager import peft_methods

    assert set(script.NAMES) == set(MODEL_TYPES)
    built_in = {entry.name for entry in peft_methods().entries() if entry.plugin.distribution == "panda-fusion"}
    assert built_in == set(script.METHODS)
    page = script.PAGE.read_text(encoding="utf-8")
    for name in script.NAMES.values():
        assert page.count(f"\n| {name} |") >= 2


def test_a_method_that_does_nothing_would_be_found(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The check behind the first table fails where an injection is lost."""
    import torch

    from panda_fusion.backbone import load_backbone
    from panda_fusion.injection import Injection
    from panda_fusion.testing import make_tiny_backbone

    folder = make_tiny_backbone("bert", tmp_path / "bert")
    backbone = load_backbone(str(folder), device=torch.device("cpu"), dtype=torch.float32)
    script.check("prefix", backbone, "classification")
    monkeypatch.setattr(script, "injection_of", lambda *_: Injection())
    with pytest.raises(AssertionError):
        script.check("prefix", backbone, "classification")
