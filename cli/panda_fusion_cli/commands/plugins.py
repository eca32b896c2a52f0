"""`panda-fusion plugins`: what is installed, what a method takes, whether plugins keep their contracts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from panda_fusion_cli.output import Output, output_options

if TYPE_CHECKING:
    from panda_fusion.registry import MethodEntry, MethodRegistry, PluginInfo, TaskEntry


@click.group(help="List, show and check plugins and their methods.")
def command() -> None:
    pass


@command.command("list", help="List every method and task with the plugin that it comes from.")
@output_options
def list_plugins(output: Output) -> None:
    from panda_fusion.plugin_manager import PLUGINS_VARIABLE, broken_plugins, load_plugins, tasks

    manager = load_plugins()
    if manager.only is not None:
        output.line(f"{PLUGINS_VARIABLE} restricts the plugins to: {', '.join(manager.only) or 'none'}")
    methods = [_method_summary(registry, entry) for registry, entry in _method_entries()]
    registered = [_task_summary(entry) for entry in tasks().entries()]
    broken = [{**_origin(item.plugin), "error": item.error} for item in broken_plugins()]
    columns: tuple[str, ...] = ("kind", "name", "plugin", "distribution", "version", "help")
    if methods:
        output.table(columns, [[row[column] for column in columns] for row in methods], title="Methods")
    if registered:
        columns = ("kind", "name", "metric", "plugin", "distribution", "version")
        by_kind = sorted(registered, key=lambda row: (row["kind"], row["name"]))
        output.table(columns, [[row[column] for column in columns] for row in by_kind], title="Tasks")
    if broken:
        columns = ("plugin", "distribution", "version", "error")
        output.table(columns, [[row[column] for column in columns] for row in broken], title="Left out")
    output.result({"methods": methods, "tasks": registered, "broken": broken})


@command.command("show", help="Show a method's options and documentation, or a task, by NAME.")
@click.argument("name")
@output_options
def show(name: str, output: Output) -> None:
    from panda_fusion.errors import UnknownNameError
    from panda_fusion.plugin_manager import registries, tasks
    from panda_fusion.registry import unknown_name

    methods = [_show_method(registry, entry, output) for registry, entry in _method_entries() if entry.name == name]
    found = [_show_task(entry, output) for entry in tasks().entries() if entry.task.name == name]
    if not methods and not found:
        known = {known for registry in registries() for known in registry.names()} | set(tasks().names())
        raise UnknownNameError(unknown_name("method or task", name, sorted(known), "panda-fusion plugins list"))
    output.result({"name": name, "methods": methods, "tasks": found})


@command.command(
    "check",
    help="Run the conformance checks of panda_fusion.testing on every registered method, or on those called "
    "NAME, of the plugin NAME, or of the distribution NAME.",
)
@click.argument("name", required=False)
@output_options
def check(name: str | None, output: Output) -> None:
    from panda_fusion.errors import PluginError
    from panda_fusion.plugin_manager import broken_plugins

    rows: list[dict[str, Any]] = []
    for registry, entry in _selected(name):
        output.line(f"{registry.kind} {entry.name} ({entry.plugin})")
        passed, failed = 0, 0
        for result in _run(registry, entry):
            rows.append(
                {
                    "kind": registry.kind,
                    "name": entry.name,
                    "check": result.name,
                    "passed": result.passed,
                    "message": result.message,
                }
            )
            passed, failed = passed + result.passed, failed + (not result.passed)
            output.line(f"  {'pass' if result.passed else 'FAIL'}  {result.name}")
            if result.message:
                output.line(f"        {result.message}")
        output.line(f"  {passed} passed, {failed} failed")
    broken = [item for item in broken_plugins() if name is None or _matches(name, item.plugin)]
    failures = sum(not row["passed"] for row in rows)
    output.result(
        {
            "checks": rows,
            "passed": len(rows) - failures,
            "failed": failures,
            "broken": [{**_origin(item.plugin), "error": item.error} for item in broken],
        }
    )
    if failures or broken:
        first = next((row for row in rows if not row["passed"]), None)
        what = [
            f"{failures} of {len(rows)} checks failed" if failures else "",
            f"{len(broken)} plugin(s) or parts of plugins were left out" if broken else "",
        ]
        where = f" (first: {first['kind']} {first['name']}: {first['check']})" if first else ""
        raise PluginError(" and ".join(part for part in what if part) + where + ".")


def _run(registry: MethodRegistry[Any], entry: MethodEntry) -> Iterator[Any]:
    """Results of a method's checks; a method that does not even load has one, failed."""
    from panda_fusion.errors import PandaFusionError
    from panda_fusion.testing import CheckResult, checks_for, run_checks

    try:
        method_type = registry.load(entry.name)
    except PandaFusionError as error:
        yield CheckResult("loads", False, str(error))
        return
    yield CheckResult("loads", True, "")
    try:
        yield from run_checks(checks_for(registry.kind, method_type, entry.name))
    except Exception as error:  # its options or __init__ fail before there is anything to check
        yield CheckResult("can be made with its defaults", False, f"{type(error).__name__}: {error}")


