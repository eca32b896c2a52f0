"""Trained input embeddings, against a transformers forward pass whose inputs are put together here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_samples import MAX_LENGTH, columns, largest, method, pack, tokenised
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForTextEncoding

from panda_fusion.backbone import Backbone
from panda_fusion.dataset import encode, gather
from panda_fusion.injection import Rows
from panda_fusion.testing import MODEL_TYPES

LENGTH = 4
ROWS = 6
POOLING = {**dict.fromkeys(("gpt2", "opt", "llama", "qwen2", "qwen3"), "last"), "t5": "mean"}


@pytest.mark.parametrize("number", [1, 2], ids=["one column", "two columns"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_input_prompt_equals_embeddings_put_in_front_by_hand(
    model_type: str,
    number: int,
    tiny: Callable[[str], Backbone],
    tiny_folder: Callable[[str], Path],
) -> None:
    """The pooled vector is that of the text alone, and gradients are the same too."""
    backbone, peft = tiny(model_type), method(f"prompt:length={LENGTH}")
    ours = pack(peft, backbone, 1)["embedding"].requires_grad_()
    theirs = ours.detach()[0].clone().requires_grad_()
    rows = columns(ROWS, 5, number)

    data = encode(backbone, rows, None, "classification", 2 * MAX_LENGTH)
    batch = gather(data, torch.arange(ROWS), data.input_ids.shape[1])
    injection = peft.inject({"embedding": ours}, backbone.shape)
    found = backbone.forward(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(1))

    loader = AutoModelForTextEncoding if model_type == "t5" else AutoModel
    model = loader.from_pretrained(tiny_folder(model_type), attn_implementation="eager", dtype=torch.float32).eval()
    inputs = tokenised(backbone, rows)
    words = model.get_input_embeddings()(inputs.pop("input_ids"))
    inputs["inputs_embeds"] = torch.cat((theirs.expand(ROWS, -1, -1), words), dim=1)
    inputs["attention_mask"] = F.pad(inputs["attention_mask"], (LENGTH, 0), value=1)
    if "token_type_ids" in inputs:
        inputs["token_type_ids"] = F.pad(inputs["token_type_ids"], (LENGTH, 0), value=0)
    states = model(**inputs).last_hidden_state[:, LENGTH:]
    texts = [row[:length] for row, length in zip(states, data.lengths.tolist(), strict=True)]
    pooled: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "first": lambda text: text[0],
        "last": lambda text: text[-1],
        "mean": lambda text: text.mean(0),
    }
    expected = torch.stack([pooled[POOLING.get(model_type, "first")](text) for text in texts])

    assert largest(found, expected) <= 1e-5
    aim = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (found * aim).sum().backward()
    (expected * aim).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert float(theirs.grad.abs().max()) > 1e-2
    assert largest(ours.grad[0], theirs.grad) <= 1e-4 * float(theirs.grad.abs().max())


def test_prompt_is_as_wide_as_the_input_embeddings(tiny: Callable[[str], Backbone]) -> None:
    """ELECTRA's embeddings are narrower than its hidden states."""
    backbone, peft = tiny("electra"), method(f"prompt:length={LENGTH}")
    assert backbone.shape.hidden == 32
    assert tuple(pack(peft, backbone, 1)["embedding"].shape) == (1, LENGTH, 16)
    assert peft.stored_shapes(backbone.shape) == {"embedding": (LENGTH, 16)}
