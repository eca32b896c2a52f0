"""Model tuning, against transformers' own models trained by a plain PyTorch loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_support import QUICK, make_work, run
from engine_samples import CLASSES, columns, encoded, largest, method
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from panda_fusion import safetensors_header
from panda_fusion.backbone import Backbone, load_backbone
from panda_fusion.dataset import encode, gather
from panda_fusion.errors import BackboneError, PromptFileError, TrainingError
from panda_fusion.inference import pooled_vectors
from panda_fusion.injection import Injection, Rows
from panda_fusion.plugin_manager import similarities
from panda_fusion.prompt_file import check_stored, load_prompt, save_prompt
from panda_fusion.replaced_weights import replaced_weights
from panda_fusion.similarity import SimilarityContext
from panda_fusion.students import new_students
from panda_fusion.trainer import TrainSettings, train_pack

Tiny = Callable[[str], Backbone]
Folder = Callable[[str], Path]
ROWS, STEPS, RATE = 10, 3, 1e-3


@pytest.mark.parametrize("model_type", ["bert", "albert", "distilbert", "gpt2", "llama"])
def test_training_equals_a_plain_loop_over_the_transformers_model(
    model_type: str, tiny: Tiny, tiny_folder: Folder
) -> None:
    """AdamW, gradient norm 1, a rate that falls linearly; pooler and head included, all parameters compared."""
    backbone, peft = tiny(model_type), method("full")
    texts, labels = columns(ROWS, 3), [number % 3 for number in range(ROWS)]
    data = encode(backbone, texts, labels, "classification", 32)
    (student,) = new_students(backbone, CLASSES, peft, [0], RATE)
    settings = TrainSettings(epochs=STEPS, batch_size=ROWS, dropout=0.0)
    pack = train_pack(backbone, peft, [student], CLASSES, data, settings)

    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_folder(model_type), num_labels=3, attn_implementation="eager", dtype=torch.float32
    ).eval()  # no dropout
    model.config.pad_token_id = 0 if model.config.pad_token_id is None else model.config.pad_token_id
    model.load_state_dict(dict(student.head), strict=False)
    inputs = padded(backbone, texts[0], model_type)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    large: dict[str, torch.Tensor] = {}
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        optimizer.zero_grad()
        model(**inputs, labels=torch.tensor(labels)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        # Adam's steps hardly depend on the gradient's size, so where it is rounding noise so is the step.
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            large[name] = large.get(name, torch.tensor(True)) & (parameter.grad.abs() > 1e-4)
        optimizer.step()

    prefix = model.base_model_prefix + "."
    compared = 0
    for name, parameter in model.named_parameters():
        own = pack.tensors[name.removeprefix(prefix)] if name.startswith(prefix) else pack.head[name]
        assert own.shape[1:] == parameter.shape
        moved = (own[0] - parameter.detach())[large[name]]
        assert not moved.numel() or float(moved.abs().max()) <= 2e-5, name
        compared += moved.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert compared > total / 4
    assert {prefix + name for name in pack.tensors} | set(pack.head) == {name for name, _ in model.named_parameters()}


def padded(backbone: Backbone, texts: list[str], model_type: str) -> dict[str, torch.Tensor]:
    """The batch as a user of transformers makes it, padded on the right."""
    tokenizer = AutoTokenizer.from_pretrained(backbone.name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    tokenizer.padding_side = "right"
    inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    if model_type in ("gpt2", "llama"):
        # Their classifiers find the last token by its not being the padding token, which texts must not hold.
        assert not bool((inputs["input_ids"] == 0)[inputs["attention_mask"].bool()].any())
    return inputs


def test_an_untrained_one_is_the_backbone(tiny: Tiny) -> None:
    for model_type in ("bert", "t5", "deberta-v2"):
        backbone, peft = tiny(model_type), method("full")
        data = encoded(backbone, CLASSES, 5)
        tensors = peft.create(backbone, torch.Generator())
        assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
        found = pooled_vectors(backbone, data, peft, {name: tensor[None] for name, tensor in tensors.items()})
        assert largest(found, pooled_vectors(backbone, data)) <= 1e-5


def test_the_backbone_itself_never_changes(tiny: Tiny) -> None:
    backbone, peft = tiny("bert"), method("full")
    before = backbone.weights()
    students = new_students(backbone, CLASSES, peft, [0], RATE)
    trained = train_pack(
        backbone, peft, students, CLASSES, encoded(backbone, CLASSES, 8), TrainSettings(epochs=1, batch_size=4)
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.weights().items())
    assert all(largest(trained.tensors[name][0], tensor) > 0 for name, tensor in before.items())


def test_small_steps_are_not_lost_in_bfloat16(tiny_folder: Folder) -> None:
    """bfloat16 has 8 bits: a step of 1e-6 on a weight of 0.2 would vanish in it."""
    backbone = load_backbone(str(tiny_folder("bert")), device=torch.device("cpu"), dtype=torch.bfloat16)
    peft = method("full")
    (student,) = new_students(backbone, CLASSES, peft, [0], 1e-6)
    settings = TrainSettings(epochs=1, batch_size=8, dropout=0.0)
    trained = train_pack(backbone, peft, [student], CLASSES, encoded(backbone, CLASSES, 8), settings)
    name = "encoder.layer.0.output.dense.weight"
    moved = (trained.tensors[name][0] - student.tensors[name]).abs()
    assert 0 < float(moved.max()) < 2e-6
    assert float((moved > 0).float().mean()) > 0.9


@pytest.mark.parametrize("model_type", ["bert", "albert"])
def test_gradient_checkpointing_gives_the_same_gradients(model_type: str, tiny: Tiny, tiny_folder: Folder) -> None:
    """Layers that are computed again must see the trained weights again."""
    peft = method("full")
    found = []
    for checkpointing in (False, True):
        backbone = load_backbone(
            str(tiny_folder(model_type)),
            device=torch.device("cpu"),
            dtype=torch.float32,
            gradient_checkpointing=checkpointing,
        )
        tensors = {
            name: (1.5 * tensor[None]).requires_grad_()
            for name, tensor in peft.create(backbone, torch.Generator()).items()
        }
        data = encoded(backbone, CLASSES, 4)
        batch = gather(data, torch.arange(4), data.input_ids.shape[1])
        injection = peft.inject(tensors, backbone.shape)
        pooled = backbone.forward(batch.input_ids, batch.lengths, batch.token_types, injection, Rows(1))
        pooled.square().sum().backward()
        found.append({name: tensor.grad for name, tensor in tensors.items()})
    for name, expected in found[0].items():
        again = found[1][name]
        if expected is None or again is None:
            assert expected is again, name  # the pooler, which no pooled vector goes through
            continue
        assert largest(again, expected) <= 1e-5 * max(1.0, float(expected.abs().max())), name


def test_it_learns(tiny: Tiny) -> None:
    backbone, peft = tiny("bert"), method("full")
    data = encoded(backbone, CLASSES, 60)
    assert new_students(backbone, CLASSES, peft, [0], None)[0].learning_rate == 3e-5, "its own default"
    students = new_students(backbone, CLASSES, peft, [0], 3e-3)
    settings = TrainSettings(epochs=15, batch_size=20, dropout=0.0)
    trained = train_pack(backbone, peft, students, CLASSES, data, settings, validation=data)
    assert data.labels is not None
    majority = float(torch.bincount(data.labels).max()) / len(data)
    assert trained.scores[0].last["accuracy"] > majority + 0.3


def test_packs_are_refused(tiny: Tiny) -> None:
    backbone, peft = tiny("bert"), method("full")
    students = new_students(backbone, CLASSES, peft, [0, 1], None)
    data = encoded(backbone, CLASSES, 4)
    with pytest.raises(TrainingError, match=r"'full' changes the backbone itself, .* 2 were given as one pack\.$"):
        train_pack(backbone, peft, students, CLASSES, data, TrainSettings())
    two = {name: torch.stack([tensor, tensor]) for name, tensor in students[0].tensors.items()}
    with pytest.raises(BackboneError, match=r"not a pack of 2; run its prompts one at a time\.$"):
        pooled_vectors(backbone, data, peft, two)


def test_weights_of_another_backbone_are_refused(tiny: Tiny) -> None:
    backbone = tiny("bert")
    name = "encoder.layer.0.output.dense.weight"
    for weights, words in (
        ({"no.such": torch.zeros(1, 3)}, "'no.such' by a tensor of shape [3], but in the backbone it is missing"),
        ({name: torch.zeros(1, 3)}, f"{name!r} by a tensor of shape [3], but in the backbone it is [32, 64]"),
    ):
        with pytest.raises(BackboneError) as error:
            backbone.forward(
                torch.ones((1, 2), dtype=torch.int64), torch.tensor([2]), None, Injection(weights=weights), Rows(1)
            )
        assert words in str(error.value)
        assert str(error.value).count(". ") == 0


def test_replaced_weights_come_back_after_an_error() -> None:
    layer = torch.nn.Linear(2, 2)
    weight = layer.weight

    def fail() -> None:
        with replaced_weights(layer, {"weight": torch.zeros(2, 2)}):
            assert not layer.weight.any()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert layer.weight is weight
    assert layer._parameters["weight"] is weight


def test_shared_weights_are_replaced_everywhere() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    with replaced_weights(model, {"0.weight": 2 * torch.eye(2)}):
        assert model(torch.ones(1, 2)).tolist() == [[4.0, 4.0]]


def test_a_backbone_too_large_for_a_file_is_refused_before_training(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_header, "MAX_DATA_BYTES", 1000)
    with pytest.raises(BackboneError, match=r"a prompt file holds at most 1000; use a smaller backbone"):
        method("full").create(tiny("bert"), torch.Generator())


def test_from_training_to_prediction_and_back_on_the_command_line(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, tiny_folder: Folder
) -> None:
    work = make_work(tmp_path_factory.getbasetemp() / "full-work", tiny_folder("bert"))
    model = "--model {model} --precision fp32 --device cpu --json"

    def go(line: str) -> dict[str, object]:
        value = run(*work.words(line), cwd=tmp_path).json
        assert isinstance(value, dict)
        return value

    train = f"train --task {{w}}/mood --model {{model}} {QUICK} --max-steps 6 --json"
    trained = go(f"{train} --method full --out full.safetensors")
    assert (trained["method"], trained["steps"]) == ("full", 6)
    shown = go("prompt show full.safetensors --json")
    training = shown["training"]
    assert isinstance(training, dict)
    assert training["recipe"]["learning_rate"] == 3e-5
    backbone = load_backbone(str(work.model), device=torch.device("cpu"), dtype=torch.float32)
    prompt = load_prompt(tmp_path / "full.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in prompt.tensors.items()} == backbone.shape.parameters

    found = go("evaluate full.safetensors --task {w}/mood " + model)
    assert found["score"] == trained["best"]
    predicted = go("predict full.safetensors --input {w}/mood/validation.jsonl --out out.jsonl " + model)
    assert predicted["rows"] == len((tmp_path / "out.jsonl").read_text().splitlines()) == 20
    assert set(json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])) == {"label", "probabilities"}
    verified = go("prompt verify full.safetensors --model {model} --json")
    assert verified["ok"]
    ranked = go(
        "rank full.safetensors {w}/topic.safetensors --task {w}/mood --target-prompt {w}/mood.safetensors " + model
    )
    assert len(ranked["ranking"]) == 2  # type: ignore[arg-type]
    again = go(f"{train} --init full.safetensors --out more.safetensors")
    assert again["method"] == "full"
    moved = go(
        "transfer --task {w}/topic --source full.safetensors --out moved.safetensors --max-steps 4 --probe-steps 2 "
        f"--teacher source --similarity panda --model {{model}} {QUICK} --json"
    )
    assert moved["method"] == "full"

    refused = run("prompt", "export", "full.safetensors", "--out", "peft", cwd=tmp_path)
    assert refused.code == 1
    assert (
        "method full, for which PEFT has no counterpart; only prefix and input prompts can be exported." in refused.err
    )

    # The file knows no shapes of its own; the backbone does.
    name = "encoder.layer.0.output.dense.bias"
    for tensors, words in (
        (
            {**prompt.tensors, name: torch.zeros(3)},
            f"peft.{name} has shape [3], but method full on its backbone has [32]",
        ),
        ({**prompt.tensors, "extra": torch.zeros(3)}, "holds an unexpected tensor peft.extra"),
        ({k: t for k, t in prompt.tensors.items() if k != name}, f"lacks the tensor peft.{name}"),
    ):
        save_prompt(replace(prompt, tensors=tensors), tmp_path / "odd.safetensors")
        odd = load_prompt(tmp_path / "odd.safetensors")
        with pytest.raises(PromptFileError) as error:
            check_stored(odd, backbone)
        assert words in str(error.value)
        done = run(*work.words("evaluate odd.safetensors --task {w}/mood " + model), cwd=tmp_path)
        assert (done.code, words in done.err) == (1, True)
    with pytest.raises(PromptFileError, match=r"holds no tensor peft\.\*"):
        save_prompt(replace(prompt, tensors={}), tmp_path / "odd.safetensors")


def test_eavg_compares_all_numbers(tiny: Tiny) -> None:
    from panda_fusion.testing.samples import sample_prompt

    backbone = tiny("bert")
    one, two = (sample_prompt(backbone, method("full"), seed) for seed in (1, 2))
    context = SimilarityContext(backbone=backbone, samples=encoded(backbone, CLASSES, 4))
    found = similarities().create("eavg").score(one, two, context)
    flat = [torch.cat([p.tensors[name].flatten() for name in sorted(p.tensors)]).double() for p in (one, two)]
    assert found == pytest.approx(float(torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0)), abs=1e-6)
