"""What PanDa costs beside vanilla transfer: training time, and the teachers' passes over the training set.

Vanilla transfer, PanDa with one source and late fusion of three take turns on the same target; the teachers' outputs
are computed once, so only the KD term itself may slow a step down. A fourth contender trains as the paper does: a pass
of the teacher over the batch at every step, in the same engine. Ratios are within a round; the time of a whole training
of `--epochs` epochs is put together from a step's time and that of the teachers' passes.

    python benchmarks/panda_overhead.py --data DIR --task rte
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from rounds import ratios, spread, take_turns
from setting import add_options, describe_machine, load_rows, model_folder

from panda_fusion import hookimpl
from panda_fusion import plugin_manager as plugins
from panda_fusion.backbone import Backbone, load_backbone
from panda_fusion.dataset import EncodedSet, epoch_batches
from panda_fusion.device import choose_device, choose_precision
from panda_fusion.distillation import TeacherSignal, named_methods, teacher_signal
from panda_fusion.inference import predict_logits
from panda_fusion.prompt import Prompt
from panda_fusion.run import RunSettings, finished_prompts, prepare, train_students
from panda_fusion.sources import start_from
from panda_fusion.students import new_students
from panda_fusion.trainer import Student, TrainSettings, train_pack

BATCH = 32


class _TeacherAtEveryStep:
    """A pass of a teacher over a batch after every step: what caching its outputs saves."""

    def __init__(self, backbone: Backbone, teacher: Prompt, train: EncodedSet, outputs: int) -> None:
        self.backbone, self.train, self.outputs = backbone, train, outputs
        self.method = plugins.peft_methods().create(teacher.method)
        self.tensors = {name: tensor[None] for name, tensor in teacher.tensors.items()}
        self.head = {name: tensor[None] for name, tensor in teacher.head.items()}
        self.batches = epoch_batches(train.example_lengths(), BATCH, 0, 0)

    @hookimpl
    def step_ended(self, step: int) -> None:
        batch = self.train.subset(np.sort(self.batches[step % len(self.batches)]))
        predict_logits(self.backbone, batch, self.method, self.tensors, self.head, self.outputs)


def main() -> None:
    """Alternate the four and print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60, help="of the training that the passes are set against")
    given = parser.parse_args()
    device = choose_device(given.device)
    backbone = load_backbone(model_folder(given.model), device=device, dtype=choose_precision("auto", device))
    data = load_rows(given)
    method = plugins.peft_methods().create("prefix:length=20")
    settings = RunSettings(TrainSettings(epochs=1000, max_steps=given.steps, batch_size=BATCH))
    encoded = prepare(backbone, method, data, settings)

    short = replace(settings, training=TrainSettings(max_steps=5))
    makers = new_students(backbone, data.task, method, [1, 2, 3], 1e-2)
    sources = finished_prompts(
        backbone, encoded, train_students(backbone, method, makers, encoded, short), makers, short
    )

    def signal(fusion: str, count: int) -> TeacherSignal:
        methods = named_methods("source", fusion, "mse")
        prompts, similar = sources[:count], [1.0] * count
        return teacher_signal(
            backbone, data.task, encoded.train, prompts, similar, methods, method, settings.training, 1e-2, 0
        )

    signal("single", 1)  # warms up
    single, late = signal("single", 1), signal("late", 3)
    start = start_from(sources[0], method, backbone.shape)
    vanilla = new_students(backbone, data.task, method, [0], 1e-2, start)
    at_every_step = _TeacherAtEveryStep(backbone, sources[0], encoded.train, data.task.outputs)
    contenders = {
        "vanilla transfer": (vanilla, None, 0.0),
        "PanDa, one source": (
            new_students(backbone, data.task, method, [0], 1e-2, distillation=single.distillation),
            None,
            single.forward_seconds,
        ),
        "PanDa, late fusion of 3": (
            new_students(backbone, data.task, method, [0], 1e-2, distillation=late.distillation),
            None,
            late.forward_seconds,
        ),
        "a teacher pass at every step": (vanilla, at_every_step, 0.0),
    }

    def seconds_of(students: list[Student], plugin: object) -> float:
        with nullcontext() if plugin is None else plugins.temporary_plugin(plugin, "teacher"):
            return train_pack(backbone, method, students, data.task, encoded.train, settings.training).train_seconds

    seconds = take_turns(
        {name: partial(seconds_of, students, plugin) for name, (students, plugin, _) in contenders.items()},
        given.rounds,
    )
    steps_in_all = given.epochs * -(-len(encoded.train) // BATCH)
    print(
        f"{given.model or 'all-MiniLM-L6-v2'}, {data.task.name}, {given.steps} steps of {BATCH}, {given.rounds} rounds"
    )
    print(f"{describe_machine(device)}; torch {torch.__version__}; whole: {given.epochs} epochs, {steps_in_all} steps")
    whole = {}
    for contender, (_, _, passes) in contenders.items():
        base, values = seconds["vanilla transfer"], seconds[contender]
        step = ratios(values, base)
        whole[contender] = statistics.median(step) + passes / (statistics.median(base) / given.steps * steps_in_all)
        print(
            f"{contender:30} {statistics.median(values):7.2f} s  {spread(step, 3, 'x')}  "
            f"passes {passes:.2f} s  whole {whole[contender]:.3f}x"
        )
    if given.json:
        record = {
            "task": data.task.name,
            "machine": describe_machine(device),
            "seconds": seconds,
            "steps_in_all": steps_in_all,
        }
        record["whole"] = whole
        record["passes"] = {contender: passes for contender, (_, _, passes) in contenders.items()}
        given.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
