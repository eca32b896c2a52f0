"""Prefixes inside the frozen backbone, against PEFT, transformers and a forward pass written here."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_samples import (
    CLASSIFIER_TYPES,
    MAX_LENGTH,
    OTHER_TYPES,
    PEFT_TYPES,
    classifier,
    columns,
    head_of,
    largest,
    logits,
    method,
    pack,
    slice_of,
    tokenised,
)
from plain_backbones import PLAIN
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForTextEncoding

from panda_fusion.attention import prefix_scope
from panda_fusion.backbone import Backbone, load_backbone
from panda_fusion.dataset import EncodedSet, encode, gather
from panda_fusion.errors import BackboneError
from panda_fusion.inference import predict_logits
from panda_fusion.injection import Injection, Rows
from panda_fusion.testing import MODEL_TYPES

Folder = Callable[[str], Path]
Tiny = Callable[[str], Backbone]
LENGTH = 5
ROWS = 7


def data_of(backbone: Backbone, number: int, count: int = ROWS) -> tuple[list[list[str]], EncodedSet]:
    rows = columns(count, 3, number)
    return rows, encode(backbone, rows, None, "classification", 2 * MAX_LENGTH)


def all_rows(data: EncodedSet, times: int = 1) -> Any:
    return gather(data, torch.arange(len(data)).repeat(times), data.input_ids.shape[1])


def peft_model(folder: Path, outputs: int, tensors: dict[str, torch.Tensor], **options: Any) -> Any:
    """PEFT's prefix tuning with the first prompt of a pack, on the classifier of `classifier`."""
    from peft import PrefixTuningConfig, get_peft_model

    config = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=LENGTH, **options)
    model = get_peft_model(classifier(folder, outputs), config).eval()
    encoder = model.prompt_encoder["default"]
    with torch.no_grad():
        if options:
            encoder.embedding.weight.copy_(tensors["embedding"][0])
            encoder.transform[0].weight.copy_(tensors["down_weight"][0].T)
            encoder.transform[0].bias.copy_(tensors["down_bias"][0])
            encoder.transform[2].weight.copy_(tensors["up_weight"][0].T)
            encoder.transform[2].bias.copy_(tensors["up_bias"][0])
        else:
            both = torch.stack((tensors["key"][0], tensors["value"][0]), dim=1)
            encoder.embedding.weight.copy_(both.permute(2, 0, 1, 3, 4).flatten(1))
    return model


@pytest.mark.parametrize("number", [1, 2], ids=["one column", "two columns"])
@pytest.mark.parametrize("model_type", PEFT_TYPES)
def test_prefix_equals_peft(model_type: str, number: int, tiny: Tiny, tiny_folder: Folder) -> None:
    backbone, peft = tiny(model_type), method(f"prefix:length={LENGTH}")
    tensors = pack(peft, backbone, 1)
    rows, data = data_of(backbone, number)
    model = peft_model(tiny_folder(model_type), 3, tensors)
    with torch.no_grad():
        expected = model(**tokenised(backbone, rows)).logits
        without = model.get_base_model()(**tokenised(backbone, rows)).logits
    found = logits(backbone, peft, tensors, head_of(classifier(tiny_folder(model_type), 3)), data)[0]
    assert largest(found, expected) <= 1e-5
    assert largest(found, without) > 1e-2, "the prefix changes nothing, so the comparison says nothing"


