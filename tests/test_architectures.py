"""What single architectures need: variants of their configs, their tokenizers, and where prompts reach."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_samples import CLASSES, DECODERS, MAX_LENGTH, classifier, columns, head_of, largest, method, pack, tokenised
from plain_backbones import PLAIN
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer

from panda_fusion.backbone import Backbone, load_backbone
from panda_fusion.dataset import EncodedSet, encode, gather
from panda_fusion.encoded_task import EncodedTask
from panda_fusion.injection import Rows
from panda_fusion.prompt_file import load_prompt, save_prompt
from panda_fusion.run import RunSettings, finished_prompts, train_students
from panda_fusion.students import new_students
from panda_fusion.testing import MODEL_TYPES
from panda_fusion.trainer import TrainSettings

Folder = Callable[[str], Path]
Tiny = Callable[[str], Backbone]
CPU = torch.device("cpu")
ROWS = 6
LENGTH = 4


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Backbone:
    return load_backbone(str(folder), device=CPU, dtype=dtype)


def data_of(backbone: Backbone, number: int = 1) -> tuple[list[list[str]], EncodedSet]:
    rows = columns(ROWS, 3, number)
    return rows, encode(backbone, rows, None, "classification", 2 * MAX_LENGTH)


def states_of(backbone: Backbone, data: EncodedSet, injection: Any) -> torch.Tensor:
    """The states of real tokens, one below the other."""
    batch = gather(data, torch.arange(len(data)), data.input_ids.shape[1])
    states = backbone.hidden_states(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(1))
    return torch.cat([row[:length] for row, length in zip(states, batch.lengths.tolist(), strict=True)])


def variant(tiny_folder: Folder, tmp_path: Path, model_type: str, **changes: Any) -> Path:
    """A tiny backbone with another config and random weights."""
    config = AutoConfig.from_pretrained(tiny_folder(model_type))
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = (AutoModelForTextEncoding if model_type == "t5" else AutoModel).from_config(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / model_type)
    for path in tiny_folder(model_type).glob("token*"):
        shutil.copy(path, tmp_path / model_type)
    return tmp_path / model_type


@pytest.mark.parametrize(
    "changes",
    [
        # DeBERTa-v2 (xlarge): projections of their own, no convolution in some, one product left out.
        {"share_att_key": False},
        {"conv_kernel_size": 0},
        # No buckets: every distance has an embedding.
        {"position_buckets": -1, "max_relative_positions": 128},
        {"norm_rel_ebd": "none", "position_buckets": 16},
        {"position_biased_input": True},
    ],
    ids=str,
)
def test_variants_of_deberta(changes: dict[str, Any], tiny_folder: Folder, tmp_path: Path) -> None:
    folder = variant(tiny_folder, tmp_path, "deberta-v2", **changes)
    backbone, peft = load(folder), method(f"prefix:length={LENGTH}")
    rows, data = data_of(backbone, 2)
    tensors = pack(peft, backbone, 1)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    own = {name: tensor[0] for name, tensor in tensors.items()}
    with torch.no_grad():
        expected = PLAIN["deberta-v2"](model, tokenised(backbone, rows), own)
        found = states_of(backbone, data, peft.inject(tensors, backbone.shape))
    lengths = data.lengths.tolist()
    assert largest(found, torch.cat([row[:length] for row, length in zip(expected, lengths, strict=True)])) <= 1e-5


@pytest.mark.parametrize("parts", [["c2p"], ["p2c"], []], ids=str)
def test_deberta_without_some_of_its_products_equals_transformers(
    parts: list[str], tiny_folder: Folder, tmp_path: Path
) -> None:
    folder = variant(tiny_folder, tmp_path, "deberta-v2", pos_att_type=parts, relative_attention=bool(parts))
    backbone = load(folder)
    rows, data = data_of(backbone, 2)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(**tokenised(backbone, rows)).last_hidden_state
        found = states_of(backbone, data, None)
    lengths = data.lengths.tolist()
    assert largest(found, torch.cat([row[:length] for row, length in zip(expected, lengths, strict=True)])) <= 1e-5


def test_first_t5_with_relu_equals_transformers(tiny_folder: Folder, tmp_path: Path) -> None:
    """The layout of T5 1.0: no gate. A decoder that the checkpoint holds besides is not read."""
    changes = {"feed_forward_proj": "relu", "is_gated_act": False, "dense_act_fn": "relu"}
    folder = variant(tiny_folder, tmp_path, "t5", **changes)
    backbone = load(folder)
    rows, data = data_of(backbone)
    model = AutoModelForTextEncoding.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(**tokenised(backbone, rows)).last_hidden_state
        found = states_of(backbone, data, None)
    lengths = data.lengths.tolist()
    assert largest(found, torch.cat([row[:length] for row, length in zip(expected, lengths, strict=True)])) <= 1e-5
    assert not [name for name, _ in backbone._model.named_parameters() if "decoder" in name]


def test_albert_with_two_groups_of_two_layers_takes_a_prefix_per_run(tiny_folder: Folder, tmp_path: Path) -> None:
    folder = variant(tiny_folder, tmp_path, "albert", num_hidden_layers=2, num_hidden_groups=2, inner_group_num=2)
    backbone, peft = load(folder), method(f"prefix:length={LENGTH}")
    assert backbone.shape.layers == 4
    assert len(set(backbone.shape.layer_modules)) == 4
    tensors = {name: tensor.requires_grad_() for name, tensor in pack(peft, backbone, 1).items()}
    states_of(backbone, data_of(backbone)[1], peft.inject(tensors, backbone.shape)).square().sum().backward()
    assert tensors["key"].grad is not None
    assert bool((tensors["key"].grad.abs().amax((0, 2, 3, 4)) > 1e-4).all())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_prefix_reaches_every_layer(model_type: str, tiny: Tiny) -> None:
    """Its own gradient in each of them; and a change in one layer alone changes what comes out."""
    backbone, peft = tiny(model_type), method(f"prefix:length={LENGTH}")
    data = data_of(backbone)[1]
    tensors = {name: tensor.requires_grad_() for name, tensor in pack(peft, backbone, 1).items()}
    plain = states_of(backbone, data, peft.inject(tensors, backbone.shape))
    (plain * torch.randn(plain.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    for name, tensor in tensors.items():
        assert tensor.grad is not None
        for layer in range(backbone.shape.layers):
            assert float(tensor.grad[0, layer].abs().max()) > 1e-3
            changed = {own: value.detach().clone() for own, value in tensors.items()}
            changed[name][0, layer] += 1
            assert largest(states_of(backbone, data, peft.inject(changed, backbone.shape)), plain) > 1e-3


@pytest.mark.parametrize("model_type", DECODERS)
def test_input_prompt_equals_peft_on_decoders(model_type: str, tiny: Tiny, tiny_folder: Folder) -> None:
    """Text by text: PEFT hands embeddings on, in which transformers cannot see the padding."""
    from peft import PromptTuningConfig, get_peft_model

    backbone, peft = tiny(model_type), method(f"prompt:length={LENGTH}")
    tensors = pack(peft, backbone, 1)
    model = classifier(tiny_folder(model_type), 3)
    head = head_of(model)
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=LENGTH)
    wrapped = get_peft_model(model, config).eval()
    with torch.no_grad():
        wrapped.prompt_encoder["default"].embedding.weight.copy_(tensors["embedding"][0])
    rows, data = data_of(backbone, 2)
    injection = peft.inject(tensors, backbone.shape)
    batch = gather(data, torch.arange(ROWS), data.input_ids.shape[1])
    with torch.no_grad():
        pooled = backbone.forward(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(1))
        found = backbone.head(3)(head, pooled.unsqueeze(0))[0]
        for row in range(ROWS):
            expected = wrapped(**tokenised(backbone, [[column[row]] for column in rows])).logits[0]
            assert largest(found[row], expected) <= 1e-5


RELATIVES = {
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "mistral": "llama",
    "mt5": "t5",
    "umt5": "t5",
    "gpt_neox": "qwen2",
}
"""Model type -> the tiny backbone whose tokenizer it takes."""


@pytest.mark.parametrize("model_type", list(RELATIVES))
def test_relatives_and_one_that_is_not_known(model_type: str, tiny_folder: Folder, tmp_path: Path) -> None:
    """Without a prefix as transformers; a prefix reaches every layer; sublayers are known but for GPT-NeoX."""
    tokenizer = tiny_folder(RELATIVES[model_type])
    sizes: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    if not model_type.endswith("t5"):
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        sizes["max_position_embeddings"] = 130
    if model_type == "mistral":
        sizes["num_key_value_heads"] = 2
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    config = AutoConfig.for_model(model_type, **sizes, **ids, vocab_size=300, initializer_range=0.2)
    loader = AutoModelForTextEncoding if model_type.endswith("t5") else AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loader.from_config(config).save_pretrained(tmp_path)
    for path in tokenizer.glob("token*"):
        shutil.copy(path, tmp_path)
    backbone, peft = load(tmp_path), method(f"prefix:length={LENGTH}")
    assert (backbone.shape.layout is None) == (model_type == "gpt_neox")
    rows, data = data_of(backbone)
    model = loader.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(**tokenised(backbone, rows)).last_hidden_state
        found = states_of(backbone, data, None)
    lengths = data.lengths.tolist()
    assert largest(found, torch.cat([row[:length] for row, length in zip(expected, lengths, strict=True)])) <= 1e-5
    tensors = {name: tensor.requires_grad_() for name, tensor in pack(peft, backbone, 1).items()}
    states = states_of(backbone, data, peft.inject(tensors, backbone.shape))
    (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    for tensor in tensors.values():
        assert tensor.grad is not None
        assert bool((tensor.grad.abs().amax((0, 2, 3, 4)) > 1e-4).all())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [True, False], ids=["pad token", "no pad token"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "qwen2"])
def test_how_a_tokenizer_pads_changes_nothing(
    model_type: str, pad: bool, side: str, tiny: Tiny, tiny_folder: Folder, tmp_path: Path
) -> None:
    folder = tmp_path / model_type
    shutil.copytree(tiny_folder(model_type), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = side
    tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token if pad else None
    tokenizer.save_pretrained(folder)
    backbone = load(folder)
    assert backbone.tokenizer.padding_side == side
    assert (backbone.tokenizer.pad_token is not None) == pad
    peft = method(f"prefix:length={LENGTH}")
    injection = peft.inject(pack(peft, backbone, 1), backbone.shape)
    pooled = []
    for one in (tiny(model_type), backbone):
        data = data_of(one)[1]
        batch = gather(data, torch.arange(ROWS), data.input_ids.shape[1])
        pooled.append(one.forward(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(1)))
    assert torch.equal(*pooled)


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2", "t5", "bert"])
def test_an_empty_text_has_a_vector_whatever_it_is_padded_to(model_type: str, tiny: Tiny) -> None:
    """GPT-2's tokenizer gives it no token at all."""
    backbone, peft = tiny(model_type), method(f"prefix:length={LENGTH}")
    injection = peft.inject(pack(peft, backbone, 1), backbone.shape)
    found = []
    for texts in (["", "the dog"], ["", "a much longer text that is about the dog"]):
        data = encode(backbone, [texts], None, "classification", MAX_LENGTH)
        batch = gather(data, torch.arange(2), data.input_ids.shape[1])
        found.append(backbone.forward(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(1)))
    assert bool(torch.stack(found).isfinite().all())
    assert largest(found[0][0], found[1][0]) <= 1e-5


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "modernbert"])
def test_rotary_frequencies_stay_in_float32(model_type: str, tiny: Tiny, tiny_folder: Folder) -> None:
    """In bfloat16 they would be wrong by up to 0.4 %: a radian after a few hundred tokens."""
    backbone = load(tiny_folder(model_type), torch.bfloat16)
    buffers = {name: buffer for name, buffer in backbone._model.named_buffers() if "inv_freq" in name}
    assert buffers
    for name, buffer in tiny(model_type)._model.named_buffers():
        if name in buffers:
            assert torch.equal(buffers[name], buffer)
    assert {parameter.dtype for parameter in backbone._model.parameters()} == {torch.bfloat16}


