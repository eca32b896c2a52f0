"""Teachers' predictions and soft targets too large for memory: the same numbers, from files that do not stay."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_kinds import ANSWERS, CHOICES, TAGS, encoded_kind
from engine_samples import CLASSES, VALUES, encoded, method, pack
from safetensors.torch import load_file

from panda_fusion import distillation, hookimpl, large_tensor
from panda_fusion.backbone import Backbone
from panda_fusion.distillation import DistillationMethods, TeacherSignal, teacher_signal
from panda_fusion.errors import OutputError
from panda_fusion.fusion import PredictionFusion
from panda_fusion.large_tensor import LargeTensor
from panda_fusion.plugin_manager import fusions, kd_losses, teachers, temporary_plugin
from panda_fusion.prompt import Prompt
from panda_fusion.run import task_info
from panda_fusion.students import new_students
from panda_fusion.task import Task
from panda_fusion.tensor_cache import TensorCache
from panda_fusion.trainer import TrainSettings, train_pack

Tiny = Callable[[str], Backbone]
EXAMPLES = 30
SETTINGS = TrainSettings(epochs=1, batch_size=8, dropout=0.0)
TASKS = (CLASSES, VALUES, CHOICES, TAGS, ANSWERS)
MAPPINGS = Path("/proc/self/maps")


def data_of(backbone: Backbone, task: Task) -> Any:
    if task in (CLASSES, VALUES):
        return encoded(backbone, task, EXAMPLES)
    return encoded_kind(backbone, task, EXAMPLES)


def signal_of(
    backbone: Backbone,
    task: Task,
    teacher: str,
    fusion: str,
    similarities: Sequence[float],
    *,
    cache: TensorCache | None = None,
    signals: int = 1,
    spec: str = "prefix:length=3",
    kd: str = "mse",
) -> TeacherSignal:
    peft = method(spec)
    head = {"none": torch.zeros(1)}  # no teacher here keeps its source's head
    sources = [
        Prompt(
            method=peft.spec,
            tensors={name: tensor[0] for name, tensor in pack(peft, backbone, 1, 50 + seed).items()},
            head=head,
            embedding=torch.ones(backbone.shape.hidden),
            backbone=backbone.info,
            task=task_info(CLASSES),
            path=f"source-{seed}.safetensors",
        )
        for seed in range(len(similarities))
    ]
    methods = DistillationMethods(teachers().create(teacher), fusions().create(fusion), kd_losses().create(kd), 0.3)
    return teacher_signal(
        backbone,
        task,
        data_of(backbone, task),
        sources,
        similarities,
        methods,
        peft,
        SETTINGS,
        1e-2,
        4,
        cache,
        signals,
    )


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and whatever follows in the test has no memory and works on a few examples at a time."""

    def shrink() -> None:
        monkeypatch.setattr(distillation, "TARGET_BYTES", 0)
        monkeypatch.setattr(distillation, "FUSED_BYTES", 700)

    return shrink


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_files_give_the_numbers_of_memory(task: Task, tiny: Tiny, small_memory: Callable[[], None]) -> None:
    """One source, early and late fusion; then a pack that follows all three, two of its students the same one."""
    backbone, peft = tiny("bert"), method("prefix:length=3")
    data = data_of(backbone, task)

    def made() -> tuple[list[TeacherSignal], dict[str, torch.Tensor]]:
        signals = [
            signal_of(backbone, task, "target-like", "single", (0.5,)),
            signal_of(backbone, task, "target-like", "early", (0.5, 0.25, 0.8)),
            signal_of(backbone, task, "target-like", "late", (0.5, 0.25, 0.8)),
        ]
        followed = [signals[0], None, signals[1], signals[2], signals[2]]
        students = [
            new_students(backbone, task, peft, [seed], 1e-2, None, signal and signal.distillation)[0]
            for seed, signal in enumerate(followed)
        ]
        trained = train_pack(backbone, peft, students, task, data, SETTINGS)
        return signals, trained.tensors | trained.head

    plain, expected = made()
    small_memory()
    filed, found = made()
    for one, other in zip(plain, filed, strict=True):
        assert isinstance(one.distillation.targets, torch.Tensor)
        assert isinstance(other.distillation.targets, LargeTensor)
        assert torch.equal(one.distillation.targets, other.distillation.targets[:])
        assert one.distillation.weight == other.distillation.weight
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name])
    same_start = new_students(backbone, task, peft, [3], 1e-2)[0].tensors
    assert all(not torch.equal(found[name][3], tensor) for name, tensor in same_start.items()), "nothing was trained"


