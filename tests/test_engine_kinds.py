"""Heads that read more than one vector per row: choices, words, answer spans. References are transformers and PEFT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_kinds import ANSWERS, CHOICES, KINDS, TAGS, encoded_kind
from engine_samples import head_of, largest, method, pack, slice_of
from peft import PrefixTuningConfig, TaskType, get_peft_model
from torch.nn import functional as F
from transformers import AutoModelForMultipleChoice, AutoModelForQuestionAnswering, AutoModelForTokenClassification

from panda_fusion.backbone import Backbone
from panda_fusion.dataset import EncodedSet
from panda_fusion.inference import head_features, pooled_vectors, predict_logits
from panda_fusion.injection import Rows
from panda_fusion.plugin_manager import kd_losses
from panda_fusion.readout import IGNORED, MASKED, masked, read
from panda_fusion.students import new_students
from panda_fusion.task import Task
from panda_fusion.trainer import Distillation, Student, TrainSettings, train_pack

Tiny = Callable[[str], Backbone]
Folder = Callable[[str], Path]
MODELS: dict[str, Any] = {
    "multiple-choice": AutoModelForMultipleChoice,
    "token-classification": AutoModelForTokenClassification,
    "extractive-qa": AutoModelForQuestionAnswering,
}
EXAMPLES = 14
IDS = [task.kind for task in KINDS]


def reference(folder: Path, task: Task) -> Any:
    """transformers' own model of the kind on a tiny backbone, its head drawn with large weights."""
    arguments = {} if task.kind != "token-classification" else {"num_labels": task.outputs}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[task.kind].from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **arguments)
        for name, parameter in model.named_parameters():
            if not name.startswith(f"{model.base_model_prefix}."):
                parameter.data.normal_(0, 0.3)
    return model.eval()


def batch_of(data: EncodedSet) -> dict[str, torch.Tensor]:
    """The whole set as a batch for a transformers model."""
    width = data.input_ids.shape[1]
    made = {
        "input_ids": data.input_ids.long(),
        "attention_mask": (torch.arange(width) < data.lengths[:, None]).long(),
    }
    if data.token_types is not None:
        made["token_type_ids"] = data.token_types.long()
    if data.choices is not None:
        made = {name: tensor.view(-1, data.rows, width) for name, tensor in made.items()}
    return made


def expected_logits(output: Any, data: EncodedSet) -> torch.Tensor:
    """A transformers output in the engine's shape."""
    if data.choices is not None:
        missing = torch.arange(data.rows) >= data.choices[:, None]
        return output.logits.masked_fill(missing, MASKED)
    if data.words is not None:
        first = data.words.long().clamp(min=0)
        return output.logits.gather(1, first[..., None].expand(-1, -1, output.logits.shape[-1]))
    assert data.answerable is not None
    both = torch.stack((output.start_logits, output.end_logits), 1)
    return both.masked_fill(~data.answerable[:, None], MASKED)


@pytest.mark.parametrize("task", KINDS, ids=IDS)
@pytest.mark.parametrize("model_type", ["bert", "electra", "distilbert", "modernbert"])
@torch.no_grad()
def test_logits_without_a_prompt_are_transformers_own(
    model_type: str, task: Task, tiny: Tiny, tiny_folder: Folder
) -> None:
    backbone = tiny(model_type)
    data = encoded_kind(backbone, task, EXAMPLES)
    model = reference(tiny_folder(model_type), task)
    index = torch.arange(EXAMPLES)[None]
    features = read(backbone, data, index, data.input_ids.shape[1], None, Rows(1))
    found = masked(backbone.head(task.outputs, task.kind)(head_of(model), features), data, index)[0]
    expected = expected_logits(model(**batch_of(data)), data)
    counts = torch.ones_like(found, dtype=torch.bool)
    if data.words is not None:
        counts = (data.words >= 0)[..., None].expand_as(found)
    assert largest(found[counts], expected[counts]) <= 5e-6


def test_a_missing_pooler_is_trained_with_the_head(tiny: Tiny, tiny_folder: Folder) -> None:
    """RoBERTa classifies without its pooler, but chooses with it; the logits are still those of transformers."""
    backbone = tiny("roberta")
    head = backbone.head(1, "multiple-choice")
    assert "roberta.pooler.dense.weight" in head.shapes
    model = reference(tiny_folder("roberta"), CHOICES)
    parameters = {name: dict(model.named_parameters())[name].detach()[None] for name in head.shapes}
    data = encoded_kind(backbone, CHOICES, EXAMPLES)
    index = torch.arange(EXAMPLES)[None]
    features = read(backbone, data, index, data.input_ids.shape[1], None, Rows(1))
    found = masked(head(parameters, features), data, index)[0]
    assert largest(found, expected_logits(model(**batch_of(data)), data)) <= 5e-6


