import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from panda_fusion.testing import MODEL_TYPES, make_tiny_backbone


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("backbones")
    return {model: make_tiny_backbone(model, root / model) for model in MODEL_TYPES}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_loads_with_transformers_and_tells_inputs_apart(folders, model_type):
    tokenizer = AutoTokenizer.from_pretrained(folders[model_type])
    model = AutoModel.from_pretrained(folders[model_type]).eval()
    assert model.config.model_type == model_type
    assert tokenizer.is_fast
    assert tokenizer.pad_token_id == model.config.pad_token_id
    batch = tokenizer(["the dog is in a box", "she was not good"], return_tensors="pt", padding=True)
    with torch.no_grad():
        states = model(**batch).last_hidden_state[:, 0]
    assert states.shape == (2, 32)
    assert states.isfinite().all()
    assert (states[0] - states[1]).norm() > 0.1


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_any_text_tokenises_and_pairs_have_both_texts(folders, model_type):
    tokenizer = AutoTokenizer.from_pretrained(folders[model_type])
    text = "Quick brown fox, 42!"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "").lower() == text.replace(" ", "").lower()
    pair = tokenizer("a dog", "no")
    tokens = tokenizer.convert_ids_to_tokens(pair["input_ids"])
    assert tokens[0] == tokenizer.cls_token
    assert tokens.count(tokenizer.sep_token) == (3 if model_type == "roberta" else 2)
    assert ("token_type_ids" in pair) == (model_type in {"bert", "electra"})
    if "token_type_ids" in pair:
        assert set(pair["token_type_ids"]) == {0, 1}


def test_the_longest_text_fits_into_the_position_table(folders):
    for folder in folders.values():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        batch = tokenizer("a b c d e " * 100, truncation=True, return_tensors="pt")
        assert batch["input_ids"].shape[1] == 128
        with torch.no_grad():
            assert AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state.isfinite().all()


def test_the_seed_decides_the_weights_and_the_global_state_stays(tmp_path):
    state = torch.get_rng_state()
    weights = [
        load_file(make_tiny_backbone("bert", tmp_path / str(number), seed=seed) / "model.safetensors")
        for number, seed in enumerate((0, 0, 1))
    ]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_unknown_model_type(tmp_path):
    with pytest.raises(ValueError, match="known: bert, roberta"):
        make_tiny_backbone("gpt9", tmp_path)
