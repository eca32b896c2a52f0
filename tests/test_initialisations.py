"""Where prompts and prefixes start: against embeddings, keys and values that are computed here by hand."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import QUICK, make_work, run
from engine_samples import CLASSES, columns, encoded, largest, method
from transformers import AutoModel, T5EncoderModel

from panda_fusion.backbone import Backbone
from panda_fusion.dataset import encode, gather
from panda_fusion.errors import BackboneError, OptionError
from panda_fusion.injection import Rows
from panda_fusion.plugin_manager import peft_methods
from panda_fusion.prompt_file import load_prompt
from panda_fusion.starting_points import sampled_tokens, text_tokens, token_keys_and_values
from panda_fusion.students import new_students
from panda_fusion.testing import MODEL_TYPES
from panda_fusion.trainer import TrainSettings, train_pack

Tiny = Callable[[str], Backbone]
Folder = Callable[[str], Path]


def drawn(spec: str, backbone: Backbone, seed: int = 5) -> dict[str, torch.Tensor]:
    return method(spec).create(backbone, torch.Generator().manual_seed(seed))


def plain_model(model_type: str, folder: Path) -> Any:
    kind = T5EncoderModel if model_type == "t5" else AutoModel
    return kind.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


@pytest.mark.parametrize("model_type", ["bert", "electra", "qwen3"])
def test_normal_is_the_backbones_own_scale(model_type: str, tiny: Tiny) -> None:
    """The very numbers of a generator, key before value, so that runs of earlier versions can be repeated."""
    shape = tiny(model_type).shape
    generator = torch.Generator().manual_seed(5)
    size = (shape.layers, 7, shape.kv_heads, shape.head_dim)
    key, value = (torch.randn(size, generator=generator) * 0.2 for _ in range(2))
    found = drawn("prefix:length=7", tiny(model_type))
    assert torch.equal(found["key"], key)
    assert torch.equal(found["value"], value)
    expected = torch.randn((7, shape.input_width), generator=torch.Generator().manual_seed(5)) * 0.2
    assert torch.equal(drawn("prompt:length=7", tiny(model_type))["embedding"], expected)


@pytest.mark.parametrize("length", [1, 10, 25])
def test_sparse_sets_a_tenth_of_every_column_to_zero(length: int, tiny: Tiny) -> None:
    """As torch.nn.init.sparse_ does: the same number of zeros in every column, at rows of its own."""
    backbone = tiny("bert")
    found, normal = drawn(f"prefix:length={length},init=sparse", backbone), drawn(f"prefix:length={length}", backbone)
    reference = torch.nn.init.sparse_(torch.empty(length, 6), sparsity=0.1)
    zeros = int((reference[:, 0] == 0).sum())
    assert zeros == ceil(0.1 * length)
    for name, tensor in found.items():
        assert torch.equal((tensor == 0).sum(1), torch.full_like(tensor[:, 0], zeros, dtype=torch.int64))
        kept = tensor != 0
        assert torch.equal(tensor[kept], normal[name][kept])
    if length == 25:
        places = {
            tuple((found["key"][0, :, head, d] == 0).nonzero().flatten().tolist())
            for head in range(4)
            for d in range(8)
        }
        assert len(places) > 20, "the columns have their zeros at the same tokens"
        assert not torch.equal(found["key"] == 0, found["value"] == 0)


def test_constant_is_zero_and_trains(tiny: Tiny) -> None:
    """Zeros are a symmetric start: the tokens of a layer all get the same gradient and stay alike."""
    backbone, peft = tiny("bert"), method("prefix:length=3,init=constant")
    assert all(not tensor.any() for tensor in drawn(peft.spec, backbone).values())
    students = new_students(backbone, CLASSES, peft, [0], 1e-2)
    settings = TrainSettings(epochs=1, batch_size=8, dropout=0.0)
    trained = train_pack(backbone, peft, students, CLASSES, encoded(backbone, CLASSES, 8), settings)
    for tensor in trained.tensors.values():
        assert float(tensor.abs().max()) > 1e-3
        assert largest(tensor[0, :, 0], tensor[0, :, 2]) <= 1e-4


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_sampled_tokens_are_ordinary_and_distinct(model_type: str, tiny: Tiny) -> None:
    backbone = tiny(model_type)
    everything = set(range(len(backbone.tokenizer))) - set(backbone.tokenizer.all_special_ids)
    count = len(everything)
    ids = sampled_tokens(backbone, 2 * count + 5, torch.Generator().manual_seed(1)).tolist()
    assert set(ids[:count]) == everything
    assert ids[count : 2 * count] == ids[:count]
    assert ids[:20] != sampled_tokens(backbone, 20, torch.Generator().manual_seed(2)).tolist()


@pytest.mark.parametrize("model_type", ["bert", "electra", "t5"])
def test_prompt_from_the_vocabulary_has_rows_of_the_embedding_table(
    model_type: str, tiny: Tiny, tiny_folder: Folder
) -> None:
    backbone = tiny(model_type)
    table = plain_model(model_type, tiny_folder(model_type)).get_input_embeddings().weight
    found = drawn("prompt:length=9,init=vocab", backbone)["embedding"]
    distances = torch.cdist(found, table.detach())
    rows = distances.argmin(1).tolist()
    assert torch.equal(found, table[rows])
    assert len(set(rows)) == 9
    assert not set(rows) & set(backbone.tokenizer.all_special_ids)
    assert not torch.equal(found, drawn("prompt:length=9,init=vocab", backbone, 6)["embedding"])


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("length", [2, 4, 11])
def test_prompt_from_a_text_repeats_and_cuts_it(model_type: str, length: int, tiny: Tiny, tiny_folder: Folder) -> None:
    backbone = tiny(model_type)
    text = "yes, it was"
    ids = backbone.tokenizer.convert_tokens_to_ids(backbone.tokenizer.tokenize(text))
    assert len(ids) >= 4
    expected = plain_model(model_type, tiny_folder(model_type)).get_input_embeddings()(torch.tensor((ids * 4)[:length]))
    found = drawn(f'prompt:length={length},init=text,text="{text}"', backbone)["embedding"]
    assert torch.equal(found, expected)
    assert torch.equal(found, drawn(f'prompt:length={length},init=text,text="{text}"', backbone, 6)["embedding"])


def test_text_without_tokens_is_refused(tiny: Tiny) -> None:
    with pytest.raises(BackboneError, match=r"^The text ' ' has no tokens in the vocabulary of backbone .*; give one"):
        text_tokens(tiny("bert"), " ", 3)


def keys_by_hand(model_type: str, model: Any, layer: int, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Key and value projections [1, P, hidden] of a layer, found under the names that the model's source gives them."""
    if model_type in ("bert", "roberta"):
        own = model.encoder.layer[layer].attention.self
        return own.key(states), own.value(states)
    if model_type == "albert":
        own = model.encoder.albert_layer_groups[0].albert_layers[0].attention
        return own.key(states), own.value(states)
    if model_type == "deberta-v2":
        own = model.encoder.layer[layer].attention.self
        return own.key_proj(states), own.value_proj(states)
    if model_type == "gpt2":
        block = model.h[layer]
        return block.attn.c_attn(block.ln_1(states)).split(states.shape[-1], dim=2)[1:]
    own = model.encoder.block[layer].layer[0]
    states = own.layer_norm(states)
    return own.SelfAttention.k(states), own.SelfAttention.v(states)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "albert", "deberta-v2", "gpt2", "t5"])
