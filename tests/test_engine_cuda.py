"""The engine on a GPU: packs, precision, training, and the same results as on the CPU. Skipped without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from engine_samples import CLASSES, VALUES, accuracy, encoded, largest, logits, method, pack, slice_of

from panda_fusion.activation_memory import activation_bytes
from panda_fusion.backbone import Backbone, load_backbone
from panda_fusion.device import choose_device, choose_precision
from panda_fusion.inference import pooled_vectors, predict_logits, write_logits
from panda_fusion.large_tensor import LargeTensor
from panda_fusion.plugin_manager import kd_losses
from panda_fusion.students import new_students
from panda_fusion.testing import MODEL_TYPES
from panda_fusion.trainer import Distillation, Student, TrainSettings, train_pack

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
OnCuda = Callable[..., Backbone]
EXAMPLES = 50
SETTINGS = TrainSettings(epochs=2, batch_size=8, dropout=0.0)
SPECS = ("prefix:length=4", "prompt:length=4")


@pytest.fixture(scope="module")
def on_cuda(tiny_folder: Callable[[str], Path]) -> OnCuda:
    """From a model type (and a dtype) to a tiny backbone on the GPU; products in full float32."""
    torch.backends.cuda.matmul.allow_tf32 = False

    @cache
    def load(model_type: str, dtype: torch.dtype = torch.float32) -> Backbone:
        return load_backbone(str(tiny_folder(model_type)), device=torch.device("cuda"), dtype=dtype)

    return load


def students(backbone: Backbone, spec: str, rates: tuple[float, ...] = (1e-2, 3e-3, 2e-2)) -> list[Student]:
    """Three prompts, the second of which is distilled."""
    generator = torch.Generator().manual_seed(1)
    loss = kd_losses().create("mse")
    targets = loss.targets(torch.randn(EXAMPLES, 3, generator=generator), "classification")
    return [
        new_students(
            backbone,
            CLASSES,
            method(spec),
            [place],
            rate,
            None,
            Distillation(loss, targets, 0.5) if place == 1 else None,
        )[0]
        for place, rate in enumerate(rates)
    ]


def test_the_gpu_is_found() -> None:
    assert choose_device("auto").type == choose_device("cuda").type == "cuda"
    capable = torch.cuda.get_device_capability()[0] >= 8
    assert choose_precision("auto", torch.device("cuda")) == (torch.bfloat16 if capable else torch.float32)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_passes_equal_the_cpu(model_type: str, spec: str, on_cuda: OnCuda, tiny: Callable[[str], Backbone]) -> None:
    """In float32 to 1e-4; in bfloat16 to 5 % of the length of a vector."""
    host, peft = tiny(model_type), method(spec)
    tensors = pack(peft, host, 3)
    expected = pooled_vectors(host, encoded(host, CLASSES, 20), peft, tensors)
    assert on_cuda(model_type).info.fingerprint == host.info.fingerprint
    for dtype in (torch.float32, torch.bfloat16):
        backbone = on_cuda(model_type, dtype)
        found = pooled_vectors(backbone, encoded(backbone, CLASSES, 20), peft, tensors).cpu()
        error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert float(error.max()) <= (1e-4 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_pack_equals_every_prompt_alone_and_the_cpu(
    model_type: str, spec: str, on_cuda: OnCuda, tiny: Callable[[str], Backbone]
) -> None:
    backbone, host, peft = on_cuda(model_type), tiny(model_type), method(spec)
    data, host_data = encoded(backbone, CLASSES, EXAMPLES), encoded(host, CLASSES, EXAMPLES)
    both = students(backbone, spec)
    together = train_pack(backbone, peft, both, CLASSES, data, SETTINGS)
    on_host = train_pack(host, peft, students(host, spec), CLASSES, host_data, SETTINGS)
    for place, student in enumerate(both):
        alone = train_pack(backbone, peft, [student], CLASSES, data, SETTINGS)
        found = logits(backbone, peft, slice_of(together.tensors, place), slice_of(together.head, place), data)
        assert largest(found, logits(backbone, peft, alone.tensors, alone.head, data)) <= 1e-4
        own = (slice_of(on_host.tensors, place), slice_of(on_host.head, place))
        assert largest(found.cpu(), logits(host, peft, *own, host_data)) <= 1e-2


def test_targets_in_a_file_give_the_numbers_of_targets_on_the_gpu(on_cuda: OnCuda) -> None:
    """Predictions written to the host and to a file as they are made, and a pack that follows them from there."""
    backbone, peft = on_cuda("bert"), method("prefix:length=4")
    data = encoded(backbone, CLASSES, EXAMPLES)
    tensors = pack(peft, backbone, 2)
    made = [backbone.head(3).create(torch.Generator().manual_seed(seed)) for seed in range(2)]
    head = {name: torch.stack([one[name] for one in made]) for name in made[0]}
    expected = predict_logits(backbone, data, peft, tensors, head, 3).cpu()
    on_host, filed = torch.empty(2, EXAMPLES, 3), LargeTensor.temporary((2, EXAMPLES, 3))
    for into in (on_host, filed):
        write_logits(backbone, data, peft, tensors, head, 3, into)
        assert torch.equal(into[:], expected)
    in_files = [LargeTensor.temporary((EXAMPLES, 3)) for _ in range(2)]
    for place, one in enumerate(in_files):
        one[:] = expected[place]
    trained = []
    for targets in (list(expected), in_files):
        pair = [
            replace(student, distillation=Distillation(kd_losses().create("mse:space=logits"), soft, 0.5))
            for student, soft in zip(students(backbone, "prefix:length=4", (1e-2, 3e-3)), targets, strict=True)
        ]
        trained.append(train_pack(backbone, peft, pair, CLASSES, data, SETTINGS))
    for name, tensor in trained[0].tensors.items():
        assert largest(tensor, trained[1].tensors[name]) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training_learns_and_keeps_the_best(dtype: torch.dtype, on_cuda: OnCuda) -> None:
    backbone, peft = on_cuda("bert", dtype), method("prefix:length=8")
    data = encoded(backbone, CLASSES, EXAMPLES)
    settings = replace(SETTINGS, epochs=15)
    learner = students(backbone, "prefix:length=8", (5e-2,))
    found = train_pack(backbone, peft, learner, CLASSES, data, settings, validation=data)
    assert data.labels is not None
    best = logits(backbone, peft, found.tensors, found.head, data)[0].cpu()
    labelled = encoded_on_host(data)
    assert accuracy(best, labelled) == pytest.approx(found.scores[0].best["accuracy"], abs=0.021)
    assert found.scores[0].best["accuracy"] > 0.15 + float(data.labels.bincount().max()) / EXAMPLES
    assert found.tensors["key"].dtype == torch.float32
    assert found.tensors["key"].device.type == "cpu"


def encoded_on_host(data):  # type: ignore[no-untyped-def]
    """The same examples with labels on the CPU."""
    return replace(data, labels=data.labels.cpu())


def test_a_diverging_prompt_does_not_touch_the_others(on_cuda: OnCuda) -> None:
    backbone, peft = on_cuda("bert"), method("prefix:length=4")
    data = encoded(backbone, CLASSES, EXAMPLES)
    healthy = students(backbone, "prefix:length=4")
    mixed = [healthy[0], replace(healthy[1], learning_rate=1e30), healthy[2]]
    expected = train_pack(backbone, peft, healthy, CLASSES, data, SETTINGS)
    found = train_pack(backbone, peft, mixed, CLASSES, data, SETTINGS)
    assert found.diverged == [False, True, False]
    for place in (0, 2):
        assert largest(found.tensors["key"][place], expected.tensors["key"][place]) <= 1e-4


def test_same_seeds_same_result_with_dropout(on_cuda: OnCuda) -> None:
    backbone, peft = on_cuda("bert"), method("prefix:length=4")
    data = encoded(backbone, VALUES, EXAMPLES)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        starts = new_students(backbone, VALUES, peft, [0, 1], 1e-2)
        settings = replace(SETTINGS, dropout=0.2, backbone_dropout=0.1)
        found.append(train_pack(backbone, peft, starts, VALUES, data, settings).tensors["key"])
    assert largest(*found) <= 1e-5


def test_the_memory_probe_agrees_with_the_allocator(on_cuda: OnCuda) -> None:
    backbone = on_cuda("bert", torch.bfloat16)
    found = activation_bytes(backbone, method("prefix:length=8"), 256, 64)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    activation_bytes(backbone, method("prefix:length=8"), 256, 64)
    assert 0.7 * found < torch.cuda.max_memory_allocated() - before < 2.5 * found
