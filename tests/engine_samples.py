"""Texts, tasks, students and reference networks for the engine's tests."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from panda_fusion.backbone import Backbone
from panda_fusion.dataset import EncodedSet, encode
from panda_fusion.inference import predict_logits
from panda_fusion.peft_method import PEFTMethod
from panda_fusion.plugin_manager import peft_methods
from panda_fusion.task import Task
from panda_fusion.testing import MODEL_TYPES
from panda_fusion.testing.backbones import WORDS

DECODERS = ("gpt2", "opt", "llama", "qwen2", "qwen3")
"""Tiny backbones that read a text at its last token."""
PEFT_TYPES = ("bert", "roberta", "electra", *DECODERS)
"""Tiny backbones that PEFT's prefix tuning takes."""
OTHER_TYPES = ("distilbert", "modernbert", "albert", "deberta-v2", "t5")
"""Tiny backbones that it refuses (of T5 it takes the decoder only)."""
CLASSIFIER_TYPES = tuple(model_type for model_type in MODEL_TYPES if model_type != "t5")
"""Tiny backbones that transformers has a classifier for whose head can be compared: T5's sits behind its decoder."""
MAX_LENGTH = 40
PAD = 0
"""Token to pad with for tokenizers that have none; the tiny backbones' texts do not hold it."""

Tensors = Mapping[str, torch.Tensor]

CLASSES = Task(name="said-no", kind="classification", inputs=("text",), labels=("a", "b", "c"))
VALUES = Task(name="how-long", kind="regression", inputs=("text",), metric="pearson_spearman")


def texts(count: int, seed: int, longest: int = 9) -> list[str]:
    """Texts of 1 to `longest` known words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count)]


def columns(count: int, seed: int, number: int = 1) -> list[list[str]]:
    """One or two columns of texts."""
    return [texts(count, seed + 1000 * place) for place in range(number)]


def encoded(backbone: Backbone, task: Task, count: int, seed: int = 0) -> EncodedSet:
    """Random texts with labels that can be learnt from them."""
    rows = texts(count, seed)
    if task.kind == "regression":
        return encode(backbone, [rows], [len(row.split()) / 5 for row in rows], task.kind, MAX_LENGTH)
    labels = [0 if "no" in row.split() else 1 + len(row) % 2 for row in rows]
    return encode(backbone, [rows], labels, task.kind, MAX_LENGTH)


def method(spec: str) -> PEFTMethod:
    """A registered PEFT method."""
    return peft_methods().create(spec)


def pack(peft: PEFTMethod, backbone: Backbone, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Trainable tensors [G, ...] of random prompts, larger than new ones so that they matter."""
    generator = torch.Generator().manual_seed(seed)
    made = [peft.create(backbone, generator) for _ in range(count)]
    return {name: torch.stack([one[name] for one in made]) * 2 for name in made[0]}


def slice_of(tensors: Tensors, place: int) -> dict[str, torch.Tensor]:
    """One prompt of a pack, as a pack of one."""
    return {name: tensor[place : place + 1] for name, tensor in tensors.items()}


def classifier(folder: Path, outputs: int, seed: int = 0, attention: str = "eager") -> Any:
    """transformers' own classifier on a tiny backbone, its head drawn with large weights; evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=outputs, attn_implementation=attention, dtype=torch.float32
        )
        if model.config.pad_token_id is None:
            model.config.pad_token_id = PAD  # classifiers of decoders look for the last token that is not this one
        for name, parameter in model.named_parameters():
            if not name.startswith(f"{model.base_model_prefix}."):
                parameter.data.normal_(0, 0.3)
    return model.eval()


def head_of(model: Any) -> dict[str, torch.Tensor]:
    """The parameters of a transformers classifier outside its base model, as a pack of one."""
    return {
        name: parameter.detach().clone().unsqueeze(0)
        for name, parameter in model.named_parameters()
        if not name.startswith(f"{model.base_model_prefix}.")
    }


def tokenised(backbone: Backbone, rows: Sequence[Sequence[str]], side: str = "right") -> dict[str, torch.Tensor]:
    """The batch that a user of transformers would make, padded to the longest text on a side."""
    tokenizer = deepcopy(backbone.tokenizer)
    tokenizer.padding_side = side
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(PAD)
    return dict(tokenizer(*rows, padding=True, return_tensors="pt"))


def logits(backbone: Backbone, peft: PEFTMethod, tensors: Tensors, head: Tensors, data: EncodedSet) -> torch.Tensor:
    """[G, M, outputs] of the engine."""
    outputs = min(tensor.shape[1] for tensor in head.values())  # the last layer is the narrowest
    return predict_logits(backbone, data, peft, tensors, head, outputs)


def largest(first: torch.Tensor, second: torch.Tensor) -> float:
    """The largest absolute difference of two tensors of one shape."""
    assert first.shape == second.shape
    return float((first - second).detach().abs().max())


def accuracy(found: torch.Tensor, data: EncodedSet) -> float:
    """Share of rows [M, C] whose largest logit is the label's, counted here."""
    assert data.labels is not None
    right = [int(row.argmax()) == label for row, label in zip(found, data.labels.tolist(), strict=True)]
    return sum(right) / len(right)