def test_prefix_from_the_vocabulary_has_the_backbones_own_keys_and_values(
    model_type: str, tiny: Tiny, tiny_folder: Folder
) -> None:
    backbone, length = tiny(model_type), 6
    tokens = sampled_tokens(backbone, length, torch.Generator().manual_seed(5))
    found = drawn(f"prefix:length={length},init=vocab", backbone)
    model = plain_model(model_type, tiny_folder(model_type))
    with torch.no_grad():
        states = model(input_ids=tokens[None], attention_mask=torch.ones(1, length), output_hidden_states=True)
        for layer in range(backbone.shape.layers):
            expected = keys_by_hand(model_type, model, layer, states.hidden_states[layer])
            for name, tensor in zip(("key", "value"), expected, strict=True):
                assert largest(found[name][layer].flatten(1), tensor[0]) <= 1e-5, (name, layer)


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "llama", "qwen2", "qwen3"])
def test_in_a_decoder_such_a_prefix_is_the_tokens_themselves(model_type: str, tiny: Tiny, tiny_folder: Folder) -> None:
    """Earlier tokens do not see later ones there, so prefix and text give what the whole text gives transformers."""
    backbone, length = tiny(model_type), 6
    peft = method(f"prefix:length={length},init=vocab")
    tokens = sampled_tokens(backbone, length, torch.Generator().manual_seed(5))
    made = {name: tensor[None] for name, tensor in peft.create(backbone, torch.Generator().manual_seed(5)).items()}
    data = encode(backbone, columns(1, 8), None, "classification", 32)
    batch = gather(data, torch.arange(1), data.input_ids.shape[1])
    found = backbone.hidden_states(batch.input_ids, batch.lengths, None, peft.inject(made, backbone.shape), Rows(1))
    model = plain_model(model_type, tiny_folder(model_type))
    with torch.no_grad():
        whole = torch.cat((tokens[None], batch.input_ids), dim=1)
        expected = model(input_ids=whole, attention_mask=torch.ones_like(whole)).last_hidden_state[:, length:]
    assert largest(found, expected) <= 2e-5