def test_segments_that_a_tokenizer_gives_to_a_decoder_are_left_out(tiny: Tiny) -> None:
    """GPT-2 would add the embeddings of the words 0 and 1."""
    for model_type in ("gpt2", "llama"):
        backbone = tiny(model_type)
        ids, lengths = torch.tensor([[5, 6, 7, 8]]), torch.tensor([4])
        segments = torch.tensor([[0, 0, 1, 1]])
        with_segments = backbone.forward(ids, lengths, segments, None, Rows(1))
        assert torch.equal(with_segments, backbone.forward(ids, lengths, None, None, Rows(1)))


@pytest.mark.parametrize("kind", ["classification", "multiple-choice", "token-classification", "extractive-qa"])
def test_t5_has_one_linear_layer_for_every_kind(kind: str, tiny: Tiny) -> None:
    backbone = tiny("t5")
    outputs = {"multiple-choice": 1, "extractive-qa": 2}.get(kind, 3)
    head = backbone.head(outputs, kind)
    generator = torch.Generator().manual_seed(0)
    parameters = {name: torch.randn((2, *shape), generator=generator) for name, shape in head.shapes.items()}
    assert set(parameters) == {"classifier.weight", "classifier.bias"}
    tokens = () if kind == "classification" else (5,)
    states = torch.randn((2, 4, *tokens, 32), generator=generator)
    expected = torch.einsum("gb...h,goh->gb...o", states, parameters["classifier.weight"])
    expected = expected + parameters["classifier.bias"].view(2, 1, *[1] * len(tokens), outputs)
    if kind == "multiple-choice":
        expected = expected[..., 0]
    elif kind == "extractive-qa":
        expected = expected.transpose(2, 3)
    assert largest(head(parameters, states), expected) <= 1e-5
    assert largest(head({n: t[:1] for n, t in parameters.items()}, states[:1]), expected[:1]) <= 1e-5


