"""Typed registries: which plugin offers which method or task under which name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from panda_fusion.errors import PluginError, UnknownNameError
from panda_fusion.method import Method
from panda_fusion.method_string import NAME_PATTERN, build_options, parse_method
from panda_fusion.nearest import nearest_names

if TYPE_CHECKING:
    from panda_fusion.task import Task

T = TypeVar("T", bound=Method)


@dataclass(frozen=True)
class PluginInfo:
    """Where a plugin comes from.

    Attributes:
        name: the entry point's name.
        distribution: the installed distribution that it belongs to; empty for a plugin registered in Python.
        version: that distribution's version; empty where there is none.
    """

    name: str
    distribution: str = ""
    version: str = ""

    def __str__(self) -> str:
        where = f" of {self.distribution} {self.version}".rstrip() if self.distribution else ""
        return f"plugin {self.name!r}{where}"


@dataclass(frozen=True)
class MethodEntry:
    """One registered method: what users type, the class or `"module:Name"`, one line of help, the plugin."""

    name: str
    factory: type[Method] | str
    help: str
    plugin: PluginInfo


@dataclass(frozen=True)
class TaskEntry:
    """One registered task and the plugin that registered it."""

    task: Task
    plugin: PluginInfo


class MethodRegistry(Generic[T]):
    """The methods of one kind.

    Args:
        kind: what a method of this kind is called in messages (`KD loss`).
        base: the class that methods must subclass, as `"module:Class"`, so that it is imported late.
    """

    def __init__(self, kind: str, base: str) -> None:
        self.kind = kind
        self.base = base
        self._entries: dict[str, MethodEntry] = {}

    def register(self, name: str, factory: type[Method] | str, *, help: str, plugin: PluginInfo) -> None:
        """Add a method; nothing is imported yet.

        Raises:
            PluginError: the name is taken (the message names both plugins) or is not a method name, or the
                factory is neither a class nor `"module:Name"`.
        """
        if not NAME_PATTERN.fullmatch(name):
            raise PluginError(
                f"{_capital(str(plugin))} registers a {self.kind} under {name!r}; expected lower-case "
                "letters, digits, - and _."
            )
        if name in self._entries:
            raise PluginError(
                f"{_capital(str(plugin))} registers the {self.kind} {name!r}, which "
                f"{self._entries[name].plugin} has registered already; uninstall one of them or "
                "choose with PANDA_FUSION_PLUGINS."
            )
        module, colon, attribute = factory.partition(":") if isinstance(factory, str) else ("", "", "")
        if not isinstance(factory, type) and not (module and colon and attribute):
            raise PluginError(
                f"{_capital(str(plugin))} registers the {self.kind} {name!r} with the factory {factory!r}; "
                "expected a class or 'module:Name'."
            )
        self._entries[name] = MethodEntry(name, factory, help, plugin)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._entries)

    def entries(self) -> list[MethodEntry]:
        """All registered methods, sorted by name."""
        return [self._entries[name] for name in self.names()]

    def entry(self, name: str) -> MethodEntry:
        """One registered method.

        Raises:
            UnknownNameError: no plugin registered the name.
        """
        if name not in self._entries:
            raise UnknownNameError(unknown_name(self.kind, name, self.names(), "panda-fusion plugins list"))
        return self._entries[name]

    def load(self, name: str) -> type[T]:
        """The class behind a name; imports it where it is registered lazily.

        Raises:
            UnknownNameError: no plugin registered the name.
            PluginError: the class cannot be imported, is no subclass of this kind's base class, or leaves
                out a method that it must have.
        """
        entry = self.entry(name)
        subject = f"{_capital(self.kind)} {name!r} ({entry.plugin})"
        found: Any = entry.factory
        if isinstance(found, str):
            try:
                found = _resolve(found)
            except Exception as error:  # a plugin's import may raise anything
                raise PluginError(
                    f"{subject} cannot be imported from {entry.factory!r}: {type(error).__name__}: {error}"
                ) from error
        base = _resolve(self.base)
        if not (isinstance(found, type) and issubclass(found, base)):
            expected = self.base.replace(":", ".")
            raise PluginError(f"{subject} must be a subclass of {expected}, found {found!r}.")
        if inspect.isabstract(found):
            missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
            raise PluginError(f"{subject} does not define {missing}, which every {self.kind} must.")
        return found

    def create(self, method_string: str) -> T:
        """Make a method from `name` or `name:option=value,...`, with its `name` set.

        Raises:
            OptionError: the string does not parse, or an option is unknown or has a bad value.
            UnknownNameError, PluginError: as for `load`.
        """
        name, raw = parse_method(method_string)
        method_type = self.load(name)
        method = method_type(build_options(method_type.Options, raw, f"{self.kind} {name!r}"))
        method.name = name
        return method


class TaskRegistry:
    """The tasks that can be named on the command line."""

    def __init__(self) -> None:
        self._entries: dict[str, TaskEntry] = {}

    def register(self, task: Task, plugin: PluginInfo) -> None:
        """Add a task under its own name.

        Raises:
            PluginError: the name is taken (the message names both plugins) or this is no task.
        """
        from panda_fusion.task import Task

        if not isinstance(task, Task):
            raise PluginError(
                f"{_capital(str(plugin))} registers a task of type {type(task).__name__}; expected "
                "panda_fusion.task.Task."
            )
        if task.name in self._entries:
            raise PluginError(
                f"{_capital(str(plugin))} registers the task {task.name!r}, which "
                f"{self._entries[task.name].plugin} has registered already; uninstall one of them or choose "
                "with PANDA_FUSION_PLUGINS."
            )
        self._entries[task.name] = TaskEntry(task, plugin)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._entries)

    def all(self) -> list[Task]:
        """All registered tasks, sorted by name."""
        return [entry.task for entry in self.entries()]

    def entries(self) -> list[TaskEntry]:
        """All registered tasks with their plugins, sorted by name."""
        return [self._entries[name] for name in self.names()]

    def get(self, name: str) -> Task:
        """The task of this name.

        Raises:
            UnknownNameError: no plugin registered it.
        """
        if name not in self._entries:
            raise UnknownNameError(unknown_name("task", name, self.names(), "panda-fusion tasks"))
        return self._entries[name].task


def unknown_name(kind: str, name: str, known: Iterable[str], command: str) -> str:
    """The one sentence for a name that nobody registered: the nearest names and how to list them all."""
    known = list(known)
    if not known:
        return f"No {kind} is registered, so {name!r} is unknown; `{command}` shows what is installed."
    near = nearest_names(name, known)
    nearest = f" (nearest: {', '.join(near)})" if near else ""
    return f"Unknown {kind} {name!r}{nearest}; `{command}` lists them all."


def _resolve(path: str) -> Any:
    module, _, attribute = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
