"""How the end of a training run is told, for `train` and `transfer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from panda_fusion.compiled import Compilation
    from panda_fusion_cli.output import Output

INTERRUPTED = 130
"""Exit code after Ctrl-C; the best prompt so far has been written."""


def tell_compilation(output: Output, compilation: Compilation) -> None:
    """Say how long compiling took, or warn that it was asked for in vain."""
    if compilation.reason is not None:
        output.warn(compilation.reason)
    elif compilation.seconds:
        output.line(f"layers compiled in {compilation.seconds:.1f} s")


def report_run(output: Output, result: Mapping[str, Any], out: Path, extra: Sequence[tuple[str, object]]) -> None:
    """Print warnings, the final table and the JSON result of a run.

    Args:
        output: where to.
        result: what `panda_fusion.run.result_record` gives.
        out: the prompt file that was written.
        extra: rows of the table that belong to the command.

    Raises:
        click.exceptions.Exit: the run was interrupted; the program ends with code 130.
    """
    if result["diverged"]:
        output.warn(
            f"the loss stopped being finite; the best prompt, of step {result['best_step']}, was kept (lower --lr)"
        )
    if result["interrupted"]:
        output.warn(f"interrupted at step {result['steps']} of {result['steps_planned']}; the best so far was kept")
    rows: list[tuple[str, object]] = [
        ("task", result["task"]),
        ("model", result["model"]),
        ("method", result["method"]),
        *extra,
        (f"{result['metric']}, best", f"{_number(result['best'])} (step {result['best_step']})"),
        (f"{result['metric']}, last", f"{_number(result['last'])} (step {result['steps']})"),
        ("samples per second", f"{result['samples_per_second']:.1f}"),
        *([("seconds to compile", f"{result['compile_seconds']:.1f}")] if result["compile_seconds"] else []),
        ("seconds", f"{result['wall_seconds']:.1f}"),
        ("device", f"{result['device']}, {result['precision']}"),
        ("prompt", str(out)),
    ]
    output.table(("field", "value"), rows)
    output.result(result)
    if result["interrupted"]:
        click.get_current_context().exit(INTERRUPTED)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