def test_albert_goes_through_its_pooler(tiny: Tiny, tiny_folder: Folder) -> None:
    model = classifier(tiny_folder("albert"), 3)
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    inner = torch.tanh(hidden @ model.albert.pooler.weight.T + model.albert.pooler.bias)
    expected = inner @ model.classifier.weight.T + model.classifier.bias
    assert largest(tiny("albert").head(3)(head_of(model), hidden.unsqueeze(0))[0], expected) <= 1e-5


@pytest.mark.parametrize("before", [True, False], ids=["norm before", "norm behind"])
def test_opt_350m_projects_its_last_layer(before: bool, tiny_folder: Folder, tmp_path: Path) -> None:
    """Embeddings and last states are narrower than the layers; with a prefix its logits are those of PEFT."""
    from peft import PrefixTuningConfig, get_peft_model

    folder = variant(tiny_folder, tmp_path, "opt", word_embed_proj_dim=16, do_layer_norm_before=before)
    backbone, peft = load(folder), method(f"prefix:length={LENGTH}")
    assert (backbone.shape.hidden, backbone.shape.input_width, backbone.info.output_width) == (32, 16, 16)
    model = classifier(folder, 3)
    head = head_of(model)
    config = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=LENGTH, token_dim=32)
    wrapped = get_peft_model(model, config).eval()
    tensors = pack(peft, backbone, 1)
    # [layers, 2, length, heads, head_dim] to PEFT's [length, layers * 2 * heads * head_dim]
    pairs = torch.stack((tensors["key"][0], tensors["value"][0]), dim=1)
    with torch.no_grad():
        weight = wrapped.prompt_encoder["default"].embedding.weight
        weight.copy_(pairs.permute(2, 0, 1, 3, 4).reshape(weight.shape))
    rows, data = data_of(backbone, 2)
    batch = gather(data, torch.arange(ROWS), data.input_ids.shape[1])
    injection = peft.inject(tensors, backbone.shape)
    with torch.no_grad():
        pooled = backbone.forward(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(1))
        found = backbone.head(3)(head, pooled.unsqueeze(0))[0]
        for row in range(ROWS):
            expected = wrapped(**tokenised(backbone, [[column[row]] for column in rows])).logits[0]
            assert largest(found[row], expected) <= 1e-5


