"""What ranking N prompts costs, in plain forward passes over the samples that the prompts are compared on.

There are two baselines of N passes over the 100 class-balanced samples without any prompt: by transformers alone, in
batches of rows of similar length, and by our own engine. Ratios are to each, within a round. Contenders and baselines
take turns within one process, several rounds. The target's prompt is given, so no probe is trained.

    python benchmarks/ranking.py --data DIR --task rte
    python benchmarks/ranking.py                        # texts of tiny/nli, no data needed
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rounds import ratios, spread, take_turns
from setting import add_options, describe_machine, load_rows, model_folder
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from panda_fusion.backbone import Backbone, load_backbone
from panda_fusion.dataset import EncodedSet, gather, length_sorted_chunks
from panda_fusion.device import choose_device, choose_precision, precision_name
from panda_fusion.encoded_task import EncodedTask
from panda_fusion.inference import pooled_vectors
from panda_fusion.plugin_manager import peft_methods, similarities
from panda_fusion.prompt import Prompt
from panda_fusion.ranking import score_sources
from panda_fusion.run import RunSettings, prepare, task_info
from panda_fusion.students import new_students
from panda_fusion.tensor_cache import TensorCache
from panda_fusion.trainer import TrainSettings

BATCH = 32
"""Rows of a batch of the pass by transformers alone."""


def made_up_prompts(backbone: Backbone, encoded: EncodedTask, spec: str, count: int) -> list[Prompt]:
    """Random prompts with random task embeddings: what a prompt holds does not change what it costs."""
    method = peft_methods().create(spec)
    generator = torch.Generator().manual_seed(0)
    return [
        Prompt(
            method=method.stored().spec,
            tensors=method.to_stored(student.tensors, backbone.shape),
            head=student.head,
            embedding=torch.randn(backbone.shape.hidden, generator=generator),
            backbone=backbone.info,
            task=task_info(encoded.task),
            path=f"prompt-{seed}",
        )
        for seed, student in enumerate(new_students(backbone, encoded.task, method, range(count), 1e-2))
    ]


def transformers_pass(model: Any, samples: EncodedSet) -> Callable[[], None]:
    """One pass of transformers' own model over the samples, longest first, with its fused attention."""
    lengths = samples.example_lengths()

    @torch.inference_mode()
    def run() -> None:
        for chunk in length_sorted_chunks(lengths, BATCH * int(lengths.max()), 1):
            width = int(lengths[chunk[0]])
            batch = gather(samples, torch.from_numpy(chunk).to(samples.input_ids.device), width)
            mask = torch.arange(width, device=batch.lengths.device) < batch.lengths[:, None]
            model(input_ids=batch.input_ids, attention_mask=mask.long(), token_type_ids=batch.token_types)

    return run


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--method", default="prefix:length=20")
    parser.add_argument("--prompts", type=int, default=21)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    given = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device = choose_device(given.device)
    dtype = choose_precision(given.precision, device)
    path = model_folder(given.model)
    backbone = load_backbone(path, device=device, dtype=dtype)
    data = load_rows(given)
    method = peft_methods().create(given.method)
    encoded = prepare(backbone, method, data, RunSettings(TrainSettings(), max_length=given.max_length))
    target, *sources = made_up_prompts(backbone, encoded, given.method, given.prompts + 1)
    plain_model = AutoModel.from_pretrained(path, attn_implementation="sdpa", dtype=dtype).to(device).eval()
    alone = transformers_pass(plain_model, encoded.samples)

    def baseline() -> None:
        for _ in range(given.prompts):
            pooled_vectors(backbone, encoded.samples)

    def rank(spec: str, cache: TensorCache | None = None) -> None:
        score_sources(backbone, similarities().create(spec), sources, target, encoded, cache)

    def by_transformers() -> None:
        for _ in range(given.prompts):
            alone()

    with tempfile.TemporaryDirectory() as folder:
        kept = TensorCache(Path(folder))
        rank("panda:samples=target", kept)
        contenders: dict[str, Callable[[], None]] = {
            "plain passes, transformers": by_transformers,
            "plain passes, panda-fusion": baseline,
            "panda:samples=target": lambda: rank("panda:samples=target"),
            "panda:samples=target, cached": lambda: rank("panda:samples=target", kept),
            "panda (embeddings in the files)": lambda: rank("panda"),
            "on": lambda: rank("on"),
            "eavg": lambda: rank("eavg"),
        }
        timed = {contender: partial(seconds, run, device) for contender, run in contenders.items()}
        take_turns(timed, 1)  # first calls allocate and compile
        found = take_turns(timed, given.rounds)
    length = statistics.mean(encoded.samples.example_lengths().tolist())
    settings = {
        "model": Path(path).name,
        "task": data.task.name,
        "samples": len(encoded.samples),
        "mean_tokens": length,
        "prompts": given.prompts,
        "method": method.spec,
        "precision": precision_name(dtype),
        "rounds": given.rounds,
        "machine": describe_machine(device),
        "torch": torch.__version__,
    }
    print(
        ", ".join(
            f"{key} {value:.1f}" if isinstance(value, float) else f"{key} {value}" for key, value in settings.items()
        )
    )
    bases = list(found)[:2]
    to_bases = {base: {contender: ratios(values, found[base]) for contender, values in found.items()} for base in bases}
    print(f"seconds and, beside them, ratios to {given.prompts} {bases[0]} and to {given.prompts} {bases[1]}")
    for contender, values in found.items():
        line = f"{contender:34} {spread(values, 3)}"
        print("   ".join([line, *(spread(to_bases[base][contender], 3, "x") for base in bases)]))
    if given.json:
        given.json.write_text(json.dumps(settings | {"seconds": found, "ratios": to_bases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
