"""Finds plugins, loads them, and fills the registries from them.

A plugin is an entry point of the group `panda_fusion`; the built-in methods are found in the same way. Two
environment variables are read when the plugins are loaded:

* `PANDA_FUSION_PLUGINS`: comma-separated entry point names or distribution names; only these are loaded
  (`panda-fusion` stands for everything built in; empty: no plugin at all).
* `PANDA_FUSION_TRACE=1`: every hook call is printed on stderr with the plugins that take part.

A plugin that does not work never takes the program down: it is left out and listed by `broken_plugins`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from panda_fusion import hookspecs
from panda_fusion.errors import PandaFusionError, PluginError
from panda_fusion.markers import PROJECT
from panda_fusion.nearest import nearest_names
from panda_fusion.registry import MethodRegistry, PluginInfo, TaskRegistry

if TYPE_CHECKING:
    from panda_fusion.executor import Executor
    from panda_fusion.fusion import Fusion
    from panda_fusion.kd_loss import KDLoss
    from panda_fusion.method import Method
    from panda_fusion.peft_method import PEFTMethod
    from panda_fusion.similarity import Similarity
    from panda_fusion.task import Task
    from panda_fusion.teacher import Teacher

BUILT_IN = "panda-fusion"
"""The distribution whose plugins are loaded first, so that they keep their names when others collide."""
PLUGINS_VARIABLE = "PANDA_FUSION_PLUGINS"
TRACE_VARIABLE = "PANDA_FUSION_TRACE"

METHOD_HOOKS = {
    "register_peft_methods": ("PEFT method", "panda_fusion.peft_method:PEFTMethod"),
    "register_teachers": ("teacher", "panda_fusion.teacher:Teacher"),
    "register_fusions": ("fusion", "panda_fusion.fusion:Fusion"),
    "register_kd_losses": ("KD loss", "panda_fusion.kd_loss:KDLoss"),
    "register_similarities": ("similarity", "panda_fusion.similarity:Similarity"),
    "register_executors": ("executor", "panda_fusion.executor:Executor"),
}
"""Registration hook -> the kind word and the base class of what it registers."""


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin, or a part of one, that was left out.

    Attributes:
        plugin: which one.
        error: one sentence that says why.
    """

    plugin: PluginInfo
    error: str

    def __str__(self) -> str:
        return f"{self.plugin}: {self.error}"