@pytest.mark.parametrize("spec", ["prefix:length=3", "full"])
@pytest.mark.parametrize("features", [2**30, 20_000], ids=["all features fit", "some features fit"])
def test_fitted_heads_write_to_files_too(
    spec: str, features: int, tiny: Tiny, small_memory: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side, and one after the other (`full`), with heads fitted on all of the set or on a part of it."""
    backbone = tiny("bert")
    monkeypatch.setattr(distillation, "FEATURE_BYTES", features)
    plain = signal_of(backbone, TAGS, "source", "late", (0.5, 0.25), spec=spec).distillation.targets
    small_memory()
    filed = signal_of(backbone, TAGS, "source", "late", (0.5, 0.25), spec=spec).distillation.targets
    assert isinstance(filed, LargeTensor)
    assert torch.equal(plain, filed[:])


def test_memory_and_files_find_each_others_entries(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One name, one file, byte by byte, whichever way it was written; and what the safetensors library reads there."""
    backbone = tiny("bert")
    paths = tmp_path / "from-memory", tmp_path / "from-file"
    limits = 2**30, 0
    targets = {}
    for path, limit in zip(paths, limits, strict=True):
        monkeypatch.setattr(distillation, "TARGET_BYTES", limit)
        written = signal_of(backbone, TAGS, "target-like", "late", (0.5, 0.2), cache=TensorCache(path))
        assert written.forward_passes == 2
        targets[limit] = written.distillation.targets[:]
    first, second = (list(path.iterdir()) for path in paths)
    assert [file.name for file in first] == [file.name for file in second]
    assert len(first) == 1, "nothing but the entry has a name in the cache's folder"
    assert first[0].read_bytes() == second[0].read_bytes()
    assert load_file(second[0])["tensor"].shape == (2, EXAMPLES, data_of(backbone, TAGS).words.shape[1], 3)
    for path, limit in zip(paths, reversed(limits), strict=True):
        monkeypatch.setattr(distillation, "TARGET_BYTES", limit)
        cache = TensorCache(path)
        found = signal_of(backbone, TAGS, "target-like", "late", (0.5, 0.2), cache=cache)
        assert (found.forward_passes, cache.found, cache.missed) == (0, 1, 0)
        assert torch.equal(found.distillation.targets[:], targets[limit])
    assert torch.equal(targets[0], targets[2**30])


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-4],
    "a flipped bit in a number": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "text": lambda data: b"no safetensors at all",
    "another dtype": lambda data: data.replace(b'"F32"', b'"I32"'),
}


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_a_damaged_large_entry_is_none(kind: str, tmp_path: Path) -> None:
    cache, key = TensorCache(tmp_path), "a" * 64
    tensor = LargeTensor.temporary((2, 5), tmp_path)
    tensor[:] = torch.arange(10.0).view(2, 5)
    cache.put_large(key, tensor)
    (file,) = tmp_path.iterdir()
    kept = cache.get_large(key)
    assert kept is not None
    assert kept[:].tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    file.write_bytes(DAMAGE[kind](file.read_bytes()))
    assert cache.get_large(key) is None
    assert (cache.found, cache.missed) == (1, 1)


