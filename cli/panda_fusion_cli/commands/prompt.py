"""`panda-fusion prompt`: show, verify, export and import prompt files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from panda_fusion.errors import PromptFileError
from panda_fusion.printable import printable
from panda_fusion_cli.output import Output, output_options

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.prompt_metadata import PromptMetadata

CELL = 200
"""Longest text of a table cell: a stranger's file can hold a megabyte of it."""
ROWS = 40
"""Most rows of one section of a table."""


@click.group()
def command() -> None:
    """Show, verify, export and import prompt files."""


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@output_options
def show(file: Path, output: Output) -> None:
    """Show what FILE says of itself: method, backbone, task, scores, lineage, tensors.

    Reads the header only, so it also works where the method's plugin is not installed; `verify` checks all.
    """
    from panda_fusion.prompt_file import file_sha256
    from panda_fusion.prompt_metadata import decode_metadata
    from panda_fusion.safetensors_header import read_header

    header = read_header(file)
    metadata = decode_metadata(printable(str(file)), header.metadata)
    shapes = {name: list(entry.shape) for name, entry in sorted(header.tensors.items())}
    digest = file_sha256(file)
    parameters = sum(prod(shape) for shape in shapes.values())
    output.table(["field", "value"], _facts(metadata), title=printable(str(file)))
    output.table(
        ["tensor", "shape", "numbers"],
        _cut([(name, " x ".join(map(str, shape)), prod(shape)) for name, shape in shapes.items()]),
        numeric=["numbers"],
    )
    output.line(f"{parameters} numbers, {header.file_bytes} bytes, sha256 {digest}")
    output.result(
        {
            "path": file,
            "format_version": int(header.metadata["format_version"]),
            **{field: getattr(metadata, field) for field in metadata.__struct_fields__},
            "tensors": shapes,
            "parameters": parameters,
            "bytes": header.file_bytes,
            "sha256": digest,
        }
    )


@command.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", help="Also check that the prompts were trained on this backbone (name or folder).")
@output_options
@click.pass_context
def verify(context: click.Context, files: tuple[Path, ...], model: str | None, output: Output) -> None:
    """Check FILEs: format, metadata, tensors, values, head, and with --model the backbone's weights.

    Prints one line per file; the exit code is 1 if any of them fails.
    """
    from panda_fusion.prompt_file import check_backbone, check_head, check_stored, load_prompt
    from panda_fusion.task import head_outputs

    backbone = None if model is None else _load_backbone(model)
    results: list[dict[str, object]] = []
    for file in files:
        try:
            prompt = load_prompt(file)
            if backbone is not None:
                check_backbone(prompt, backbone.info, backbone.name)
                check_stored(prompt, backbone)
                check_head(
                    printable(str(file)),
                    prompt.head,
                    backbone.head(head_outputs(prompt.task.kind, prompt.task.labels), prompt.task.kind).shapes,
                )
        except PromptFileError as error:
            results.append({"path": file, "ok": False, "error": str(error), "sha256": None})
            click.echo(f"failed: {' '.join(str(error).split())}", err=output.json or output.quiet)
        else:
            results.append({"path": file, "ok": True, "error": None, "sha256": prompt.sha256})
            output.line(
                f"ok: {printable(str(file))} ({printable(prompt.method, 80)} for "
                f"{printable(prompt.task.name, 60)}, sha256 {prompt.sha256[:12]})"
            )
    ok = all(result["ok"] for result in results)
    output.result({"ok": ok, "files": results})
    if not ok:
        context.exit(1)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["peft"]), default="peft", show_default=True, help="What to write.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@output_options
def export(file: Path, form: str, out: Path, output: Output) -> None:
    """Write FILE as a folder that another library loads.

    `peft` is for `peft.PeftModel.from_pretrained`; it takes prefixes and input prompts with their heads.
    """
    from panda_fusion.peft_format import CONFIG_FILE, TENSOR_FILE, export_peft
    from panda_fusion.prompt_file import load_prompt

    warnings = export_peft(load_prompt(file), out)
    for warning in warnings:
        output.warn(warning)
    output.line(f"wrote {printable(str(out / CONFIG_FILE))} and {TENSOR_FILE}")
    output.result(
        {
            "prompt": file,
            "format": form,
            "folder": out,
            "files": [CONFIG_FILE, TENSOR_FILE],
            "warnings": warnings,
        }
    )