@pytest.mark.parametrize(
    ("model_type", "projection"),
    [
        (model_type, projection)
        for model_type in PEFT_TYPES
        for projection in (0, 12)
        # With grouped heads PEFT's projection starts from embeddings of another width than ours.
        if not (projection and model_type in ("llama", "qwen2"))
    ],
)
def test_gradients_equal_peft(model_type: str, projection: int, tiny: Tiny, tiny_folder: Folder) -> None:
    backbone = tiny(model_type)
    peft = method(f"prefix:length={LENGTH},projection={projection}")
    tensors = {name: tensor.requires_grad_() for name, tensor in pack(peft, backbone, 1).items()}
    rows, data = data_of(backbone, 2)
    options = {"prefix_projection": True, "encoder_hidden_size": projection} if projection else {}
    model = peft_model(tiny_folder(model_type), 3, tensors, **options)
    head = {n: t.requires_grad_() for n, t in head_of(classifier(tiny_folder(model_type), 3)).items()}
    labels = torch.arange(ROWS) % 3

    batch = all_rows(data)
    pooled = backbone.forward(
        batch.input_ids, batch.lengths, batch.token_types, peft.inject(tensors, backbone.shape), Rows(1)
    )
    F.cross_entropy(backbone.head(3)(head, pooled.unsqueeze(0))[0], labels).backward()
    F.cross_entropy(model(**tokenised(backbone, rows)).logits, labels).backward()

    encoder = model.prompt_encoder["default"]
    if projection:
        expected = {
            "embedding": encoder.embedding.weight.grad,
            "down_weight": encoder.transform[0].weight.grad.T,
            "down_bias": encoder.transform[0].bias.grad,
            "up_weight": encoder.transform[2].weight.grad.T,
            "up_bias": encoder.transform[2].bias.grad,
        }
    else:
        shape = backbone.shape
        flat = encoder.embedding.weight.grad.view(LENGTH, shape.layers, 2, shape.kv_heads, shape.head_dim)
        key, value = flat.permute(2, 1, 0, 3, 4)
        expected = {"key": key, "value": value}
    trained = dict(model.named_parameters())
    for name in head:
        module, _, leaf = name.partition(".")
        expected[name] = trained[f"base_model.{module}.modules_to_save.default.{leaf}"].grad
    for name, tensor in (tensors | head).items():
        assert tensor.grad is not None
        assert float(tensor.grad.abs().max()) > 1e-4, name
        # float32 sums in another order: seven digits of the largest element, less what the sum loses.
        assert largest(tensor.grad[0], expected[name]) <= 1e-5 * max(1.0, float(expected[name].abs().max())), name