def test_a_cache_that_is_too_small_or_cannot_be_written_keeps_no_large_entry(tmp_path: Path) -> None:
    tensor = LargeTensor.temporary((2, 5))
    small = TensorCache(tmp_path / "small", limit=39)
    small.put_large("a" * 64, tensor)
    assert not small.folder.exists()
    (tmp_path / "file").write_text("in the way")
    TensorCache(tmp_path / "file" / "folder").put_large("a" * 64, tensor)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_pack_shares_the_memory(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for one signal is not enough for each of two."""
    backbone = tiny("bert")
    monkeypatch.setattr(distillation, "TARGET_BYTES", 4 * EXAMPLES * CLASSES.outputs)
    one, two = (signal_of(backbone, CLASSES, "target-like", "single", (0.5,), signals=n) for n in (1, 2))
    assert isinstance(one.distillation.targets, torch.Tensor)
    assert isinstance(two.distillation.targets, LargeTensor)


class Centred(PredictionFusion):
    """Looks at all examples at once, as a fusion may unless it says otherwise."""

    def fuse(self, targets: torch.Tensor, similarities: torch.Tensor, view: Any = None) -> torch.Tensor:
        return (targets - targets.mean(1, keepdim=True)).mean(0)


class Fitted(PredictionFusion):
    needs_training_view = True
    by_example = True  # a contradiction, which must not make it see some examples with the features of all

    def fuse(self, targets: torch.Tensor, similarities: torch.Tensor, view: Any = None) -> torch.Tensor:
        assert len(view.features) == targets.shape[1]
        return targets.mean(0) * view.features.mean()


class FusionPlugin:
    @hookimpl
    def register_fusions(self, register: Any) -> None:
        register("centred", Centred, help="...")
        register("fitted", Fitted, help="...")


@pytest.mark.parametrize("name", ["centred", "fitted"])
def test_a_fusion_that_does_not_say_by_example_gets_all_examples(
    name: str, tiny: Tiny, small_memory: Callable[[], None]
) -> None:
    backbone = tiny("bert")
    with temporary_plugin(FusionPlugin()):
        plain = signal_of(backbone, CLASSES, "target-like", name, (0.5, 0.3)).distillation.targets
        small_memory()
        filed = signal_of(backbone, CLASSES, "target-like", name, (0.5, 0.3)).distillation.targets
    assert torch.equal(plain, filed[:])


@pytest.mark.skipif(not MAPPINGS.exists(), reason="this system does not list a process's mapped files")
def test_temporary_files_are_gone_after_use_and_after_errors(
    tiny: Tiny, tmp_path: Path, small_memory: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny("bert")
    small_memory()
    cache = TensorCache(tmp_path / "cache", limit=0)  # nothing is kept, so all that lies there is temporary

    def mapped() -> int:
        return sum(str(tmp_path) in line for line in MAPPINGS.read_text().splitlines())

    made: TeacherSignal | None = signal_of(backbone, TAGS, "target-like", "late", (0.5, 0.2), cache=cache)
    assert made is not None
    assert mapped() == 1, "the targets; the teachers' predictions are gone"
    assert list(cache.folder.iterdir()) == [], "the file has no name, so not even a killed process leaves it"
    made = None
    assert mapped() == 0

    seen = []

    def fails(*_: Any) -> torch.Tensor:
        seen.append(mapped())
        raise ValueError("of the loss")

    monkeypatch.setattr(type(kd_losses().create("mse")), "targets", fails)
    with pytest.raises(ValueError, match="of the loss"):
        signal_of(backbone, TAGS, "target-like", "late", (0.5, 0.2), cache=cache)
    assert seen == [2]
    assert mapped() == 0
    assert list(cache.folder.iterdir()) == []


def test_a_large_tensor_reads_and_writes_like_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places, slices, parts of the first axis; also where the system cannot reserve space."""
    monkeypatch.setattr(large_tensor, "PART_BYTES", 4 * 7)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    expected = np.zeros((3, 10, 4), dtype=np.float32)
    tensor = LargeTensor.temporary((3, 10, 4))
    assert np.array_equal(tensor[:].numpy(), expected)
    values = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float32)
    places = np.array([7, 2, 9, 0, 4])
    expected[:, places] = values
    tensor[:, torch.from_numpy(places)] = torch.from_numpy(values)
    expected[1:2] = 3
    tensor.part(slice(1, 2))[:] = torch.tensor(3.0)
    assert np.array_equal(tensor[:].numpy(), expected)
    assert np.array_equal(tensor[:, 2:9].numpy(), expected[:, 2:9])
    assert np.array_equal(tensor[torch.tensor([2, 0, 2])].numpy(), expected[[2, 0, 2]])
    assert np.array_equal(torch.cat(list(tensor.parts())).numpy(), expected.ravel())
    tensor[:].add_(1)
    assert np.array_equal(tensor[:].numpy(), expected), "what is read is a copy"
    assert (len(tensor), tensor.shape, tensor.dtype) == (3, (3, 10, 4), torch.float32)


