"""docs/plugins.md documents every hook with its exact signature, and no hook that does not exist."""

import inspect
import re
from pathlib import Path

import pytest

from panda_fusion import hookspecs, plugin_manager, testing
from panda_fusion.plugin_manager import hook_names
from panda_fusion.testing.kinds import CHECKS

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### `(.+)`$", DOCS, re.MULTILINE)


def signature(hook: str) -> str:
    return hook + str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")


@pytest.mark.parametrize("hook", hook_names())
def test_hook_is_documented_with_its_signature(hook):
    assert signature(hook) in HEADINGS


def test_documented_hooks_exist_in_declared_order():
    assert [signature(hook) for hook in hook_names()] == HEADINGS


@pytest.mark.parametrize("hook", hook_names())
def test_hook_has_a_docstring_with_its_version(hook):
    documentation = inspect.getdoc(getattr(hookspecs, hook))
    assert documentation is not None
    assert "Version added: " in documentation
    for argument in inspect.signature(getattr(hookspecs, hook)).parameters:
        assert f"{argument}: " in documentation


def test_environment_variables_are_documented():
    from panda_fusion_cli import main

    for variable in (
        plugin_manager.PLUGINS_VARIABLE,
        plugin_manager.TRACE_VARIABLE,
        main.DEBUG_VARIABLE,
    ):
        assert f"`{variable}`" in DOCS


def test_every_kind_of_method_is_in_both_tables():
    kinds = [kind for kind, _ in plugin_manager.METHOD_HOOKS.values()]
    assert set(kinds) == set(CHECKS)
    for kind in kinds:
        assert len(re.findall(rf"^\| {kind} \|", DOCS, re.MULTILINE)) == 2


def test_quoted_code_is_the_examples():
    """Lines of the tutorial's code blocks that are not abridged stand so in the example distribution."""
    example = ROOT / "examples" / "panda-fusion-example"
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(example.rglob("*")) if path.suffix in {".py", ".toml"}
    )
    for line in (
        'temperature: Annotated[float, Meta(gt=0, le=1000, description="softens both distributions")] = 1.0',
        "class JensenShannon(KDLoss):",
        "return Injection(outputs=per_layer(shape.layer_modules, transforms))",
        "[project.entry-points.panda_fusion]",
        'example = "panda_fusion_example"',
        'checks_for("KD loss", JensenShannon)',
    ):
        assert line in DOCS
        assert line in source


def test_public_names_of_testing_exist():
    assert all(hasattr(testing, name) for name in testing.__all__)