@pytest.mark.parametrize("spec", ["prefix:length=3", "prompt:length=3", "adapter:reduction=8", "full"])
def test_opt_350m_trains_and_its_prompt_is_stored(spec: str, tiny_folder: Folder, tmp_path: Path) -> None:
    backbone = load(variant(tiny_folder, tmp_path, "opt", word_embed_proj_dim=16))
    rows = columns(ROWS, 3, 1)
    data = encode(backbone, rows, [0, 1, 2] * (ROWS // 3), "classification", MAX_LENGTH)
    peft = method(spec)
    students = new_students(backbone, CLASSES, peft, [0], 1e-3)
    settings = RunSettings(TrainSettings(epochs=2, batch_size=3), 1e-3, MAX_LENGTH)
    encoded = EncodedTask(CLASSES, data, data, None, data, ())
    trained = train_students(backbone, peft, students, encoded, settings)
    (prompt,) = finished_prompts(backbone, encoded, trained, students, settings)
    assert prompt.embedding is not None
    assert prompt.embedding.shape == (16,)
    save_prompt(prompt, tmp_path / "prompt.safetensors")
    again = load_prompt(tmp_path / "prompt.safetensors")
    for name, tensor in prompt.tensors.items():
        assert torch.equal(tensor, again.tensors[name])
    assert torch.equal(again.embedding, prompt.embedding)