@command.command("import")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["peft"]), default="peft", show_default=True, help="What to read.")
@click.option("--model", required=True, help="The backbone that it was trained on (name or folder).")
@click.option("--task", required=True, help="The task that it was trained on (registered name or folder).")
@click.option(
    "--data",
    "data_dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder with DIR/<task>/train.jsonl and validation.jsonl, for labels and the task embedding.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Tokens kept of an example, for the task embedding.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The prompt file to write.")
@output_options
def import_(
    folder: Path,
    form: str,
    model: str,
    task: str,
    data_dir: Path | None,
    max_length: int,
    out: Path,
    output: Output,
) -> None:
    """Make a prompt file from the FOLDER of another library.

    `peft` reads what `save_pretrained` wrote for prefix tuning and prompt tuning, with its head, from
    safetensors only. PEFT's files name neither the task nor the backbone's weights, so both must be given.
    The task embedding that `rank` compares is computed where the task's rows lie on this machine.
    """
    from panda_fusion.atomic_write import check_writable
    from panda_fusion.peft_format import import_peft
    from panda_fusion.prompt_embedding import with_task_embedding
    from panda_fusion.prompt_file import save_prompt
    from panda_fusion.rows import load_split
    from panda_fusion.run import task_info
    from panda_fusion.task import head_outputs
    from panda_fusion.task_source import resolve_task

    check_writable(out)
    known = resolve_task(task, data_dir)
    info = task_info(known)
    backbone = _load_backbone(model)
    prompt = import_peft(
        folder, backbone.info, info, backbone.head(head_outputs(info.kind, info.labels), info.kind).shapes
    )
    base = prompt.training["base_model"]
    if isinstance(base, str) and os.path.basename(base) != os.path.basename(backbone.name):
        output.warn(
            f"the folder names the base model {printable(base, 80)} and --model is"
            f" {printable(backbone.name, 80)}; the sizes fit, but whether the weights are the same cannot be"
            " told from PEFT's files"
        )
    if data_dir is not None or known.rows is not None or known.folder is not None:
        development = load_split(known, "validation", data_dir)
        prompt = with_task_embedding(prompt, backbone, development, max_length)
    else:
        output.warn("the prompt has no task embedding, which the panda similarity compares; give --data to compute it")
    digest = save_prompt(prompt, out)
    output.line(f"wrote {printable(str(out))} ({prompt.method} for {known.name}, sha256 {digest[:12]})")
    output.result(
        {
            "prompt": out,
            "format": form,
            "folder": folder,
            "method": prompt.method,
            "model": backbone.name,
            "task": known.name,
            "task_embedding": prompt.embedding is not None,
            "sha256": digest,
        }
    )


def _load_backbone(model: str) -> Backbone:
    """In float32 on the CPU: only sizes, head and fingerprint are asked of it."""
    import torch

    from panda_fusion.backbone import load_backbone

    return load_backbone(model, device=torch.device("cpu"), dtype=torch.float32)


def _facts(metadata: PromptMetadata) -> list[tuple[object, ...]]:
    """What the metadata say, one pair per line, every text made safe to print."""
    facts: list[tuple[object, ...]] = [("method", printable(metadata.method, CELL))]
    sections: tuple[tuple[str, Mapping[str, object]], ...] = (
        ("backbone", msgspec.to_builtins(metadata.backbone)),
        ("task", msgspec.to_builtins(metadata.task)),
        ("scores", metadata.scores),
        ("lineage", msgspec.to_builtins(metadata.lineage)),
        ("training", metadata.training),
    )
    for section, values in sections:
        rows: list[tuple[object, ...]] = [
            (f"{section} {printable(str(key), 40)}", _text(value))
            for key, value in values.items()
            if value not in (None, [], (), {}, "")
        ]
        facts += _cut(rows)
    return facts


def _text(value: object) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return printable(text, CELL)


def _cut(rows: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    if len(rows) <= ROWS:
        return rows
    rest = tuple("" for _ in rows[0][1:])
    return [*rows[:ROWS], (f"... {len(rows) - ROWS} more", *rest)]