@pytest.mark.parametrize("task", [TAGS, ANSWERS], ids=["token-classification", "extractive-qa"])
@torch.no_grad()
def test_a_prefix_is_pefts_prefix(task: Task, tiny: Tiny, tiny_folder: Folder) -> None:
    backbone = tiny("bert")
    peft = method("prefix:length=4")
    tensors = pack(peft, backbone, 1)
    model = reference(tiny_folder("bert"), task)
    head = head_of(model)
    kind = TaskType.TOKEN_CLS if task is TAGS else TaskType.QUESTION_ANS
    wrapped = get_peft_model(model, PrefixTuningConfig(task_type=kind, num_virtual_tokens=4)).eval()
    both = torch.stack((tensors["key"][0], tensors["value"][0]), 1)  # [layers, 2, P, heads, head_dim]
    wrapped.prompt_encoder["default"].embedding.weight.data.copy_(both.permute(2, 0, 1, 3, 4).reshape(4, -1))
    data = encoded_kind(backbone, task, EXAMPLES)
    found = predict_logits(backbone, data, peft, tensors, head, task.outputs)[0]
    expected = expected_logits(wrapped(**batch_of(data)), data)
    if data.words is not None:
        found, expected = found[data.words >= 0], expected[data.words >= 0]
    assert largest(found, expected) <= 1e-5


@pytest.mark.parametrize("spec", ["prefix:length=3", "prompt:length=3"])
@pytest.mark.parametrize("task", KINDS, ids=IDS)
def test_an_example_does_not_feel_its_batch(task: Task, spec: str, tiny: Tiny) -> None:
    """Alone and in a wider batch, alone and in a pack: the same logits, at the same places."""
    backbone = tiny("bert")
    peft = method(spec)
    data = encoded_kind(backbone, task, EXAMPLES)
    tensors = pack(peft, backbone, 3)
    head = backbone.head(task.outputs, task.kind)
    made = [head.create(torch.Generator().manual_seed(seed)) for seed in range(3)]
    heads = {name: torch.stack([one[name] for one in made]) for name in head.shapes}
    together = predict_logits(backbone, data, peft, tensors, heads, task.outputs)
    for place in (0, 5, 11):
        one = data.subset([place])
        width = int(one.lengths.max())
        one = replace(
            one,
            input_ids=one.input_ids[:, :width],
            token_types=None if one.token_types is None else one.token_types[:, :width],
            answerable=None if one.answerable is None else one.answerable[:, :width],
        )
        for prompt in range(3):
            alone = predict_logits(
                backbone, one, peft, slice_of(tensors, prompt), slice_of(heads, prompt), task.outputs
            )[0, 0]
            expected = together[prompt, place]
            if data.words is not None:
                real = data.words[place] >= 0
                alone, expected = alone[real], expected[real]
            elif data.answerable is not None:
                assert bool((expected[:, width:] == MASKED).all())
                expected = expected[:, :width]
            assert largest(alone, expected) <= 5e-6


def with_distillation(backbone: Backbone, task: Task, data: EncodedSet, spec: str, teacher: torch.Tensor) -> Student:
    loss = kd_losses().create(spec)
    (student,) = new_students(
        backbone,
        task,
        method("prefix:length=3"),
        [3],
        1e-2,
        None,
        Distillation(loss, loss.targets(teacher, task.kind), 1),
    )
    return student


SETTINGS = TrainSettings(epochs=2, batch_size=4, dropout=0.0)


def teacher_logits(backbone: Backbone, task: Task, data: EncodedSet, seed: int) -> torch.Tensor:
    """Logits of another random prompt, which knows what cannot be chosen."""
    peft = method("prefix:length=3")
    head = backbone.head(task.outputs, task.kind)
    made = head.create(torch.Generator().manual_seed(seed))
    parameters = {name: tensor[None] * 20 for name, tensor in made.items()}
    return predict_logits(backbone, data, peft, pack(peft, backbone, 1, seed), parameters, task.outputs)[0]


@pytest.mark.parametrize("task", KINDS, ids=IDS)
def test_a_pack_equals_every_prompt_alone(task: Task, tiny: Tiny) -> None:
    backbone = tiny("bert")
    data = encoded_kind(backbone, task, EXAMPLES)
    peft = method("prefix:length=3")
    students = []
    for place, spec in enumerate(("mse", "mse:space=logits", "kl:temperature=2", "ce")):
        loss = kd_losses().create(spec)
        targets = loss.targets(teacher_logits(backbone, task, data, place), task.kind)
        students += new_students(backbone, task, peft, [place], 5e-3, None, Distillation(loss, targets, 0.4))
    students += new_students(backbone, task, peft, [9], 1e-2)
    together = train_pack(backbone, peft, students, task, data, SETTINGS)
    for place, student in enumerate(students):
        alone = train_pack(backbone, peft, [student], task, data, SETTINGS)
        for name, tensor in alone.tensors.items():
            assert largest(tensor[0], together.tensors[name][place]) <= 1e-5
        for name, tensor in alone.head.items():
            # A bias common to all choices (all tokens) moves no probability: its gradient is rounding, scaled by Adam.
            if task is TAGS or not name.endswith("bias"):
                assert largest(tensor[0], together.head[name][place]) <= 1e-5


