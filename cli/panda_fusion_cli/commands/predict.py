"""`panda-fusion predict`: labels or values for rows without labels."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from panda_fusion_cli.help_sections import OUTPUT, SectionCommand, option
from panda_fusion_cli.output import Output, output_options
from panda_fusion_cli.run_options import FILE, max_length_option, model_options

EXAMPLES = ("panda-fusion predict sentiment.safetensors --model tiny --input rows.jsonl --out predictions.jsonl",)
ROWS = "Rows"


@click.command("predict", cls=SectionCommand, examples=EXAMPLES)
@click.argument("prompt_path", metavar="PROMPT", type=FILE)
@option(
    ROWS,
    "--input",
    "input_path",
    metavar="FILE",
    required=True,
    type=FILE,
    help="JSON Lines with the text columns of the prompt's task; other columns are ignored.",
)
@max_length_option(ROWS, None, "what PROMPT was trained with")
@model_options
@option(
    OUTPUT,
    "--out",
    metavar="FILE",
    required=True,
    type=FILE,
    help="The JSON Lines to write, one object per row, in the same order.",
)
@output_options
def command(
    output: Output,
    prompt_path: Path,
    model: str,
    device: Any,
    precision: Any,
    input_path: Path,
    out: Path,
    max_length: int | None,
) -> None:
    """Predict rows with PROMPT; everything needed to read them is in the prompt file.

    Per row `label` and `probabilities` (in the order of the task's labels) are written; `value` for a regression,
    `choice` and `probabilities` for multiple choice, `tags` for words, `answer` for extractive QA.
    """
    started = time.perf_counter()
    from panda_fusion.model_name import check_model_name
    from panda_fusion.rows import load_inputs
    from panda_fusion_cli.run_options import check_output, check_prompt_file, trained_length

    check_output(out, {"input": input_path, "prompt": prompt_path})
    check_model_name(model)
    described = check_prompt_file(prompt_path)
    rows = load_inputs(described.task, input_path)
    max_length = max_length or trained_length(described)

    import json

    from panda_fusion.atomic_write import write_text
    from panda_fusion.evaluation import predict_rows
    from panda_fusion.prompt_file import load_prompt
    from panda_fusion_cli.run_options import check_prompt, open_backbone

    prompt = load_prompt(prompt_path)
    backbone = open_backbone(model, device, precision)
    check_prompt(prompt, backbone)
    predictions = predict_rows(backbone, prompt, rows, max_length)
    write_text(out, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in predictions))
    output.line(f"{len(predictions)} predictions written to {out}")
    output.result(
        {
            "prompt": str(prompt_path),
            "task": prompt.task.name,
            "model": backbone.name,
            "method": prompt.method,
            "input": str(input_path),
            "out": str(out),
            "rows": len(predictions),
            "wall_seconds": time.perf_counter() - started,
        }
    )
