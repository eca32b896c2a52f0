"""A matrix that is killed again and again at random moments, against one that is left alone.

Both run the same recipe on the tiny backbone. One is killed (SIGKILL, which no program can catch) `--kills` times,
each at a moment drawn from a seed, and then runs to its end. Their records must be equal in everything but times, and
no cell may have been finished twice.

    python benchmarks/matrix_kills.py
    python benchmarks/matrix_kills.py --kills 5 --seed 3 --output kills.json
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import torch
from setting import describe_machine

from panda_fusion.matrix.records import FILE, read_records

RECIPE = """
model = "tiny"
sources = ["tiny/nli", "tiny/sentiment", "tiny/paraphrase"]
targets = ["tiny/contradiction", "tiny/similarity"]
systems = ["scratch", "vanilla", "panda", "full", "similarity"]
source_sets = [["tiny/nli", "tiny/sentiment"]]
fusions = ["single", "early", "late"]
transferability = ["panda", "eavg", "on"]
seeds = [0, 1, 2]
methods = "prefix:length=4"
[training]
epochs = 8
samples = 300
max_length = 24
[output]
prompts = true
"""
LIVES = 6
"""Moments are drawn up to this part of an undisturbed run, so that the kills are spread over the whole matrix."""
TIMES = ("finished", "train_seconds", "teacher_seconds", "samples_per_second")


def comparable(folder: Path) -> dict[str, dict[str, Any]]:
    """Records by cell, without what tells of time."""
    done = read_records(folder).done
    return {
        cell: {name: value for name, value in msgspec.to_builtins(record).items() if name not in TIMES}
        for cell, record in done.items()
    }


def main() -> None:
    """Run both and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe = folder / "recipe.toml"
        recipe.write_text(RECIPE, encoding="utf-8")

        def command(name: str) -> list[str]:
            program = [sys.executable, "-m", "panda_fusion_cli", "matrix", str(recipe)]
            return [*program, "--out", str(folder / name), "--pack-size", "4"]

        start = time.monotonic()
        subprocess.run(command("alone"), check=True, capture_output=True)
        alone_seconds = time.monotonic() - start
        kills = 0
        for _ in range(arguments.kills):
            process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                code = process.wait(moments.uniform(0, alone_seconds / LIVES))
                if code:
                    raise SystemExit(f"A run ended by itself with exit code {code}.")
            except subprocess.TimeoutExpired:
                process.kill()
                kills += process.wait() != 0
        before_the_end = len(read_records(folder / "killed").done) if (folder / "killed").exists() else 0
        subprocess.run(command("killed"), check=True, capture_output=True)
        alone, killed = comparable(folder / "alone"), comparable(folder / "killed")
        lines = (folder / "killed" / FILE).read_text(encoding="utf-8").splitlines()
        twice = [cell for cell, count in Counter(json.loads(line)["cell"] for line in lines).items() if count > 1]
    result = {
        "kills": kills,
        "cells": len(alone),
        "cells_before_the_last_run": before_the_end,
        "records_equal": alone == killed,
        "cells_finished_twice": len(twice),
        "undisturbed_seconds": round(alone_seconds, 1),
        "machine": describe_machine(torch.device("cpu")),
    }
    print(json.dumps(result, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if alone != killed or twice:
        raise SystemExit("The records differ.")


if __name__ == "__main__":
    main()
