"""Task heads, against the ones that transformers puts on the same backbones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_samples import CLASSIFIER_TYPES, classifier, head_of, largest
from transformers import AutoModelForSequenceClassification

from panda_fusion.backbone import Backbone
from panda_fusion.testing import MODEL_TYPES

Folder = Callable[[str], Path]
Tiny = Callable[[str], Backbone]


@pytest.mark.parametrize("outputs", [1, 2, 5])
@pytest.mark.parametrize("model_type", CLASSIFIER_TYPES)
def test_names_and_shapes_are_those_of_transformers(
    model_type: str, outputs: int, tiny: Tiny, tiny_folder: Folder
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_folder(model_type), num_labels=outputs)
    expected = {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if not name.startswith(f"{model.base_model_prefix}.")
    }
    assert tiny(model_type).head(outputs).shapes == expected


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra", "distilbert"])
def test_new_heads_are_drawn_as_transformers_draws_them(model_type: str, tiny: Tiny, tiny_folder: Folder) -> None:
    """Same spread of the weights, zero biases. The last layer is made wide, so that the spread is well measured."""
    head = tiny(model_type).head(400)
    drawn = head.create(torch.Generator().manual_seed(1))
    again = head.create(torch.Generator().manual_seed(1))
    other = head.create(torch.Generator().manual_seed(2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForSequenceClassification.from_pretrained(tiny_folder(model_type), num_labels=400)
    for name, expected in head_of(model).items():
        assert torch.equal(drawn[name], again[name])
        assert drawn[name].dtype == torch.float32
        if name.endswith("bias"):
            assert not bool(drawn[name].any())
            assert not bool(expected.any())
        else:
            assert not torch.equal(drawn[name], other[name])
            # 1024 values or more: the standard deviation of a sample is known to 2.2 %.
            assert float(drawn[name].std()) == pytest.approx(float(expected.std()), rel=0.15)
            assert abs(float(drawn[name].mean())) < 0.15 * float(expected.std())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_only_the_head_is_trained(model_type: str, tiny: Tiny) -> None:
    """What a backward pass would reach: the given parameters and vectors, and nothing of the backbone (BERT's
    head goes through the pooler of the base model, which stays frozen)."""
    backbone = tiny(model_type)
    head = backbone.head(3)
    parameters = {name: torch.randn(2, *shape, requires_grad=True) for name, shape in head.shapes.items()}
    pooled = torch.randn(2, 4, backbone.shape.hidden, requires_grad=True)
    found = head(parameters, pooled)
    leaves = set()
    pending = [found.grad_fn]
    while pending:
        node = pending.pop()
        if node is None:
            continue
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        pending.extend(parent for parent, _ in node.next_functions)
    assert leaves == {id(tensor) for tensor in (*parameters.values(), pooled)}


def test_bert_goes_through_the_frozen_pooler(tiny: Tiny, tiny_folder: Folder) -> None:
    model = classifier(tiny_folder("bert"), 3)
    hidden = torch.randn(5, 1, model.config.hidden_size)
    pooler, linear = model.bert.pooler.dense, model.classifier
    inner = torch.tanh(hidden[:, 0] @ pooler.weight.T + pooler.bias)
    expected = inner @ linear.weight.T + linear.bias
    assert largest(tiny("bert").head(3)(head_of(model), hidden[:, 0].unsqueeze(0))[0], expected) <= 1e-6


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_heads_of_a_pack_equal_each_alone(model_type: str, tiny: Tiny) -> None:
    head = tiny(model_type).head(3)
    generator = torch.Generator().manual_seed(0)
    stacked = {name: torch.randn((4, *shape), generator=generator) * 0.3 for name, shape in head.shapes.items()}
    pooled = torch.randn((4, 6, tiny(model_type).shape.hidden), generator=generator)
    together = head(stacked, pooled)
    assert together.shape == (4, 6, 3)
    for place in range(4):
        own = {name: tensor[place : place + 1] for name, tensor in stacked.items()}
        assert largest(head(own, pooled[place : place + 1])[0], together[place]) <= 1e-5


def test_dropout_acts_in_training_only_and_differs_between_prompts(tiny: Tiny) -> None:
    head = tiny("bert").head(3)
    parameters = {name: torch.ones(2, *shape) for name, shape in head.shapes.items()}
    pooled = torch.ones(2, 8, 32)
    plain = head(parameters, pooled)
    dropped = head(parameters, pooled, 0.5)
    assert largest(plain[0], plain[1]) <= 1e-6
    assert largest(dropped, plain) > 1e-2
    assert largest(dropped[0], dropped[1]) > 1e-2
    assert largest(head(parameters, pooled), plain) == 0.0