def hand_distilbert(model: Any, batch: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of DistilBERT with a prefix, from the weights and the published architecture alone."""
    weights = dict(model.state_dict())

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-12)

    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    count, width = ids.shape
    heads = tensors["key"].shape[2]
    names = "distilbert.embeddings"
    x = weights[f"{names}.word_embeddings.weight"][ids]
    x = norm(f"{names}.LayerNorm", x + weights[f"{names}.position_embeddings.weight"][LENGTH : LENGTH + width])
    seen = torch.cat((torch.ones(count, LENGTH, dtype=torch.bool), mask), 1)[:, None, None]
    for layer, (key, value) in enumerate(zip(tensors["key"], tensors["value"], strict=True)):
        names = f"distilbert.transformer.layer.{layer}"
        q, k, v = (
            linear(f"{names}.attention.{part}_lin", x).view(count, width, heads, -1).transpose(1, 2) for part in "qkv"
        )
        k, v = (
            torch.cat((own.transpose(0, 1).expand(count, -1, -1, -1), text), dim=2)
            for own, text in ((key, k), (value, v))
        )
        scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).masked_fill(~seen, -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(count, width, -1)
        x = norm(f"{names}.sa_layer_norm", x + linear(f"{names}.attention.out_lin", mixed))
        inner = F.gelu(linear(f"{names}.ffn.lin1", x))
        x = norm(f"{names}.output_layer_norm", x + linear(f"{names}.ffn.lin2", inner))
    return linear("classifier", linear("pre_classifier", x[:, 0]).relu())


def patched_modernbert(
    model: Any, batch: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], patch: pytest.MonkeyPatch
) -> torch.Tensor:
    """Logits of transformers' own ModernBERT, its eager attention replaced by one that sees the prefix."""
    from transformers.models.modernbert import modeling_modernbert

    def eager(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float, **_: Any) -> tuple[Any, None]:
        own = (tensors[name][module.layer_idx].transpose(0, 1) for name in ("key", "value"))
        k, v = (torch.cat((o.expand(len(q), -1, -1, -1), t), 2) for o, t in zip(own, (k, v), strict=True))
        scores = q @ k.transpose(2, 3) * scaling
        if mask is not None:
            scores = scores + torch.cat((torch.zeros(*mask.shape[:3], LENGTH), mask), dim=3)
        return (scores.softmax(-1) @ v).transpose(1, 2), None

    width = batch["input_ids"].shape[1]
    positions = torch.arange(LENGTH, LENGTH + width).expand(len(batch["input_ids"]), -1)
    with patch.context() as patched:
        patched.setattr(modeling_modernbert, "eager_attention_forward", eager)
        return model(**batch, position_ids=positions).logits


@pytest.mark.parametrize("number", [1, 2], ids=["one column", "two columns"])
@pytest.mark.parametrize("model_type", ["distilbert", "modernbert"])
def test_prefix_equals_a_plain_recomputation(
    model_type: str, number: int, tiny: Tiny, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where PEFT refuses: values and gradients."""
    backbone, peft = tiny(model_type), method(f"prefix:length={LENGTH}")
    ours = {name: tensor.requires_grad_() for name, tensor in pack(peft, backbone, 1).items()}
    theirs = {name: tensor[0].detach().clone().requires_grad_() for name, tensor in ours.items()}
    rows, data = data_of(backbone, number)
    model = classifier(tiny_folder(model_type), 3)
    batch = tokenised(backbone, rows)
    if model_type == "distilbert":
        expected = hand_distilbert(model, batch, theirs)
    else:
        assert batch["input_ids"].shape[1] > 2 * 8, "texts must be longer than the window of local attention"
        expected = patched_modernbert(model, batch, theirs, monkeypatch)
    own = all_rows(data)
    pooled = backbone.forward(own.input_ids, own.lengths, own.token_types, peft.inject(ours, backbone.shape), Rows(1))
    found = backbone.head(3)(head_of(model), pooled.unsqueeze(0))[0]
    assert largest(found, expected) <= 1e-5
    labels = torch.arange(ROWS) % 3
    F.cross_entropy(found, labels).backward()
    F.cross_entropy(expected, labels).backward()
    for name, tensor in ours.items():
        assert tensor.grad is not None
        assert theirs[name].grad is not None
        assert float(tensor.grad.abs().max()) > 1e-4
        assert largest(tensor.grad[0], theirs[name].grad) <= 1e-6


def base_model(folder: Path, **changes: Any) -> Any:
    """transformers' own base model, in evaluation mode."""
    loader = AutoModelForTextEncoding if folder.name == "t5" else AutoModel
    return loader.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32, **changes).eval()


def real(states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The states of real tokens, one below the other."""
    return torch.cat([row[:length] for row, length in zip(states, lengths.tolist(), strict=True)])


@pytest.mark.parametrize("number", [1, 2], ids=["one column", "two columns"])
@pytest.mark.parametrize("model_type", list(PLAIN))
def test_prefix_equals_a_forward_pass_written_by_hand(
    model_type: str, number: int, tiny: Tiny, tiny_folder: Folder
) -> None:
    """Where PEFT refuses: states of all tokens, and gradients; without a prefix the pass by hand is transformers'."""
    assert set(PLAIN) | {"distilbert", "modernbert"} == set(OTHER_TYPES)
    backbone, peft = tiny(model_type), method(f"prefix:length={LENGTH}")
    ours = {name: tensor.requires_grad_() for name, tensor in pack(peft, backbone, 1).items()}
    theirs = {name: tensor[0].detach().clone().requires_grad_() for name, tensor in ours.items()}
    rows, data = data_of(backbone, number)
    model, batch = base_model(tiny_folder(model_type)), tokenised(backbone, rows)
    with torch.no_grad():
        plain = model(**batch).last_hidden_state
        own = PLAIN[model_type](model, batch, {name: tensor[:, :0] for name, tensor in theirs.items()})
    assert largest(real(own, data.lengths), real(plain, data.lengths)) <= 1e-5
    expected = real(PLAIN[model_type](model, batch, theirs), data.lengths)
    assert largest(expected, real(plain, data.lengths)) > 1e-2, "the prefix changes nothing"
    gathered = all_rows(data)
    injection = peft.inject(ours, backbone.shape)
    states = backbone.hidden_states(gathered.input_ids, gathered.lengths, gathered.token_types, injection, Rows(1))
    found = real(states, data.lengths)
    assert largest(found, expected) <= 1e-5
    aim = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    (found * aim).sum().backward()
    (expected * aim).sum().backward()
    for name, tensor in ours.items():
        assert tensor.grad is not None
        assert theirs[name].grad is not None
        reference = theirs[name].grad
        assert float(reference.abs().max()) > 1e-2
        assert largest(tensor.grad[0], reference) <= 1e-5 * float(reference.abs().max())


@pytest.mark.parametrize("number", [1, 2], ids=["one column", "two columns"])
@pytest.mark.parametrize("model_type", CLASSIFIER_TYPES)
def test_without_prefix_equals_transformers(model_type: str, number: int, tiny: Tiny, tiny_folder: Folder) -> None:
    backbone = tiny(model_type)
    rows, data = data_of(backbone, number)
    model = classifier(tiny_folder(model_type), 3)
    with torch.no_grad():
        # Padded on the side that the tokenizer says, which the engine need not do.
        expected = model(**tokenised(backbone, rows, backbone.tokenizer.padding_side)).logits
    batch = all_rows(data)
    pooled = backbone.forward(batch.input_ids, batch.lengths, batch.token_types, None, Rows(1))
    assert largest(backbone.head(3)(head_of(model), pooled.unsqueeze(0))[0], expected) <= 1e-5


@pytest.mark.parametrize("spec", ["none", f"prefix:length={LENGTH}", f"prompt:length={LENGTH}"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_padding_changes_nothing(model_type: str, spec: str, tiny: Tiny) -> None:
    backbone = tiny(model_type)
    _, data = data_of(backbone, 2)
    assert len(set(data.lengths.tolist())) > 3
    injection = None
    if spec != "none":
        peft = method(spec)
        injection = peft.inject(pack(peft, backbone, 1), backbone.shape)
    batch = all_rows(data)
    together = backbone.forward(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(1))
    for row in range(len(data)):
        one = gather(data, torch.tensor([row]), int(data.lengths[row]))
        alone = backbone.forward(one.input_ids, one.lengths, one.token_types, injection, Rows(1))
        assert largest(alone[0], together[row]) <= 1e-5


@pytest.mark.parametrize("spec", [f"prefix:length={LENGTH}", f"prompt:length={LENGTH}"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_grouped_rows_equal_rows_by_index_and_each_prompt_alone(model_type: str, spec: str, tiny: Tiny) -> None:
    backbone, peft = tiny(model_type), method(spec)
    tensors = pack(peft, backbone, 3)
    injection = peft.inject(tensors, backbone.shape)
    _, data = data_of(backbone, 1)
    batch = all_rows(data, 3)
    grouped = backbone.forward(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(3))
    owners = torch.arange(3).repeat_interleave(ROWS)
    indexed = backbone.forward(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(3, owners))
    assert largest(grouped, indexed) <= 1e-6
    order = torch.randperm(3 * ROWS, generator=torch.Generator().manual_seed(0))
    types = None if batch.token_types is None else batch.token_types[order]
    mixed = backbone.forward(batch.input_ids[order], batch.lengths[order], types, injection, Rows(3, owners[order]))
    assert largest(mixed, indexed[order]) <= 1e-5
    single = all_rows(data)
    for place, group in enumerate(grouped.split(ROWS)):
        own = peft.inject(slice_of(tensors, place), backbone.shape)
        alone = backbone.forward(single.input_ids, single.lengths, single.token_types, own, Rows(1))
        assert largest(group, alone) <= 1e-5
    assert largest(grouped[:ROWS], grouped[ROWS : 2 * ROWS]) > 1e-2, "the prompts of the pack act alike"


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_predictions_come_in_the_order_of_the_data(
    model_type: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes run in chunks sorted by length; results must not show it."""
    backbone, peft = tiny(model_type), method(f"prefix:length={LENGTH}")
    tensors = pack(peft, backbone, 2)
    generator = torch.Generator().manual_seed(0)
    head = {
        name: torch.randn(shape, generator=generator).mul(0.3).expand(2, *shape)
        for name, shape in backbone.head(3).shapes.items()
    }
    _, data = data_of(backbone, 1, 23)
    whole = predict_logits(backbone, data, peft, tensors, head, 3)
    monkeypatch.setattr("panda_fusion.inference.CPU_TOKENS", 100)
    chunks = predict_logits(backbone, data, peft, tensors, head, 3)
    assert largest(whole, chunks) <= 1e-5
    batch = all_rows(data)
    injection = peft.inject(slice_of(tensors, 1), backbone.shape)
    with torch.no_grad():
        pooled = backbone.forward(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(1))
        direct = backbone.head(3)(slice_of(head, 1), pooled.unsqueeze(0))
    assert largest(whole[1:], direct) <= 1e-5


BF16_TOLERANCE = 0.05
"""Largest relative error of pooled vectors: bfloat16 keeps 8 bits (0.4 %) per operation, over 2 or 3 layers."""


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_bfloat16_is_close_to_float32(model_type: str, tiny: Tiny, tiny_folder: Folder) -> None:
    backbone, peft = tiny(model_type), method(f"prefix:length={LENGTH}")
    half = load_backbone(str(tiny_folder(model_type)), device=torch.device("cpu"), dtype=torch.bfloat16)
    _, data = data_of(backbone, 2)
    batch = all_rows(data)
    injection = peft.inject(pack(peft, backbone, 1), backbone.shape)
    pooled = [
        one.forward(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(1)) for one in (backbone, half)
    ]
    assert pooled[1].dtype == torch.bfloat16
    error = (pooled[0] - pooled[1].float()).norm(dim=1) / pooled[0].norm(dim=1)
    assert float(error.max()) <= BF16_TOLERANCE
    assert float(error.max()) > 0, "it did not run in bfloat16"
    head = {name: torch.zeros(1, *shape) for name, shape in half.head(2).shapes.items()}
    assert half.head(2)(head, pooled[1].unsqueeze(0)).dtype == torch.float32


def prefix_of(layers: int, backbone: Backbone) -> Injection:
    shape = backbone.shape
    key = torch.randn(1, layers, LENGTH, shape.kv_heads, shape.head_dim)
    return Injection(key=key, value=key.clone())


@pytest.mark.parametrize("difference", [-1, 1], ids=["too few layers", "too many layers"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_prefix_for_another_number_of_attention_calls_raises(model_type: str, difference: int, tiny: Tiny) -> None:
    backbone = tiny(model_type)
    batch = all_rows(data_of(backbone, 1)[1])
    injection = prefix_of(backbone.shape.layers + difference, backbone)
    with pytest.raises(BackboneError, match="attention calls"):
        backbone.forward(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(1))
    # The error must not leave the prefix behind for the next pass.
    plain = backbone.forward(batch.input_ids, batch.lengths, batch.token_types, None, Rows(1))
    assert bool(plain.isfinite().all())


def test_prefix_on_a_model_with_another_attention_raises(tiny_folder: Folder) -> None:
    backbone = load_backbone(str(tiny_folder("bert")), device=torch.device("cpu"), dtype=torch.float32)
    backbone._model.set_attn_implementation("sdpa")  # type: ignore[operator]
    batch = all_rows(data_of(backbone, 1)[1])
    with pytest.raises(BackboneError, match="attention calls"):
        backbone.hidden_states(batch.input_ids, batch.lengths, batch.token_types, prefix_of(2, backbone), Rows(1))


def test_scope_is_left_when_the_pass_fails() -> None:
    key = torch.zeros(1, 2, LENGTH, 4, 8)
    with pytest.raises(ZeroDivisionError), prefix_scope(key, key, Rows(1)):
        _ = 1 / 0
    from panda_fusion import attention

    query = torch.randn(1, 4, 3, 8)
    found, _ = attention.attention(torch.nn.Module(), query, query, query, None)
    assert largest(found, F.scaled_dot_product_attention(query, query, query).transpose(1, 2)) <= 1e-6