def test_more_tokens_than_positions_are_refused(tiny: Tiny) -> None:
    with pytest.raises(BackboneError, match="200 positions"):
        token_keys_and_values(tiny("bert"), torch.full((200,), 20))


def test_recording_leaves_nothing_behind(tiny: Tiny) -> None:
    from panda_fusion import attention

    backbone = tiny("bert")
    state = torch.get_rng_state()
    made = drawn("prefix:length=3,init=vocab", backbone)
    assert not attention._recordings
    assert torch.equal(state, torch.get_rng_state())
    assert not any(tensor.requires_grad or tensor.is_inference() for tensor in made.values())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("prefix:projection=4,init=sparse", "init is that of keys and values, which projection computes"),
        ("prompt:init=text", 'init=text and text="..." are given together or not at all'),
        ("prompt:text=yes", 'init=text and text="..." are given together or not at all'),
        ("prefix:init=xavier", "must be one of constant, normal, sparse, vocab"),
    ],
)
def test_settings_that_make_no_sense_are_refused(spec: str, words: str) -> None:
    with pytest.raises(OptionError) as error:
        peft_methods().create(spec)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("spec", "stored"),
    [
        ("prefix:length=4,init=sparse", "prefix:length=4,projection=0,init=normal"),
        ("prefix:length=4,projection=8", "prefix:length=4,projection=0,init=normal"),
        ('prompt:length=4,init=text,text="a, b"', "prompt:length=4,init=normal,text=none"),
    ],
)
def test_files_do_not_depend_on_where_training_started(spec: str, stored: str) -> None:
    """Sources that started in different ways can be fused, and training can go on from any of them."""
    assert method(spec).stored().spec == stored
    assert method(stored).stored().spec == stored


def test_every_initialisation_from_the_command_line(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, tiny_folder: Folder
) -> None:
    work = make_work(tmp_path_factory.getbasetemp() / "init-work", tiny_folder("bert"))
    train = work.words(f"train --task {{w}}/mood --model {{model}} {QUICK} --max-steps 2 --json --lr 0.02")
    for number, spec in enumerate(
        ("prefix:length=4,init=sparse", "prefix:length=4,init=vocab", 'prompt:length=4,init=text,text="good, or not"')
    ):
        result = run(*train, "--method", spec, "--out", f"{number}.safetensors", cwd=tmp_path).json
        prompt = load_prompt(tmp_path / f"{number}.safetensors")
        recipe = prompt.training["recipe"]
        assert isinstance(recipe, dict)
        assert result["method"] == recipe["method"] == method(spec).spec
        assert prompt.method == method(spec).stored().spec
    # A prefix that started from the vocabulary goes on where one stopped that started sparse.
    again = run(
        *train,
        "--method",
        "prefix:length=4,init=vocab",
        "--init",
        "0.safetensors",
        "--out",
        "3.safetensors",
        cwd=tmp_path,
    )
    assert again.json["init"] == "0.safetensors"


def test_a_file_from_before_an_option_existed_still_fits_the_others(tmp_path: Path) -> None:
    from prompt_samples import contents, make_prompt, rewrite

    from panda_fusion.prompt_file import save_prompt
    from panda_fusion_cli.run_options import check_prompt_file

    path = tmp_path / "old.safetensors"
    save_prompt(make_prompt(), path)
    tensors, metadata = contents(path)
    rewrite(path, tensors, metadata | {"method": '"prefix:length=3,projection=0"'})
    assert load_prompt(path).method == check_prompt_file(path).method == "prefix:length=3,projection=0,init=normal"
