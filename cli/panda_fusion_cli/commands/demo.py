"""`panda-fusion demo`: transfer in the embedded world, offline, in about a minute."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from panda_fusion_cli.output import Output, output_options


@click.command("demo")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("panda-fusion-demo"),
    show_default=True,
    help="Folder for prompts and report.",
)
@click.option("--seeds", type=click.IntRange(min=3, max=20), default=3, show_default=True, help="Seeds per system.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to run; auto takes CUDA where there is one.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Of the frozen backbone; prompts, heads and losses always are fp32.",
)
@output_options
def command(output: Output, out: Path, seeds: int, device: Any, precision: Any) -> None:
    """Train six source prompts, rank them for a target, and compare scratch, vanilla transfer and PanDa."""
    started = time.perf_counter()
    from panda_fusion.atomic_write import check_writable, write_text

    report = out / "report.md"
    check_writable(report)

    import json

    from panda_fusion.demo import comparison_table, report_markdown, run_demo
    from panda_fusion.device import choose_device, choose_precision, precision_name
    from panda_fusion_cli.output import json_value
    from panda_fusion_cli.progress import training_progress

    chosen = choose_device(device)
    dtype = choose_precision(precision, chosen)
    with training_progress(output) as progress:
        demo = run_demo(out, range(seeds), chosen, dtype, progress.stage)
    output.table(
        ("", "source", "similarity to the target"),
        [(place, one.prompt.task.name, f"{one.similarity:.4f}") for place, one in enumerate(demo.sources, 1)],
        title=f"Sources, ranked by panda (the metric chose {demo.sources[0].prompt.task.name})",
        numeric=("", "similarity to the target"),
    )
    output.table(
        ("system", "best", "last"),
        comparison_table(demo),
        title=f"tiny/contradiction: {demo.metric} in percent, mean ± standard deviation over {seeds} seeds",
        numeric=("best", "last"),
    )
    write_text(report, report_markdown(demo))
    result = {
        "target": "tiny/contradiction",
        "metric": demo.metric,
        "seeds": list(demo.seeds),
        "device": chosen.type,
        "precision": precision_name(dtype),
        "chosen": demo.sources[0].prompt.task.name,
        "ranking": [
            {"prompt": one.prompt.path, "task": one.prompt.task.name, "similarity": one.similarity}
            for one in demo.sources
        ],
        "systems": [
            {"name": result.system.name, "best": result.best, "last": result.last} for result in demo.comparison.results
        ],
        "seconds": demo.seconds,
        "wall_seconds": time.perf_counter() - started,
        "prompts": [str(path) for path in demo.prompts],
        "report": str(report),
    }
    write_text(out / "report.json", json.dumps(json_value(result), indent=1) + "\n")
    output.line(
        f"{len(demo.prompts)} prompts and the report were written to {out} in {result['wall_seconds']:.0f} s; "
        f"look at one with: panda-fusion prompt show {demo.prompts[0]}"
    )
    output.result(result)
