"""Loading a backbone, its fingerprint, its limits, and the device it is asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BartConfig,
    BartModel,
    DebertaConfig,
    DebertaModel,
    JambaConfig,
    JambaModel,
    MambaConfig,
    MambaModel,
    MPNetConfig,
    MPNetModel,
)

from panda_fusion.backbone import Backbone, fingerprint, load_backbone
from panda_fusion.device import choose_device, choose_precision, precision_name
from panda_fusion.errors import BackboneError, DeviceError
from panda_fusion.testing import MODEL_TYPES, make_tiny_backbone

Folder = Callable[[str], Path]
Tiny = Callable[[str], Backbone]
CPU = torch.device("cpu")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Backbone:
    return load_backbone(str(folder), device=CPU, dtype=dtype)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_sizes_are_those_of_the_config(model_type: str, tiny: Tiny, tiny_folder: Folder) -> None:
    shape, info = tiny(model_type).shape, tiny(model_type).info
    layers = 3 if model_type == "modernbert" else 2
    kv_heads = 2 if model_type in ("llama", "qwen2", "qwen3") else 4
    head_dim = 16 if model_type == "qwen3" else 8
    sizes = (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim)
    assert sizes == (layers, 32, 4, kv_heads, head_dim)
    # Where only distances count there is no longest text.
    assert shape.positions == (None if model_type in ("deberta-v2", "t5") else 128)
    assert shape.input_width == (16 if model_type in ("electra", "albert") else 32)
    assert (info.architecture, info.layers, info.hidden) == (model_type, layers, 32)
    assert info.name == model_type, "the folders of this machine have no place in prompt files"
    modules = dict(AutoModel.from_pretrained(tiny_folder(model_type)).named_modules())
    assert len(shape.layer_modules) == layers
    for number, name in enumerate(shape.layer_modules):
        assert type(modules[name]).__name__.endswith(("Layer", "Block"))
        assert name.endswith(f".{0 if model_type == 'albert' else number}")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_backbone_is_frozen_and_in_evaluation_mode(model_type: str, tiny: Tiny) -> None:
    model = tiny(model_type)._model
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_fingerprint_is_that_of_the_weights(model_type: str, tiny: Tiny, tiny_folder: Folder, tmp_path: Path) -> None:
    """The same for a bfloat16 copy of the checkpoint and for a backbone run in bfloat16; another for other weights."""
    expected = tiny(model_type).info.fingerprint
    assert len(bytes.fromhex(expected)) == 32
    assert load(tiny_folder(model_type), torch.bfloat16).info.fingerprint == expected
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder(model_type), copy)
    weights = load_file(copy / "model.safetensors")
    half = {n: t.to(torch.bfloat16) if t.is_floating_point() else t for n, t in weights.items()}
    save_file(half, copy / "model.safetensors", metadata={"format": "pt"})
    assert load(copy).info.fingerprint == expected
    other = make_tiny_backbone(model_type, tmp_path / "other", seed=1)
    assert load(other).info.fingerprint != expected


def test_fingerprint_sees_a_change_of_one_small_tensor(tiny_folder: Folder) -> None:
    first = AutoModel.from_pretrained(tiny_folder("bert"))
    before = fingerprint(first)
    first.encoder.layer[1].attention.self.value.bias.data[3] += 0.5
    assert fingerprint(first) != before


def test_fingerprint_of_a_bert_base_embedding_table() -> None:
    """30,522 x 768 elements: more than float32 counts exactly, which the indices of the picks must survive."""
    table = torch.nn.Embedding(1, 1)
    table.weight = torch.nn.Parameter(torch.zeros(30522, 768), requires_grad=False)
    first = fingerprint(table)
    table.weight.data.fill_(1.0)
    assert fingerprint(table) != first


def bert_folder(tmp_path: Path, tiny_folder: Folder, **changes: Any) -> Path:
    """A copy of the tiny BERT with other values in its config."""
    folder = tmp_path / "changed"
    shutil.copytree(tiny_folder("bert"), folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def assert_one_sentence(error: pytest.ExceptionInfo[BackboneError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    for word in words:
        assert word in text


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BackboneError) as error:
        load(tmp_path / "nothing")
    assert_one_sentence(error, "nothing", "cannot be loaded")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(BackboneError) as error:
        load(tmp_path)
    assert_one_sentence(error, tmp_path.name, "config.json")


@pytest.mark.parametrize(
    "text", ["{broken", "[]", "{}", '{"model_type": "no-such-model"}'], ids=["json", "list", "empty", "type"]
)
def test_broken_config(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BackboneError) as error:
        load(tmp_path)
    assert_one_sentence(error, tmp_path.name)


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": "two"}, {"num_attention_heads": 5}, {"hidden_size": 64}], ids=str
)
def test_config_that_cannot_be(changes: dict[str, Any], tmp_path: Path, tiny_folder: Folder) -> None:
    with pytest.raises(BackboneError) as error:
        load(bert_folder(tmp_path, tiny_folder, **changes))
    assert_one_sentence(error, "changed")


def test_missing_weights(tmp_path: Path, tiny_folder: Folder) -> None:
    folder = bert_folder(tmp_path, tiny_folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError) as error:
        load(folder)
    assert_one_sentence(error, "changed")


def test_truncated_weights(tmp_path: Path, tiny_folder: Folder) -> None:
    folder = bert_folder(tmp_path, tiny_folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(BackboneError) as error:
        load(folder)
    assert_one_sentence(error, "changed")


def test_missing_tokenizer(tmp_path: Path, tiny_folder: Folder) -> None:
    folder = bert_folder(tmp_path, tiny_folder)
    for path in folder.glob("token*"):
        path.unlink()
    with pytest.raises(BackboneError) as error:
        load(folder)
    assert_one_sentence(error, "changed")


def with_tokenizer(model: Any, folder: Path, tiny_folder: Folder) -> Path:
    model.save_pretrained(folder)
    for path in tiny_folder("bert").glob("token*"):
        shutil.copy(path, folder)
    return folder


def test_encoder_decoder_is_refused(tmp_path: Path, tiny_folder: Folder) -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 200}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = BartModel(BartConfig(**sizes, **heads, encoder_ffn_dim=16, decoder_ffn_dim=16))
    with pytest.raises(BackboneError) as error:
        load(with_tokenizer(model, tmp_path / "bart", tiny_folder))
    assert_one_sentence(error, "bart", "encoder-decoder")


@pytest.mark.parametrize(("model", "config"), [(DebertaModel, DebertaConfig), (MPNetModel, MPNetConfig)])
def test_model_beside_the_attention_interface_is_refused(
    model: Any, config: Any, tmp_path: Path, tiny_folder: Folder
) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with pytest.raises(BackboneError) as error:
        load(with_tokenizer(model(config(**sizes, vocab_size=200)), tmp_path / "other", tiny_folder))
    assert_one_sentence(error, "other", "attention interface", "docs/support.md")


def test_models_with_a_state_are_refused(tmp_path: Path, tiny_folder: Folder) -> None:
    """Mamba has no attention at all; Jamba has layers of both kinds."""
    mamba = MambaModel(MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, vocab_size=200))
    with pytest.raises(BackboneError) as error:
        load(with_tokenizer(mamba, tmp_path / "mamba", tiny_folder))
    assert_one_sentence(error, "mamba", "no attention model", "docs/support.md")
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    few = {"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1}
    jamba = JambaModel(JambaConfig(**sizes, **few, mamba_d_state=4, mamba_expand=1, vocab_size=200))
    with pytest.raises(BackboneError) as error:
        load(with_tokenizer(jamba, tmp_path / "jamba", tiny_folder))
    assert_one_sentence(error, "jamba", "recurrent state", "docs/support.md")


def test_weights_that_a_checkpoint_lacks_are_the_same_every_time(tmp_path: Path, tiny_folder: Folder) -> None:
    """A checkpoint without pooler: the drawn one may depend on nothing that went before."""
    folder = bert_folder(tmp_path, tiny_folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        backbone = load(folder)
        assert torch.equal(torch.get_rng_state(), state), "loading moved the global random state"
        ones = {name: torch.ones(1, *shape) for name, shape in backbone.head(2).shapes.items()}
        found.append(backbone.head(2)(ones, torch.linspace(-1, 1, 32).view(1, 1, 32)))
    assert torch.equal(*found)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_prompt_and_text_must_fit_into_the_position_table(model_type: str, tiny: Tiny) -> None:
    backbone = tiny(model_type)
    backbone.check_length(28, 100)
    with pytest.raises(BackboneError) as error:
        backbone.check_length(29, 100)
    assert_one_sentence(error, "29", "100", "129", "128", "--max-length")


@pytest.mark.parametrize("spec", ["prefix:length=28", "prompt:length=28"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_longest_text_that_fits_runs(model_type: str, spec: str, tiny: Tiny) -> None:
    """The limit that `check_length` draws is the one that the model has."""
    from panda_fusion.injection import Rows
    from panda_fusion.plugin_manager import peft_methods

    backbone, method = tiny(model_type), peft_methods().create(spec)
    backbone.check_length(28, 100)
    made = method.create(backbone, torch.Generator().manual_seed(0))
    injection = method.inject({name: tensor.unsqueeze(0) for name, tensor in made.items()}, backbone.shape)
    pooled = backbone.forward(torch.full((1, 100), 7), torch.tensor([100]), None, injection, Rows(1))
    assert bool(pooled.isfinite().all())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(DeviceError, match=r"^Device 'cuda' was asked for, .* use --device cpu or auto\.$"):
        choose_device("cuda")
    assert choose_device("auto") == CPU


def test_precision() -> None:
    assert choose_device("cpu") == CPU
    assert choose_precision("bf16", CPU) == torch.bfloat16
    assert choose_precision("fp32", CPU) == torch.float32
    assert choose_precision("auto", CPU) in (torch.bfloat16, torch.float32)
    assert [precision_name(dtype) for dtype in (torch.bfloat16, torch.float32)] == ["bf16", "fp32"]
