"""The memory arithmetic of docs/support.md, against what autograd really keeps."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from panda_fusion.backbone import load_backbone
from panda_fusion.injection import Injection, Rows

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "decoder_memory.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("decoder_memory", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


LLAMA = {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008}
QWEN = {
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151936,
}


@pytest.mark.parametrize(
    ("decoder", "model_type", "published"), [("LLAMA_7B", "llama", LLAMA), ("QWEN_1_5B", "qwen2", QWEN)]
)
def test_parameters_are_those_of_the_model(
    decoder: str, model_type: str, published: dict[str, int], script: ModuleType
) -> None:
    """Llama 2 of 7 billion and Qwen2.5 of 1.5 billion, built without memory."""
    sizes = getattr(script, decoder)
    config = AutoConfig.for_model(model_type, **published)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == sizes.parameters
    assert script.weight_bytes(sizes) == 2 * sizes.parameters


def fused(query: Any, key: Any, value: Any, bias: Any, scale: float, prefix: Any = None, dropout: float = 0.0) -> Any:
    """Attention as on a GPU."""
    assert prefix is not None
    key, value = torch.cat((prefix[0], key), 2), torch.cat((prefix[1], value), 2)
    bias = torch.nn.functional.pad(bias, (prefix[0].shape[2], 0))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "intermediate", "biases"), [(4, 2, 352, False), (6, 1, 1120, True)], ids=["llama", "qwen2"]
)
def test_bytes_per_token_are_what_autograd_keeps(
    heads: int,
    kv_heads: int,
    intermediate: int,
    biases: bool,
    checkpointing: bool,
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between two lengths, so that what does not grow with the text falls out. The second decoder has the proportions
    of Qwen2.5 of 1.5 billion."""
    sizes = script.Decoder(
        layers=4,
        hidden=32 * heads,
        heads=heads,
        kv_heads=kv_heads,
        intermediate=intermediate,
        vocabulary=400,
        biases=biases,
    )
    script.make_decoder(sizes, tmp_path)
    monkeypatch.setattr("panda_fusion.attention.attend", fused)
    backbone = load_backbone(
        str(tmp_path), device=torch.device("cpu"), dtype=torch.bfloat16, gradient_checkpointing=checkpointing
    )
    key = torch.randn(1, 4, 2, kv_heads, 32, requires_grad=True)

    def kept(tokens: int) -> int:
        weights = {p.untyped_storage().data_ptr() for p in backbone._model.parameters()}
        sizes: dict[int, int] = {}
        held = []  # what lives on can be told apart by its address

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            held.append(tensor)
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            backbone.hidden_states(
                torch.ones(2, tokens, dtype=torch.int64),
                torch.full((2,), tokens),
                None,
                Injection(key=key, value=key),
                Rows(1),
            )
        return sum(size for pointer, size in sizes.items() if pointer not in weights)

    found = (kept(48) - kept(16)) / 2 / 32
    if checkpointing:  # the layer that is computed again comes later, in the backward pass
        expected = script.activation_bytes_per_token(sizes, True) - script.layer_bytes_per_token(sizes)
    else:
        expected = script.activation_bytes_per_token(sizes, False)
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("decoder", ["LLAMA_7B", "QWEN_1_5B"])
def test_the_totals_add_up(decoder: str, checkpointing: bool, script: ModuleType) -> None:
    sizes, gib = getattr(script, decoder), 2**30
    (usable,) = (usable for one, _, total, usable in script.CARDS if one == sizes and usable < total)
    most = script.largest_batch(sizes, 20, 256, checkpointing, usable * gib)
    assert most >= 16  # a batch of 16 texts fits, which the page says
    assert script.total_bytes(sizes, 20, most, 256, checkpointing) <= usable * gib
    assert script.total_bytes(sizes, 20, most + 1, 256, checkpointing) > usable * gib


def test_the_recorded_run_is_of_the_script_as_it_stands(script: ModuleType) -> None:
    record = json.loads(script.RECORD.read_text(encoding="utf-8"))
    assert record["decoder"]["parameters"] == script.SMALL.parameters
    assert (record["texts"], record["tokens"], record["length"]) == (script.BATCH, script.TOKENS, script.LENGTH)
    plain, checkpointed = record["runs"]
    assert plain["losses"] == checkpointed["losses"]
    assert len(plain["losses"]) == script.STEPS
    assert checkpointed["peak_bytes"] < plain["peak_bytes"]
    kept = script.BATCH * script.TOKENS * script.activation_bytes_per_token(script.SMALL, False)
    assert plain["peak_bytes"] - plain["loaded_bytes"] > kept
