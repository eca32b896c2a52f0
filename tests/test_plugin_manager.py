"""Plugins are found as installed distributions are: through metadata folders on the import path."""

import subprocess
import sys
import textwrap

import pytest

from panda_fusion import hookimpl, plugin_manager
from panda_fusion.errors import PluginError
from panda_fusion.plugin_manager import PluginManager, temporary_plugin
from panda_fusion.similarity import Similarity
from panda_fusion.task import Task

GOOD = """
from panda_fusion import hookimpl

@hookimpl
def register_similarities(register):
    register("mine", "not_imported_before_use:Mine", help="mine")
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Make an installed distribution: `install("dist", {"plugin": "source of its module"})`."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(distribution: str, plugins: dict[str, str], version: str = "1.0") -> None:
        folder = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = ["[panda_fusion]"]
        for number, (name, source) in enumerate(plugins.items()):
            module = f"{distribution.replace('-', '_')}_{number}_{tmp_path.name.replace('-', '_')}"
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
            lines.append(f"{name} = {module}")
        (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")

    return make


def similarities(manager: PluginManager):
    return manager.methods["register_similarities"]


def broken(manager: PluginManager, distribution: str) -> list[str]:
    return [item.error for item in manager.broken if item.plugin.distribution == distribution]


def test_built_in_plugins_are_found_as_entry_points():
    manager = PluginManager()
    built_in = [info for info in manager.plugins if info.distribution == "panda-fusion"]
    assert len(built_in) > 10
    assert {"prefix", "prompt"} <= set(manager.methods["register_peft_methods"].names())
    assert not [item for item in manager.broken if item.plugin.distribution == "panda-fusion"]


def test_a_third_party_plugin_is_found_and_not_imported_deeper(install):
    install("my-dist", {"my-plugin": GOOD}, version="4.5")
    manager = PluginManager()
    entry = similarities(manager).entry("mine")
    assert (entry.plugin.name, entry.plugin.distribution, entry.plugin.version) == (
        "my-plugin",
        "my-dist",
        "4.5",
    )
    assert not broken(manager, "my-dist")
    assert "not_imported_before_use" not in sys.modules


def test_a_plugin_that_cannot_be_imported_is_left_out(install):
    install("bad-dist", {"bad": "import there_is_no_such_module", "good": GOOD})
    manager = PluginManager()
    (error,) = broken(manager, "bad-dist")
    assert "there_is_no_such_module" in error
    assert "mine" in similarities(manager).names()
    assert "bad-dist 1.0" in str(next(item for item in manager.broken if item.plugin.name == "bad"))


def test_a_plugin_that_exits_while_it_is_imported_is_left_out(install):
    install("bad-dist", {"bad": "raise SystemExit(3)"})
    assert len(broken(PluginManager(), "bad-dist")) == 1


def test_an_unknown_hook_is_reported_and_the_rest_kept(install):
    source = GOOD + "\n@hookimpl\ndef register_similarites(register):\n    raise AssertionError\n"
    install("my-dist", {"my-plugin": source})
    manager = PluginManager()
    (error,) = broken(manager, "my-dist")
    assert "'register_similarites', which is no hook (nearest: register_similarities)" in error
    assert "mine" in similarities(manager).names()


def test_a_hook_with_wrong_arguments_leaves_the_plugin_out(install):
    source = "from panda_fusion import hookimpl\n@hookimpl\ndef step_ended(step, speed): pass\n"
    install("my-dist", {"my-plugin": source})
    manager = PluginManager()
    (error,) = broken(manager, "my-dist")
    assert "speed" in error
    manager.hook.step_ended(step=1, steps=2, losses=None)


def test_a_hook_that_raises_is_reported_and_its_earlier_registrations_stay(install):
    install("my-dist", {"my-plugin": GOOD + "    raise RuntimeError('lost\\nit')\n"})
    manager = PluginManager()
    assert broken(manager, "my-dist") == ["register_similarities failed: RuntimeError: lost it"]
    assert "mine" in similarities(manager).names()


def test_a_collision_names_both_built_in_wins_and_the_rest_stays(install):
    source = """
        from panda_fusion import hookimpl

        @hookimpl
        def register_peft_methods(register):
            register("first", "a:B", help="")
            register("prefix", "a:B", help="")
            register("last", "a:B", help="")
    """
    install("aaa", {"aaa": source})  # sorts before the built-in ones in every alphabet
    manager = PluginManager()
    registry = manager.methods["register_peft_methods"]
    assert registry.entry("prefix").plugin.distribution == "panda-fusion"
    assert {"first", "last"} <= set(registry.names())
    (error,) = broken(manager, "aaa")
    assert "'aaa' of aaa 1.0" in error
    assert "'prefix' of panda-fusion" in error


def test_of_two_third_parties_the_first_distribution_keeps_the_name(install):
    install("dist-b", {"same": GOOD})
    install("dist-a", {"same": GOOD})
    manager = PluginManager()
    assert similarities(manager).entry("mine").plugin.distribution == "dist-a"
    (error,) = broken(manager, "dist-b")
    assert "dist-a" in error
    assert not broken(manager, "dist-a")


def test_tasks_are_registered_and_collide_likewise():
    class Plugin:
        @hookimpl
        def register_tasks(self, register):
            for name in ("one", "one", "two"):
                register(Task(name=name, kind="regression", inputs=("text",)))

    with temporary_plugin(Plugin(), "tester") as manager:
        assert {"one", "two"} <= set(plugin_manager.tasks().names())
        (error,) = [item.error for item in manager.broken if item.plugin.name == "tester"]
        assert "the task 'one'" in error
    assert "one" not in plugin_manager.tasks().names()


@pytest.mark.parametrize("listed", [["my-plugin"], ["my-dist"], ["My_Dist"]])
def test_only_the_listed_plugins_are_loaded(install, listed):
    install("my-dist", {"my-plugin": GOOD})
    manager = PluginManager(only=listed)
    assert [info.name for info in manager.plugins] == ["my-plugin"]
    assert similarities(manager).names() == ["mine"]
    assert not manager.methods["register_peft_methods"].names()


def test_the_variable_restricts_and_empty_means_none(install, monkeypatch):
    install("my-dist", {"my-plugin": GOOD})
    for value, expected in ((" my-plugin , mse", {"my-plugin", "mse"}), ("", set())):
        monkeypatch.setenv("PANDA_FUSION_PLUGINS", value)
        monkeypatch.setattr(plugin_manager, "_loaded", None)
        assert {info.name for info in plugin_manager.load_plugins().plugins} == expected


def test_a_listed_name_that_is_not_installed_is_an_error(install):
    install("my-dist", {"my-plugin": GOOD})
    with pytest.raises(PluginError, match=r"'my-plugn' \(nearest: my-plugin\)"):
        PluginManager(only=["my-plugn"])


def test_trace_prints_each_call_with_its_plugins(install, capsys):
    install("my-dist", {"my-plugin": GOOD})
    manager = PluginManager(only=["my-plugin"], trace=True)
    assert "register_similarities(register) -> my-plugin" in capsys.readouterr().err
    manager.hook.evaluated(step=1, epoch=0.5, scores={})
    assert "evaluated(step, epoch, scores) -> no plugin" in capsys.readouterr().err


def test_trace_shows_results_and_errors(capsys):
    class Stopper:
        @hookimpl
        def evaluated(self, step):
            if step == 2:
                raise RuntimeError("boom")
            return True

    manager = PluginManager(only=[], trace=True, extra=[(plugin_manager.PluginInfo("stopper"), Stopper())])
    assert manager.hook.evaluated(step=1, epoch=0.5, scores={}) == [True]
    with pytest.raises(RuntimeError):
        manager.hook.evaluated(step=2, epoch=0.5, scores={})
    err = capsys.readouterr().err
    assert "evaluated returned [True]" in err
    assert "evaluated raised RuntimeError: boom" in err


def test_temporary_plugins_nest_and_go_away():
    class Half(Similarity):
        needs_target = False

        def score(self, source, target, context):
            return 0.5

    class Plugin:
        def __init__(self, name):
            self.name = name

        @hookimpl
        def register_similarities(self, register):
            register(self.name, Half, help="half")

    before = plugin_manager.load_plugins()
    with temporary_plugin(Plugin("outer")), temporary_plugin(Plugin("inner"), "second"):
        assert {"outer", "inner"} <= set(plugin_manager.similarities().names())
        assert plugin_manager.similarities().create("inner").score(None, None, None) == 0.5
    assert plugin_manager.load_plugins() is before
    assert not {"outer", "inner"} & set(plugin_manager.similarities().names())


def test_lifecycle_hooks_reach_plugins():
    class Recorder:
        def __init__(self):
            self.seen = []

        @hookimpl
        def step_ended(self, step, steps):
            self.seen.append((step, steps))

    recorder = Recorder()
    with temporary_plugin(recorder):
        plugin_manager.hooks().step_ended(step=3, steps=10, losses=None)
    assert recorder.seen == [(3, 10)]


def test_loading_all_plugins_imports_neither_torch_nor_transformers():
    script = (
        "import sys; from panda_fusion import testing; from panda_fusion.plugin_manager import load_plugins; "
        "load_plugins(); heavy = {'torch', 'transformers', 'datasets', 'numpy', 'scipy', 'sklearn'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
