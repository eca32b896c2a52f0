import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForTextEncoding, AutoTokenizer

from panda_fusion.testing import MODEL_TYPES, make_tiny_backbone


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("backbones")
    return {model: make_tiny_backbone(model, root / model) for model in MODEL_TYPES}


def base_model(folder):
    """The base model; of T5 the encoder."""
    return (AutoModelForTextEncoding if folder.name == "t5" else AutoModel).from_pretrained(folder).eval()


def test_the_tokenizers_differ_in_what_decoders_differ_in(folders):
    tokenizers = {model: AutoTokenizer.from_pretrained(folder) for model, folder in folders.items()}
    assert [model for model, own in tokenizers.items() if own.padding_side == "left"] == ["llama", "qwen3"]
    assert [model for model, own in tokenizers.items() if own.pad_token is None] == ["gpt2", "llama"]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_loads_with_transformers_and_tells_inputs_apart(folders, model_type):
    tokenizer = AutoTokenizer.from_pretrained(folders[model_type])
    model = base_model(folders[model_type])
    assert model.config.model_type == model_type
    assert tokenizer.is_fast
    assert tokenizer.pad_token_id == model.config.pad_token_id
    states = []
    for text in ("the dog is in a box", "she was not good"):
        with torch.no_grad():
            states.append(model(**tokenizer([text], return_tensors="pt")).last_hidden_state.mean(1)[0])
    assert states[0].shape == (32,)
    assert torch.stack(states).isfinite().all()
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
    if tokenizer.cls_token is not None:
        assert tokens[0] == tokenizer.cls_token
        assert tokens.count(tokenizer.sep_token) == (3 if model_type == "roberta" else 2)
    elif model_type in {"opt", "t5"}:
        assert tokens.count(tokenizer.eos_token) == 2
        assert tokens[0 if model_type == "opt" else -1] == tokenizer.eos_token
    elif model_type == "llama":
        assert [token == tokenizer.bos_token for token in tokens].index(True) == 0
    else:
        assert not set(tokens) & set(tokenizer.all_special_tokens)
    assert ("token_type_ids" in pair) == (model_type in {"bert", "electra", "albert", "deberta-v2"})
    if "token_type_ids" in pair:
        assert set(pair["token_type_ids"]) == {0, 1}


def test_the_longest_text_fits_into_the_position_table(folders):
    for folder in folders.values():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        batch = tokenizer("a b c d e " * 100, truncation=True, return_tensors="pt")
        assert batch["input_ids"].shape[1] == 128
        with torch.no_grad():
            assert base_model(folder)(**batch).last_hidden_state.isfinite().all()


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
