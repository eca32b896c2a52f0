"""Seconds from the start of `panda-fusion train` to the end of its first training step, in a process of its own.

Three contenders take turns, all with files that the operating system has read before: no cache of tokens, an empty one,
and one with the tokens of an earlier run. A plugin in the measured process prints the seconds since the process was
started, at the run's start (rows read, backbone loaded, rows tokenised, prompt made) and at the end of the first step.
Training ends there.

    python benchmarks/first_step.py --data DIR --task rte
    python benchmarks/first_step.py --data DIR --task mnli --copies 40     # as many rows as all of MNLI
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rounds import spread, take_turns
from setting import add_options, describe_machine, load_rows, model_folder, task_name

from panda_fusion import hookimpl
from panda_fusion.device import choose_device

STARTED = "FIRST_STEP_STARTED"
"""Environment variable from this process to the measured one: `time.time()` when it was started."""


class Watch:
    """Prints the seconds of both events as one JSON line, and ends the process there."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._ready = 0.0

    @hookimpl
    def run_started(self) -> None:
        """Everything before the loop is done."""
        self._ready = time.time() - self._started

    @hookimpl
    def step_ended(self, losses: torch.Tensor) -> None:
        """The first step is done; what comes after it is not measured."""
        losses.tolist()  # on a GPU: waits for the step
        print(json.dumps({"run started": self._ready, "first step": time.time() - self._started}), flush=True)
        os._exit(0)


def measured(arguments: list[str]) -> None:
    """The measured process: the program with these arguments and the plugin above."""
    from panda_fusion.plugin_manager import temporary_plugin
    from panda_fusion_cli.main import main as program

    with temporary_plugin(Watch(float(os.environ[STARTED]))):
        sys.exit(program(arguments))


def start(arguments: list[str], cache: str, stages: dict[str, list[float]]) -> float:
    """Run the program to its first step; returns the seconds that it took and adds to `stages`."""
    words = [sys.executable, str(Path(__file__)), "--measured", *arguments]
    environment = {**os.environ, STARTED: repr(time.time()), "PANDA_FUSION_CACHE": cache}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    seconds: Mapping[str, float] = json.loads(done.stdout.splitlines()[-1])
    for stage, value in seconds.items():
        stages.setdefault(stage, []).append(value)
    return seconds["first step"]


def write_copies(given: argparse.Namespace, folder: Path) -> Path:
    """A data folder whose training set has every row several times, the copies told apart by a number in the text."""
    data = given.data / given.task
    (folder / given.task).mkdir(parents=True)
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines() if line]
    column = load_rows(given).task.inputs[-1]
    with (folder / given.task / "train.jsonl").open("w", encoding="utf-8") as file:
        for number in range(given.copies):
            for row in rows:
                file.write(json.dumps({**row, column: f"{row[column]} {number}"}) + "\n")
    validation = (data / "validation.jsonl").read_bytes()
    (folder / given.task / "validation.jsonl").write_bytes(validation)
    return folder


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--copies", type=int, default=1, help="how often each training row is there (with --data)")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    given.task = task_name(given)
    if given.copies > 1 and given.data is None:
        parser.error("--copies needs --data")
    device = choose_device(given.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.copies > 1:
            given.data = write_copies(given, folder / "data")
        data = load_rows(given)
        arguments = ["train", "--task", given.task, "--model", model_folder(given.model), "--device", given.device]
        arguments += ["--max-steps", "1", "--out", str(folder / "prompt.safetensors"), "-q"]
        arguments += [] if given.data is None else ["--data", str(given.data)]
        stages: dict[str, dict[str, list[float]]] = {"no cache": {}, "empty cache": {}, "kept tokens": {}}
        kept = str(folder / "kept")

        def empty() -> float:
            return start(arguments, tempfile.mkdtemp(dir=folder), stages["empty cache"])

        contenders = {
            "no cache": partial(start, arguments, "", stages["no cache"]),
            "empty cache": empty,
            "kept tokens": partial(start, arguments, kept, stages["kept tokens"]),
        }
        start(arguments, kept, {})  # keeps the tokens, and reads all files once
        figures = take_turns(contenders, given.rounds)
    model = Path(given.model or "all-MiniLM-L6-v2").name
    setting = f"{model}, {data.task.name}, {len(data.train)} training rows"
    print(f"{setting}, {given.rounds} rounds; {describe_machine(device)}; torch {torch.__version__}")
    for contender, values in figures.items():
        ready = statistics.median(stages[contender]["run started"])
        print(f"{contender:12} first step after {spread(values, 2, ' s')}, run started after {ready:.2f} s")
    if given.json:
        record = {"setting": setting, "machine": describe_machine(device), "seconds": stages}
        given.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measured"]:
        measured(sys.argv[2:])
    else:
        main()