def test_no_room_is_said_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def full(_: int, start: int, size: int) -> None:
        asked.append((start, size))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OutputError) as error:
        LargeTensor.temporary((2**28, 6), tmp_path / "cache")
    assert asked == [(0, 6 * 2**30)] * 2, "the system's folder is the second try"
    text = str(error.value)
    assert text.startswith("6.0 GiB are needed in a temporary file and ")
    assert text.endswith(" does not take them (no space left on device); make room, or name another folder in TMPDIR.")


def test_a_folder_that_cannot_be_written_leaves_the_systems(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    tensor = LargeTensor.temporary((2, 2), tmp_path / "file" / "folder")
    assert tensor[:].tolist() == [[0, 0], [0, 0]]


PEAK = """
import resource, sys
import torch
from panda_fusion import distillation
from panda_fusion.backbone import load_backbone
from panda_fusion.dataset import EncodedSet
from panda_fusion.distillation import named_methods, teacher_signal
from panda_fusion.plugin_manager import peft_methods
from panda_fusion.students import new_students
from panda_fusion.task import Task
from panda_fusion.tensor_cache import TensorCache
from panda_fusion.trainer import TrainSettings, train_pack
from pathlib import Path

SOURCES, EXAMPLES, WORDS, LABELS = 3, 400, 24, 2500
backbone = load_backbone(sys.argv[1], device=torch.device("cpu"), dtype=torch.float32)
labels = tuple(f"L{n}" for n in range(LABELS))
task = Task(name="many", kind="token-classification", inputs=("words",), labels=labels, metric="accuracy")
draw = torch.Generator().manual_seed(0)
data = EncodedSet(
    input_ids=torch.randint(5, 20, (EXAMPLES, WORDS + 2), generator=draw).int(),
    lengths=torch.full((EXAMPLES,), WORDS + 2),
    token_types=None,
    labels=torch.randint(LABELS, (EXAMPLES, WORDS), generator=draw),
    kind=task.kind,
    words=(torch.arange(WORDS) + 1).int().expand(EXAMPLES, -1).contiguous(),
)
peft = peft_methods().create("prefix:length=2")
settings = TrainSettings(max_steps=5, batch_size=4, dropout=0.0)
methods = named_methods("random:trained=true,until=steps,steps=2", "late", "mse")

class Source:  # a random teacher looks at nothing but their number
    pass

def peak(limit, folder):
    distillation.TARGET_BYTES, distillation.FUSED_BYTES = limit, 2**22
    for _ in range(2):  # the second finds what the first kept
        signal = teacher_signal(
            backbone, task, data, [Source()] * SOURCES, [1.0] * SOURCES, methods, peft, settings, 1e-2, 0,
            TensorCache(Path(folder), 2**30),
        )
        students = new_students(backbone, task, peft, [0, 1], 1e-2, None, signal.distillation)
        train_pack(backbone, peft, students, task, data, settings)
    assert signal.forward_passes == 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

train_pack(backbone, peft, new_students(backbone, task, peft, [0, 1], 1e-2), task, data, settings)
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
filed = peak(2**20, sys.argv[2]) - start
held = peak(2**30, sys.argv[3]) - start
print(4 * SOURCES * EXAMPLES * WORDS * LABELS, filed, held)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the peak of a process's memory is not told there")
def test_peak_memory_does_not_grow_with_the_predictions(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Targets, fusion, cache and student of 288 MB of predictions, from files and then in memory, in one process."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tiny_folder("bert")), str(tmp_path / "filed"), str(tmp_path / "held")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    predictions, filed, held = map(int, done.stdout.split())
    assert predictions == 288_000_000
    assert filed < 0.75 * predictions
    assert held > filed  # three times the predictions, unless the system reclaims pages meanwhile