class PluginManager:
    """The loaded plugins and the registries that they filled.

    Args:
        only: entry point or distribution names to load; None loads all.
        trace: whether to print each hook call on stderr.
        extra: plugin objects besides the entry points, loaded last.

    Attributes:
        methods: registration hook -> registry of the methods that it registers.
        tasks: the registered tasks.
        hook: pluggy's relay, for the lifecycle hooks.
        broken: plugins that were left out.

    Raises:
        PluginError: `only` names something that is not installed.
    """

    def __init__(
        self,
        only: Sequence[str] | None = None,
        trace: bool = False,
        extra: Sequence[tuple[PluginInfo, object]] = (),
    ) -> None:
        self.only = only
        self.trace = trace
        self.extra = tuple(extra)
        self.methods: dict[str, MethodRegistry[Any]] = {
            hook: MethodRegistry(kind, base) for hook, (kind, base) in METHOD_HOOKS.items()
        }
        self.tasks = TaskRegistry()
        self.broken: list[BrokenPlugin] = []
        self.plugins: list[PluginInfo] = []
        self._pluggy = pluggy.PluginManager(PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        self.hook = self._pluggy.hook
        self._objects: dict[str, tuple[PluginInfo, object]] = {}
        if trace:
            self._pluggy.add_hookcall_monitoring(self._trace_call, _trace_result)
        for info, load in [*_discover(only), *((info, lambda o=item: o) for info, item in extra)]:
            self._add(info, load)
        self._fill_registries()

    def call_each(self, hook: str, arguments: Callable[[PluginInfo], dict[str, object]]) -> None:
        """Call a hook on one plugin after the other; one that raises is noted in `broken`, the others go on.

        Args:
            hook: name of the hook.
            arguments: makes the call's arguments for a plugin.
        """
        for plugin in self._implementing(hook):
            info = self._objects[plugin][0]
            others = [other for name, (_, other) in self._objects.items() if name != plugin]
            try:
                self._pluggy.subset_hook_caller(hook, others)(**arguments(info))
            except PandaFusionError as error:
                self.broken.append(BrokenPlugin(info, str(error)))
            except Exception as error:  # whatever a plugin raises must not stop the program
                self.broken.append(BrokenPlugin(info, f"{hook} failed: {_one_line(error)}"))

    def _implementing(self, hook: str) -> list[str]:
        """The pluggy names of the plugins that implement a hook, in loading order."""
        theirs = {implementation.plugin_name for implementation in getattr(self.hook, hook).get_hookimpls()}
        return [name for name in self._objects if name in theirs]

    def _add(self, info: PluginInfo, load: Callable[[], object]) -> None:
        try:
            plugin = load()
        except (Exception, SystemExit) as error:  # a module may do anything while it is imported
            self.broken.append(BrokenPlugin(info, f"cannot be loaded: {_one_line(error)}"))
            return
        # Two distributions may use one entry point name for different methods.
        name = info.name if info.name not in self._objects else f"{info.distribution}:{info.name}"
        try:
            self._pluggy.register(plugin, name)
        except (pluggy.PluginValidationError, ValueError, AssertionError) as error:
            if self._pluggy.get_plugin(name) is plugin:
                self._pluggy.unregister(name=name)
            self.broken.append(BrokenPlugin(info, f"does not fit the hooks: {_one_line(error)}"))
            return
        self._objects[name] = (info, plugin)
        self.plugins.append(info)
        for caller in self._pluggy.get_hookcallers(plugin) or ():
            if not caller.has_spec():
                near = nearest_names(caller.name, hook_names(), 1)
                hint = f" (nearest: {near[0]})" if near else ""
                message = f"implements {caller.name!r}, which is no hook{hint}; it is never called"
                self.broken.append(BrokenPlugin(info, message))

    def _fill_registries(self) -> None:
        for hook, registry in self.methods.items():
            self.call_each(hook, functools.partial(self._method_arguments, registry))
        self.call_each("register_tasks", self._task_arguments)

    def _method_arguments(self, registry: MethodRegistry[Any], info: PluginInfo) -> dict[str, object]:
        def register(name: str, factory: type[Method] | str, *, help: str) -> None:
            # Not raised into the plugin: what it registers after a collision should still be there.
            try:
                registry.register(name, factory, help=help, plugin=info)
            except PluginError as error:
                self.broken.append(BrokenPlugin(info, str(error)))

        return {"register": register}

    def _task_arguments(self, info: PluginInfo) -> dict[str, object]:
        def register(task: Task) -> None:
            try:
                self.tasks.register(task, info)
            except PluginError as error:
                self.broken.append(BrokenPlugin(info, str(error)))

        return {"register": register}

    def _trace_call(self, hook: str, implementations: Sequence[Any], arguments: Mapping[str, Any]) -> None:
        plugins = ", ".join(implementation.plugin_name for implementation in reversed(implementations))
        print(f"{hook}({', '.join(arguments)}) -> {plugins or 'no plugin'}", file=sys.stderr)


_loaded: PluginManager | None = None


def load_plugins() -> PluginManager:
    """The process's plugins, loaded on the first call.

    Raises:
        PluginError: PANDA_FUSION_PLUGINS names something that is not installed.
    """
    global _loaded
    if _loaded is None:
        listed = os.environ.get(PLUGINS_VARIABLE)
        only = None if listed is None else [item.strip() for item in listed.split(",") if item.strip()]
        _loaded = PluginManager(only, trace=os.environ.get(TRACE_VARIABLE, "") not in ("", "0"))
    return _loaded


@contextmanager
def temporary_plugin(plugin: object, name: str = "temporary") -> Iterator[PluginManager]:
    """For tests: have one more plugin inside the block, beside those that are loaded.

    Args:
        plugin: a module, or an instance with methods marked `@hookimpl`.
        name: what messages call it.
    """
    global _loaded
    before = load_plugins()
    extra = [*before.extra, (PluginInfo(name), plugin)]
    _loaded = PluginManager(before.only, before.trace, extra)
    try:
        yield _loaded
    finally:
        _loaded = before


def peft_methods() -> MethodRegistry[PEFTMethod]:
    """The registered PEFT methods."""
    return load_plugins().methods["register_peft_methods"]


def teachers() -> MethodRegistry[Teacher]:
    """The registered teachers."""
    return load_plugins().methods["register_teachers"]


def fusions() -> MethodRegistry[Fusion]:
    """The registered fusions."""
    return load_plugins().methods["register_fusions"]


def kd_losses() -> MethodRegistry[KDLoss]:
    """The registered KD losses."""
    return load_plugins().methods["register_kd_losses"]


def similarities() -> MethodRegistry[Similarity]:
    """The registered similarities."""
    return load_plugins().methods["register_similarities"]


def executors() -> MethodRegistry[Executor]:
    """The registered executors."""
    return load_plugins().methods["register_executors"]


def registries() -> list[MethodRegistry[Any]]:
    """The registries of all kinds of methods."""
    return list(load_plugins().methods.values())


def tasks() -> TaskRegistry:
    """The registered tasks."""
    return load_plugins().tasks


def hooks() -> pluggy.HookRelay:
    """The relay through which the lifecycle hooks are called: `hooks().step_ended(step=..., ...)`."""
    return load_plugins().hook


def broken_plugins() -> list[BrokenPlugin]:
    """Plugins, or parts of plugins, that were left out, each with the reason."""
    return list(load_plugins().broken)


def hook_names() -> list[str]:
    """All hooks that a plugin can implement, in the order in which `panda_fusion.hookspecs` declares them."""
    return [name for name, value in vars(hookspecs).items() if hasattr(value, f"{PROJECT}_spec")]


def _discover(only: Sequence[str] | None) -> list[tuple[PluginInfo, Callable[[], object]]]:
    """The installed plugins, the built-in ones first, then by distribution and name."""
    found: list[tuple[PluginInfo, Callable[[], object]]] = []
    names: dict[int, tuple[str, str]] = {}  # reading a distribution's metadata takes a millisecond
    for entry_point in importlib.metadata.entry_points(group=PROJECT):
        distribution = entry_point.dist
        name, version = "", ""
        if distribution is not None:
            key = id(distribution)
            if key not in names:
                names[key] = (distribution.name, distribution.version)
            name, version = names[key]
        found.append((PluginInfo(entry_point.name, name, version), entry_point.load))
    found.sort(key=lambda item: _loading_order(item[0]))
    if only is None:
        return found
    known = [name for info, _ in found for name in (info.name, _normal(info.distribution))]
    unmatched = [item for item in only if item not in known and _normal(item) not in known]
    if unmatched:
        raise PluginError(_not_installed(unmatched, known))
    wanted = {*only, *(_normal(item) for item in only)}
    return [item for item in found if item[0].name in wanted or _normal(item[0].distribution) in wanted]


def _loading_order(info: PluginInfo) -> tuple[bool, str, str]:
    return _normal(info.distribution) != BUILT_IN, info.distribution, info.name


def _not_installed(unmatched: Sequence[str], known: Iterable[str]) -> str:
    near = [match for item in unmatched for match in nearest_names(item, known, 1)]
    hint = f" (nearest: {', '.join(near)})" if near else ""
    return (
        f"{PLUGINS_VARIABLE} lists {', '.join(map(repr, unmatched))}{hint}, which is no installed plugin and "
        "no distribution with plugins; install it or take it out of the list."
    )


def _normal(name: str) -> str:
    """A distribution name as packaging tools compare them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _trace_result(outcome: Any, hook: str, implementations: object, arguments: object) -> None:
    if outcome.exception is not None:
        print(f"{hook} raised {_one_line(outcome.exception)}", file=sys.stderr)
    elif outcome.get_result():
        print(f"{hook} returned {outcome.get_result()!r}", file=sys.stderr)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
