import sys
import types
from typing import Annotated

import pytest
from msgspec import Meta

from panda_fusion.errors import OptionError, PluginError, UnknownNameError
from panda_fusion.method import Options
from panda_fusion.registry import MethodRegistry, PluginInfo, TaskRegistry
from panda_fusion.similarity import Similarity
from panda_fusion.task import Task

HOME = PluginInfo("home", "panda-fusion", "1.0")
OTHER = PluginInfo("other", "some-dist", "2.3")


class CosineOptions(Options, frozen=True, kw_only=True):
    power: Annotated[int, Meta(ge=1, description="exponent")] = 1


class Cosine(Similarity):
    Options = CosineOptions

    def score(self, source, target, context):
        return 0.5**self.options.power


class Abstract(Similarity):
    pass


@pytest.fixture
def registry():
    made: MethodRegistry[Similarity] = MethodRegistry("similarity", "panda_fusion.similarity:Similarity")
    made.register("cosine", Cosine, help="a cosine", plugin=HOME)
    return made


@pytest.fixture
def module(monkeypatch):
    made = types.ModuleType("some_dist_methods")
    made.Late = Cosine
    made.number = 3
    monkeypatch.setitem(sys.modules, "some_dist_methods", made)
    return made


def test_create_builds_options_and_sets_the_name(registry):
    method = registry.create("cosine:power=3")
    assert isinstance(method, Cosine)
    assert method.name == "cosine"
    assert method.spec == "cosine:power=3"
    assert method.score(None, None, None) == 0.125
    assert registry.create("cosine").options == CosineOptions()


def test_create_names_kind_and_method_in_option_errors(registry):
    with pytest.raises(OptionError, match="similarity 'cosine' must be an integer of at least 1, found '0'"):
        registry.create("cosine:power=0")


def test_names_are_sorted_and_entries_know_their_plugin(registry):
    registry.register("a", Cosine, help="first", plugin=OTHER)
    assert registry.names() == ["a", "cosine"]
    assert [(entry.name, entry.help, entry.plugin) for entry in registry.entries()] == [
        ("a", "first", OTHER),
        ("cosine", "a cosine", HOME),
    ]


def test_lazy_factory_is_imported_on_load_only(registry, module):
    registry.register("late", "some_dist_methods:Late", help="", plugin=OTHER)
    assert registry.load("late") is Cosine


def test_unknown_name_answers_with_the_nearest_and_the_command(registry):
    with pytest.raises(UnknownNameError) as raised:
        registry.load("cosin")
    assert str(raised.value) == (
        "Unknown similarity 'cosin' (nearest: cosine); `panda-fusion plugins list` lists them all."
    )


def test_unknown_name_with_nothing_near_or_nothing_registered(registry):
    with pytest.raises(UnknownNameError, match=r"Unknown similarity 'zzz'; `panda-fusion"):
        registry.load("zzz")
    empty: MethodRegistry[Similarity] = MethodRegistry("KD loss", "panda_fusion.kd_loss:KDLoss")
    with pytest.raises(UnknownNameError, match="No KD loss is registered"):
        empty.load("kl")


def test_collision_names_both_plugins_and_keeps_the_first(registry):
    with pytest.raises(PluginError) as raised:
        registry.register("cosine", "x:Y", help="", plugin=OTHER)
    message = str(raised.value)
    assert "'other' of some-dist 2.3" in message
    assert "'home' of panda-fusion 1.0" in message
    assert registry.load("cosine") is Cosine


@pytest.mark.parametrize("name", ["Cosine", "a b", "", "-a", "a:b", "a,b"])
def test_bad_names_are_refused(registry, name):
    with pytest.raises(PluginError, match="lower-case letters"):
        registry.register(name, Cosine, help="", plugin=OTHER)


@pytest.mark.parametrize("factory", ["some_module", ":Name", "module:", 3])
def test_bad_factories_are_refused(registry, factory):
    with pytest.raises(PluginError, match="expected a class or 'module:Name'"):
        registry.register("x", factory, help="", plugin=OTHER)


@pytest.mark.parametrize(
    ("factory", "part"),
    [
        ("no_such_module_anywhere:X", "ModuleNotFoundError"),
        ("some_dist_methods:Missing", "AttributeError"),
        ("some_dist_methods:number", "must be a subclass of panda_fusion.similarity.Similarity, found 3"),
        ("builtins:dict", "must be a subclass of panda_fusion.similarity.Similarity"),
    ],
)
def test_a_factory_that_does_not_load_names_the_distribution(registry, module, factory, part):
    registry.register("bad", factory, help="", plugin=OTHER)
    with pytest.raises(PluginError) as raised:
        registry.load("bad")
    assert part in str(raised.value)
    assert "some-dist 2.3" in str(raised.value)


def test_a_class_that_leaves_methods_out_is_refused(registry):
    registry.register("abstract", Abstract, help="", plugin=OTHER)
    with pytest.raises(PluginError, match=r"some-dist 2.3.*does not define score"):
        registry.create("abstract")


def task(name: str) -> Task:
    return Task(name=name, kind="classification", inputs=("text",), labels=("no", "yes"))


def test_task_registry():
    registry = TaskRegistry()
    registry.register(task("rte"), HOME)
    registry.register(task("cb"), OTHER)
    assert registry.names() == ["cb", "rte"]
    assert [found.name for found in registry.all()] == ["cb", "rte"]
    assert registry.get("rte").labels == ("no", "yes")
    assert registry.entries()[0].plugin == OTHER
    with pytest.raises(UnknownNameError, match=r"Unknown task 'rt' \(nearest: rte\); `panda-fusion tasks`"):
        registry.get("rt")
    with pytest.raises(PluginError, match=r"'other' of some-dist 2\.3 .*'home' of panda-fusion 1.0"):
        registry.register(task("rte"), OTHER)
    with pytest.raises(PluginError, match="of type str"):
        registry.register("rte", OTHER)
