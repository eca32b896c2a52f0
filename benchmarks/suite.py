"""All benchmarks, one after the other, and docs/performance.md from what they wrote.

    python benchmarks/suite.py --data DIR --out runs/bench     # everything, two hours on 4 cores
    python benchmarks/suite.py --data DIR --only rte           # some of it, into benchmarks/figures, beside the rest
    python benchmarks/suite.py --page                          # only the page, from the files in --out

Every benchmark runs in a process of its own and writes one JSON file. Nothing else should run beside them. What stands
in docs/performance.md from the heading "What bounds a step" on is kept as it is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rounds import ratios, spread

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
FIGURES = HERE / "figures"
"""What docs/performance.md was written from."""
KEPT = "## What bounds a step"
TRAINING = {
    "rte": "--task rte --steps 77 --rounds 2",
    "rte-compiled": "--task rte --rounds 2 --compiled --only grouping --only auto",
    "rte-batch-16": "--task rte --batch-size 16 --rounds 2",
    "rte-prompt": "--task rte --method prompt --rounds 2 --only bf16 --only auto",
    "rte-adapter": "--task rte --method adapter",
    "mnli": "--task mnli",
    "stsb": "--task stsb",
    "conll04": "--task conll04 --steps 28",
    "pack-21": "--task rte --batch-size 16 --pack 21 --steps 6 --alike --only auto",
    "bert-base": "--task rte --model bert-base --steps 6 --rounds 2 --alike",
    "bert-large": "--task rte --model bert-large --steps 6 --rounds 2 --batch-size 16 --alike --only bf16 --only auto",
    "opt-350m": "--task rte --model opt-350m --steps 6 --rounds 2 --batch-size 16 --alike --only bf16 --only auto",
}
OTHERS = {
    "evaluation": ("evaluation.py", "--task rte"),
    "overhead": ("panda_overhead.py", "--task rte"),
    "ranking": ("ranking.py", "--task rte"),
    "parity": ("parity.py", "--task cb --epochs 5"),
    "parity-rte": ("parity.py", "--task rte --epochs 3 --batch-size 32 --best"),
    "first-step": ("first_step.py", "--task rte"),
    "first-step-large": ("first_step.py", "--task mnli --copies 40"),
}


def command(name: str) -> list[str]:
    """Script and options of a benchmark."""
    script, options = OTHERS[name] if name in OTHERS else ("throughput.py", TRAINING[name])
    return [script, *options.split()]


def rates(record: dict[str, Any], key: str, reference: str | None) -> list[str]:
    """Rows of a table: contender, median rate, ratio to the reference within the rounds."""
    rows = []
    for contender, values in record[key].items():
        ratio = "-"
        if reference is not None:
            ratio = spread(ratios(values, record[key][reference]), 2, "x")
        rows.append(f"| {contender} | {statistics.median(values):.1f} | {ratio} |")
    return rows


def training_section(records: dict[str, dict[str, Any]]) -> list[str]:
    """Throughput of training."""
    lines = ["## Training", ""]
    for name in TRAINING:
        if name in records:
            record = records[name]
            lines += [f"### {record['setting']}", "", f"`{' '.join(command(name))}`", ""]
            lines += ["| contender | samples/s | against PEFT's best |", "|---|---:|---:|"]
            lines += [*rates(record, "samples_per_second", record["best"]), ""]
    return lines


def evaluation_section(record: dict[str, Any]) -> list[str]:
    """Throughput of evaluation."""
    heads = ["| contender | rows/s | against PEFT's best |", "|---|---:|---:|"]
    return ["## Evaluation", "", *heads, *rates(record, "rows_per_second", record["best"]), ""]


def overhead_section(record: dict[str, Any]) -> list[str]:
    """What PanDa costs beside vanilla transfer."""
    base = record["seconds"]["vanilla transfer"]
    lines = [
        "## PanDa against vanilla transfer",
        "",
        f"Whole: a training of {record['steps_in_all']} steps (60 epochs, as the paper trains on RTE) with the passes "
        "of the teachers that come before it.",
        "",
        "| contender | step | teachers' passes, s | whole |",
        "|---|---:|---:|---:|",
    ]
    for contender, values in record["seconds"].items():
        passes, whole = record["passes"][contender], record["whole"][contender]
        lines.append(f"| {contender} | {spread(ratios(values, base), 3, 'x')} | {passes:.2f} | {whole:.3f}x |")
    return [*lines, ""]


def ranking_section(record: dict[str, Any]) -> list[str]:
    """What ranking costs."""
    first, second = list(record["ratios"])
    lines = [
        "## Ranking",
        "",
        f"{record['prompts']} prompts, {record['samples']} samples; ratios to as many passes over the samples without "
        "a prompt.",
        "",
        "| contender | seconds | against transformers | against panda-fusion |",
        "|---|---:|---:|---:|",
    ]
    for contender, values in record["seconds"].items():
        by_base = [f"{statistics.median(record['ratios'][base][contender]):.2f}x" for base in (first, second)]
        lines.append(f"| {contender} | {statistics.median(values):.3f} | {' | '.join(by_base)} |")
    return [*lines, ""]


def parity_section(record: dict[str, Any]) -> list[str]:
    """Scores of the same training by both."""
    count, epochs = len(record["PEFT"]), len(record["PEFT"][0])
    lines = [
        f"## Are the scores the same? {record['task']}",
        "",
        f"{count} seeds each, {epochs} epochs: mean ± sample standard deviation of the validation score.",
        "",
        "| contender | best epoch | last epoch | seconds, all seeds |",
        "|---|---:|---:|---:|",
    ]
    picks: tuple[Callable[[list[float]], float], ...] = (max, lambda history: history[-1])
    for contender in ("PEFT", "panda-fusion"):
        cells = []
        for pick in picks:
            values = [100 * pick(history) for history in record[contender]]
            cells.append(f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}")
        lines.append(f"| {contender} | {' | '.join(cells)} | {record['seconds'][contender]:.0f} |")
    return [*lines, ""]


def first_step_section(record: dict[str, Any]) -> list[str]:
    """Seconds from the start of the program to its first step."""
    lines = [
        f"## From the start of the program to its first step: {record['setting']}",
        "",
        "Run started: rows are read, the backbone is loaded, the rows are tokenised or their tokens found.",
        "",
        "| contender | run started, s | first step, s |",
        "|---|---:|---:|",
    ]
    for contender, stages in record["seconds"].items():
        lines.append(f"| {contender} | {spread(stages['run started'], 2)} | {spread(stages['first step'], 2)} |")
    return [*lines, ""]


SECTIONS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "evaluation": evaluation_section,
    "overhead": overhead_section,
    "ranking": ranking_section,
    "parity": parity_section,
    "parity-rte": parity_section,
    "first-step": first_step_section,
    "first-step-large": first_step_section,
}


def page(records: dict[str, dict[str, Any]], kept: str) -> str:
    """docs/performance.md."""
    machines = sorted({record["machine"] for record in records.values()})
    lines = [
        "# Performance",
        "",
        "Written by `benchmarks/suite.py`; no figure in the tables is typed by hand. "
        f"Machine: {'; '.join(machines)}. Contenders take turns in one process; medians, and [lowest, highest] over "
        "rounds. Models other than all-MiniLM-L6-v2 have their shape and random weights. Ratios are to PEFT at its "
        "best with its dropout, unless said otherwise. Of two epochs of a training over the same rows the second is "
        "timed. The fewer the steps of an epoch, the more do length grouping and panda-fusion pad, for both keep small "
        "sets mixed; with `--alike` rows are of one length and nobody pads.",
        "",
        "```console",
        "$ make bench-install",
        "$ .venv/bin/python benchmarks/suite.py --data DATA --out runs/bench",
        "```",
        "",
        *training_section(records),
    ]
    for name, section in SECTIONS.items():
        if name in records:
            heading, *rest = section(records[name])
            lines += [heading, "", f"`{' '.join(command(name))}`", *rest]
    return "\n".join(lines) + "\n" + kept


def main() -> None:
    """Run what was asked for, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with <task>/{train,validation}.jsonl")
    parser.add_argument(
        "--out", type=Path, default=FIGURES, help="folder for the JSON files; default: benchmarks/figures"
    )
    parser.add_argument("--only", default="", help="run benchmarks whose name contains this")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if not given.page and given.data is None:
        parser.error("--data is needed to run benchmarks")
    for name in [] if given.page else [name for name in (*TRAINING, *OTHERS) if given.only in name]:
        script, *options = command(name)
        print(f"== {name}", flush=True)
        words = [sys.executable, str(HERE / script), *options, "--data", str(given.data)]
        done = subprocess.run([*words, "--json", str(given.out / f"{name}.json")], check=False)
        if done.returncode:
            print(f"== {name} failed with exit code {done.returncode}; the others go on", flush=True)
    records = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(given.out.glob("*.json"))
        if path.stem in TRAINING or path.stem in OTHERS
    }
    if records:
        kept = ""
        if PAGE.exists() and KEPT in (text := PAGE.read_text(encoding="utf-8")):
            kept = KEPT + text.partition(KEPT)[2]
        PAGE.write_text(page(records, kept), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
