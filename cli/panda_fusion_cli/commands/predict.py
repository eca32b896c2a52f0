"""`panda-fusion predict`: labels or values for rows without labels."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from panda_fusion_cli.output import Output, output_options
from panda_fusion_cli.run_options import PROMPT_FILE, model_options


@click.command("predict")
@click.argument("prompt_path", metavar="PROMPT", type=PROMPT_FILE)
@model_options
@click.option("--input", "input_path", required=True, type=click.Path(path_type=Path), help="JSON Lines with the task's text columns.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON Lines to write, one object per row.")
@click.option("--max-length", type=click.IntRange(min=4), default=128, show_default=True, help="Tokens kept of a text.")
@output_options
def command(
    output: Output,
    prompt_path: Path,
    model: str,
    device: Any,
    precision: Any,
    input_path: Path,
    out: Path,
    max_length: int,
) -> None:
    """Predict with PROMPT; everything needed to read the rows is in the prompt file."""
    started = time.perf_counter()
    import json

    from panda_fusion.atomic_write import check_writable, write_text
    from panda_fusion.prompt_file import read_metadata
    from panda_fusion.rows import load_inputs
    from panda_fusion_cli.run_options import open_backbone, open_prompt

    check_writable(out)
    texts = load_inputs(read_metadata(prompt_path).task, input_path)
    backbone = open_backbone(model, device, precision)
    prompt = open_prompt(prompt_path, backbone)

    from panda_fusion.evaluation import predict_rows

    predictions = predict_rows(backbone, prompt, texts, max_length)
    write_text(out, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in predictions))
    output.line(f"{len(predictions)} predictions written to {out}")
    output.result(
        {
            "prompt": str(prompt_path),
            "task": prompt.task.name,
            "model": backbone.name,
            "input": str(input_path),
            "out": str(out),
            "rows": len(predictions),
            "wall_seconds": time.perf_counter() - started,
        }
    )
