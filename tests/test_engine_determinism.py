"""The same seed gives the same result in another process, with another hash seed and a random state of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

RUN = """
import hashlib, sys
import torch
from engine_samples import CLASSES, encoded, method
from panda_fusion.backbone import load_backbone
from panda_fusion.distillation import DistillationMethods, teacher_signal
from panda_fusion.plugin_manager import fusions, kd_losses, teachers
from panda_fusion.prompt import Prompt
from panda_fusion.run import task_info
from panda_fusion.students import new_students
from panda_fusion.trainer import TrainSettings, train_pack

torch.manual_seed(int(sys.argv[2]))
backbone = load_backbone(sys.argv[1], device=torch.device("cpu"), dtype=torch.float32)
peft = method("prefix:length=4")
data, validation = encoded(backbone, CLASSES, 40), encoded(backbone, CLASSES, 20, 1)
settings = TrainSettings(epochs=2, batch_size=8, dropout=0.1)
students = new_students(backbone, CLASSES, peft, [0, 1], 1e-2)
source = train_pack(backbone, peft, students, CLASSES, data, settings, validation)
prompts = [
    Prompt(
        method=peft.spec,
        tensors={name: tensor[place] for name, tensor in source.tensors.items()},
        head={name: tensor[place] for name, tensor in source.head.items()},
        embedding=None,
        backbone=backbone.info,
        task=task_info(CLASSES),
    )
    for place in range(2)
]
methods = DistillationMethods(
    teachers().create("target-like"), fusions().create("late"), kd_losses().create("mse"), 0.05
)
signal = teacher_signal(
    backbone, CLASSES, data, prompts, [0.5, 0.2], methods, peft, settings, 1e-2, 3
)
students = new_students(backbone, CLASSES, peft, [2, 3], 1e-2, distillation=signal.distillation)
found = train_pack(backbone, peft, students, CLASSES, data, settings, validation)
digest = hashlib.sha256(backbone.info.fingerprint.encode())
for tensors in (source.tensors, source.head, found.tensors, found.head, {"": signal.distillation.targets}):
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().numpy().tobytes())
print(digest.hexdigest(), found.scores)
"""


def test_sources_teachers_and_students_are_the_same_in_another_process(
    tiny_folder: Callable[[str], Path],
) -> None:
    """Training with dropout, target-like teachers, late fusion and distillation: bit for bit."""
    printed = []
    for seed in ("1", "2"):
        environment = os.environ | {
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join([str(TESTS), *(str(ROOT / part) for part in ("", "plugins", "cli"))]),
            "OMP_NUM_THREADS": "2",
        }
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", RUN, str(tiny_folder("bert")), seed],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed[0] == printed[1]
    assert len(printed[0].split()[0]) == 64