@pytest.mark.parametrize("task", KINDS, ids=IDS)
def test_the_loss_is_the_mean_over_what_counts(task: Task, tiny: Tiny) -> None:
    """One step's task and KD loss against a plain computation row by row."""
    from panda_fusion.readout import labels_and_mask
    from panda_fusion.task_loss import task_losses

    backbone = tiny("bert")
    data = encoded_kind(backbone, task, EXAMPLES)
    logits = teacher_logits(backbone, task, data, 1)
    teacher = teacher_logits(backbone, task, data, 2)
    assert data.labels is not None
    terms, squares = [], []
    for row in range(EXAMPLES):
        for place, label in enumerate(data.labels[row].reshape(-1).tolist()):
            if label == IGNORED:
                continue
            own = logits[row] if data.labels.ndim == 1 else logits[row, place]
            other = teacher[row] if data.labels.ndim == 1 else teacher[row, place]
            terms.append(float(F.cross_entropy(own[None], torch.tensor([label]))))
            squares.append(float((own.softmax(-1) - other.softmax(-1)).square().sum()))
    index = torch.arange(EXAMPLES)[None]
    labels, mask = labels_and_mask(data, index, data.input_ids.shape[1])
    found = task_losses(logits[None], labels, task.kind, mask)
    assert float(found) == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    loss = kd_losses().create("mse")
    distilled = loss.loss(logits[None], loss.targets(teacher[None], task.kind), task.kind, mask)
    assert float(distilled) == pytest.approx(sum(squares) / len(squares), rel=1e-5)


def test_distillation_runs_over_real_words_only(tiny: Tiny) -> None:
    """Teacher outputs at words that are none change nothing."""
    backbone = tiny("bert")
    data = encoded_kind(backbone, TAGS, EXAMPLES)
    assert data.labels is not None
    teacher = teacher_logits(backbone, TAGS, data, 1)
    noisy = torch.where((data.labels == IGNORED)[..., None], torch.randn_like(teacher) * 9, teacher)
    assert not torch.equal(noisy, teacher)
    peft = method("prefix:length=3")
    packs = [
        train_pack(backbone, peft, [with_distillation(backbone, TAGS, data, "mse", t)], TAGS, data, SETTINGS)
        for t in (teacher, noisy)
    ]
    for name, tensor in packs[0].tensors.items():
        assert torch.equal(tensor, packs[1].tensors[name])


@pytest.mark.parametrize("spec", ["mse", "mse:space=logits", "kl", "ce"])
def test_what_cannot_be_chosen_distils_nothing(spec: str, tiny: Tiny) -> None:
    """A fused teacher's value for a missing choice is no prediction, and has no gradient."""
    loss = kd_losses().create(spec)
    student = torch.tensor([[[1.0, -0.5, MASKED], [0.3, 0.2, 0.1]]], requires_grad=True)
    teacher = torch.tensor([[[0.2, 0.4, MASKED], [0.5, 0.1, 0.2]]])
    fused = 0.3 * loss.targets(teacher, "multiple-choice")
    value = loss.loss(student, fused, "multiple-choice")
    value.sum().backward()
    assert student.grad is not None
    assert float(value.detach()) < 10
    assert float(student.grad[0, 0, 2]) == 0
    assert bool(student.grad[0, 1].abs().gt(0).all())


@torch.no_grad()
def test_pooled_vectors_of_choices_are_the_mean_of_the_real_ones(tiny: Tiny) -> None:
    backbone = tiny("bert")
    data = encoded_kind(backbone, CHOICES, EXAMPLES)
    assert data.choices is not None
    found = pooled_vectors(backbone, data)[0]
    for row in range(EXAMPLES):
        some = slice(row * 4, row * 4 + int(data.choices[row]))
        each = backbone.forward(
            data.input_ids[some].long(),
            data.lengths[some],
            None if data.token_types is None else data.token_types[some].long(),
            None,
            Rows(1),
        )
        assert largest(found[row], each.mean(0)) <= 5e-6


@pytest.mark.parametrize("task", KINDS, ids=IDS)
@torch.no_grad()
def test_features_through_the_head_are_the_logits(task: Task, tiny: Tiny) -> None:
    """What teachers without a head of their own are fitted on is what the head reads in a prediction."""
    backbone = tiny("bert")
    data = encoded_kind(backbone, task, EXAMPLES)
    peft = method("prompt:length=3")
    tensors = pack(peft, backbone, 2)
    head = backbone.head(task.outputs, task.kind)
    made = head.create(torch.Generator().manual_seed(1))
    parameters = {name: tensor.expand(2, *tensor.shape) for name, tensor in made.items()}
    expected = predict_logits(backbone, data, peft, tensors, parameters, task.outputs)
    everything = torch.arange(EXAMPLES).expand(2, -1)
    found = masked(head(parameters, head_features(backbone, data, peft, tensors)), data, everything)
    if data.words is not None:
        found, expected = found[:, data.words >= 0], expected[:, data.words >= 0]
    assert largest(found, expected) <= 5e-6
