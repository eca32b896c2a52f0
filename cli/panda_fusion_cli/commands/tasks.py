"""`panda-fusion tasks`: list the registered tasks, show one, check one of your own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from panda_fusion_cli.output import Output, output_options

if TYPE_CHECKING:
    from panda_fusion.task import Task
    from panda_fusion.task_summary import TaskSummary

SHOWN = 200
"""Characters of a text that an example row shows."""

data_option = click.option(
    "--data",
    "data_dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder with DIR/<task>/train.jsonl and validation.jsonl.",
)


class TasksGroup(click.Group):
    """`tasks` and `tasks --json` mean `tasks list`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in self.get_help_option_names(ctx)):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=TasksGroup)
def command() -> None:
    """List the tasks (as `tasks list`), show one, or check one of your own."""


@command.command("list")
@output_options
def list_tasks(output: Output) -> None:
    """List the registered tasks."""
    from panda_fusion.plugin_manager import tasks
    from panda_fusion.row_source import describe_source

    registered = tasks().all()
    output.table(
        ("task", "kind", "inputs", "labels", "metric", "rows from"),
        [
            (
                task.name,
                task.kind,
                ", ".join(task.inputs),
                ", ".join(task.labels) or None,
                task.metric,
                describe_source(task),
            )
            for task in registered
        ],
    )
    output.result({"tasks": [_definition(task) for task in registered]})


@command.command()
@click.argument("task", metavar="NAME_OR_FOLDER")
@data_option
@output_options
def show(task: str, data_dir: Path | None, output: Output) -> None:
    """Show a task: sizes, class balance, lengths, first rows."""
    from panda_fusion.rows import load_task_data
    from panda_fusion.task_source import resolve_task
    from panda_fusion.task_summary import summarise

    data = load_task_data(resolve_task(task, data_dir), data_dir)
    summary = summarise(data)
    _print_summary(data.task, summary, output)
    for warning in data.warnings:
        output.warn(warning)
    output.result({**_definition(data.task), "summary": summary, "warnings": data.warnings})


@command.command()
@click.argument("task", metavar="NAME_OR_FOLDER")
@data_option
@output_options
def check(task: str, data_dir: Path | None, output: Output) -> None:
    """Check task.toml and all rows; name up to 20 bad ones."""
    from panda_fusion.errors import DataError
    from panda_fusion.rows import check_task_data
    from panda_fusion.task_source import find_task

    found = find_task(task, data_dir)
    report = check_task_data(found, data_dir)
    counts = ", ".join(f"{split} {count}" for split, count in report.rows.items()) or "none"
    output.result(
        {
            "task": found.name,
            "ok": not report.total,
            "rows": report.rows,
            "problems": report.problems,
            "problem_count": report.total,
            "warnings": report.warnings,
        }
    )
    for warning in report.warnings:
        output.warn(warning)
    if not report.total:
        output.line(f"{_shown(found.name)}: no problem found (rows: {counts}).")
        return
    output.table(("problem",), [(problem,) for problem in report.problems])
    listed = "" if report.total == len(report.problems) else f"; the first {len(report.problems)} are listed"
    plural = "" if report.total == 1 else "s"
    raise DataError(
        f"Task {found.name!r} has {report.total} problem{plural} (rows: {counts}{listed}); correct its files."
    )


def _print_summary(task: Task, summary: TaskSummary, output: Output) -> None:
    splits = (("train", summary.train), ("validation", summary.validation))
    output.line(f"{_shown(task.name)}: {_shown(task.description) or 'no description'}")
    output.line(f"kind {task.kind}, metric {task.metric}, label column {_shown(task.label)}")
    output.line(f"validation rows whose texts are also in train: {summary.shared}")
    output.table(("split", "rows"), [(name, split.rows) for name, split in splits], numeric=("rows",))
    if task.labels:
        output.table(
            ("label", "name", "train", "validation"),
            [
                (index, _shown(name), summary.train.classes[name], summary.validation.classes[name])
                for index, name in enumerate(task.labels)
            ],
            numeric=("label", "train", "validation"),
        )
    values = [(name, split.values) for name, split in splits if split.values is not None]
    if values:
        output.table(
            ("label of", "least", "mean", "greatest"),
            [(name, value.least, value.mean, value.greatest) for name, value in values],
            numeric=("least", "mean", "greatest"),
        )
    output.table(
        ("words in", "split", "median", "95 % up to", "longest", "empty"),
        [
            (_shown(column), name, words.median, words.percentile_95, words.longest, words.empty)
            for name, split in splits
            for column, words in split.words.items()
        ],
        numeric=("median", "95 % up to", "longest", "empty"),
    )
    output.table(
        [_shown(column) for column in (*task.inputs, task.label)],
        [[_shown(str(value)) for value in row.values()] for row in summary.examples],
        title="First rows of train",
    )


def _definition(task: Task) -> dict[str, object]:
    from panda_fusion.row_source import describe_source

    return {
        "task": task.name,
        "kind": task.kind,
        "inputs": task.inputs,
        "label": task.label,
        "labels": task.labels,
        "metric": task.metric,
        "rows_from": describe_source(task),
        "description": task.description,
    }


def _shown(text: str) -> str:
    """Text of a user's file, safe and short enough for a terminal."""
    from panda_fusion.printable import printable

    return printable(text, SHOWN)
