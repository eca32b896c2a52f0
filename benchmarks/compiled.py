"""What `--compile on` gains: training steps of one prefix, with compiled layers and without in turns.

Processor time of one thread, so that other programs on the machine are not counted; on a GPU wall-clock time. Before
that the warm-up, in wall-clock seconds (shorter where PyTorch's cache on disk has the code already).

    python benchmarks/compiled.py --precision fp32
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from rounds import ratios, spread, take_turns
from setting import add_options, describe_machine, model_folder

from panda_fusion.backbone import load_backbone
from panda_fusion.compiled import compile_layers
from panda_fusion.device import choose_device, choose_precision, precision_name
from panda_fusion.injection import Rows
from panda_fusion.plugin_manager import peft_methods


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--rows", type=int, default=32, help="rows of a batch")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    device = choose_device(given.device)
    on_gpu = device.type == "cuda"
    if not on_gpu:
        torch.set_num_threads(1)
    dtype = choose_precision(given.precision, device)
    backbone = load_backbone(model_folder(given.model), device=device, dtype=dtype)
    method = peft_methods().create("prefix:length=20")
    compilation = compile_layers(backbone, [method], 0.0, "on")
    if compilation.reason is not None:
        raise SystemExit(compilation.reason)
    layers = backbone.compiled
    created = method.create(backbone, torch.Generator().manual_seed(0))
    tensors = {name: tensor[None].to(device).requires_grad_() for name, tensor in created.items()}
    ids = torch.arange(given.rows * given.tokens, device=device).view(given.rows, -1) % backbone.vocabulary
    lengths = torch.full((given.rows,), given.tokens, device=device)

    def step() -> float:
        if on_gpu:
            torch.cuda.synchronize(device)
        clock = time.perf_counter if on_gpu else time.process_time
        started = clock()
        injection = method.inject(tensors, backbone.shape)
        backbone.forward(ids, lengths, None, injection, Rows(1)).float().sum().backward()
        if on_gpu:
            torch.cuda.synchronize(device)
        return clock() - started

    def plain() -> float:
        backbone.compiled = None
        return step()

    def compiled() -> float:
        backbone.compiled = layers
        return step()

    steps = {"uncompiled": plain, "compiled": compiled}
    take_turns(steps, 2)  # warms up
    seconds = take_turns(steps, given.rounds)
    print(f"{given.rows} rows of {given.tokens} tokens, {given.rounds} rounds; {describe_machine(device)}")
    print(f"{precision_name(dtype)}; torch {torch.__version__}; compiled in {compilation.seconds:.1f} s")
    for name, values in seconds.items():
        print(f"{name:12} {1e3 * statistics.median(values):.1f} ms a step")
    speed = ratios(seconds["uncompiled"], seconds["compiled"])
    print(f"speed of compiled layers: {spread(speed, 3, 'x')}")
    if given.json:
        record = {"machine": describe_machine(device), "compile_seconds": compilation.seconds, "seconds": seconds}
        given.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