def _selected(name: str | None) -> list[tuple[MethodRegistry[Any], MethodEntry]]:
    from panda_fusion.errors import UnknownNameError
    from panda_fusion.plugin_manager import broken_plugins, load_plugins
    from panda_fusion.registry import unknown_name

    entries = list(_method_entries())
    if name is None:
        return entries
    chosen = [(registry, entry) for registry, entry in entries if entry.name == name or _matches(name, entry.plugin)]
    plugins = [*load_plugins().plugins, *(item.plugin for item in broken_plugins())]
    if not chosen and not any(_matches(name, plugin) for plugin in plugins):
        known = {entry.name for _, entry in entries}
        known |= {text for plugin in plugins for text in (plugin.name, plugin.distribution) if text}
        raise UnknownNameError(
            unknown_name("method, plugin or distribution", name, sorted(known), "panda-fusion plugins list")
        )
    return chosen


def _matches(name: str, plugin: PluginInfo) -> bool:
    return name in (plugin.name, plugin.distribution)


def _method_entries() -> Iterator[tuple[MethodRegistry[Any], MethodEntry]]:
    from panda_fusion.plugin_manager import registries

    for registry in registries():
        for entry in registry.entries():
            yield registry, entry


def _origin(plugin: PluginInfo) -> dict[str, str]:
    return {"plugin": plugin.name, "distribution": plugin.distribution, "version": plugin.version}


def _method_summary(registry: MethodRegistry[Any], entry: MethodEntry) -> dict[str, Any]:
    return {"kind": registry.kind, "name": entry.name, **_origin(entry.plugin), "help": entry.help}


def _task_summary(entry: TaskEntry) -> dict[str, Any]:
    task = entry.task
    return {
        "kind": task.kind,
        "name": task.name,
        "metric": task.metric,
        **_origin(entry.plugin),
        "help": task.description,
    }


def _show_method(registry: MethodRegistry[Any], entry: MethodEntry, output: Output) -> dict[str, Any]:
    import inspect

    from panda_fusion.method_string import describe_options

    method_type = registry.load(entry.name)
    options = describe_options(method_type.Options)
    documentation = inspect.getdoc(method_type) or ""
    file = inspect.getsourcefile(method_type) or ""
    output.line(f"{registry.kind} {entry.name}: {entry.help}")
    output.line(f"{entry.plugin}, class {method_type.__module__}.{method_type.__qualname__}")
    output.line(f"file {file}")
    output.line()
    for text in documentation.splitlines():
        output.line(text)
    if options:
        output.table(("option", "takes", "default", "description"), options)
    else:
        output.line("It takes no options.")
    output.line()
    return {
        **_method_summary(registry, entry),
        "class": f"{method_type.__module__}:{method_type.__qualname__}",
        "file": file,
        "documentation": documentation,
        "options": [
            {
                "name": option.name,
                "type": option.type_text,
                "default": option.default,
                "description": option.description,
            }
            for option in options
        ],
    }


def _show_task(entry: TaskEntry, output: Output) -> dict[str, Any]:
    task = entry.task
    rows = (
        ("kind", task.kind),
        ("inputs", ", ".join(task.inputs)),
        ("labels", ", ".join(task.labels) or None),
        ("metric", task.metric),
        ("plugin", str(entry.plugin)),
        ("description", task.description or None),
    )
    output.table((f"task {task.name}", ""), rows)
    return {**_task_summary(entry), "inputs": task.inputs, "labels": task.labels}
