"""The documentation tells the truth: links lead somewhere, commands parse, marked ones run as printed."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click
import pytest

import panda_fusion
from panda_fusion import plugin_manager as plugins
from panda_fusion_cli.main import main

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "examples").glob("*/README.md"),
    ]
)
SHELL = {"console", "sh", "shell", "bash"}
REPOSITORY_FOLDERS = ("tests/", "benchmarks/", "scripts/", "examples/", "docs/")


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        page: the file.
        line: number of the fence's line.
        language: what stands behind the fence.
        marker: the HTML comment on the line before, without its arrows; empty without one.
        text: the content.
    """

    page: Path
    line: int
    language: str
    marker: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> Iterator[tuple[list[str], str]]:
        """(words, printed output) of every command; in `console` blocks those behind a `$`."""
        text = self.text.replace("\\\n", " ")
        if self.language == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                yield shlex.split(command, comments=True), output
        else:
            for line in text.splitlines():
                yield shlex.split(line, comments=True), ""


def blocks(page: Path) -> list[Block]:
    found = []
    pattern = r"^(?:<!-- (?P<marker>[^\n]*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$"
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(pattern, text, flags=re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start("language")) + 1
        found.append(Block(page, line, match["language"], match["marker"] or "", match["text"]))
    return found


def prose(page: Path) -> str:
    """The page without code blocks, inline code and HTML comments."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def links(page: Path) -> list[str]:
    """Targets of all links and images that stay inside the repository."""
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", prose(page))
    targets += re.findall(r"(?:src|href)=\"([^\"]+)\"", prose(page))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *#*$", text, flags=re.MULTILINE):
        plain = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", lambda m: m[1] or "", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = 0
        while (name := slug if not number else f"{slug}-{number}") in found:
            number += 1
        found.add(name)
    return found | set(re.findall(r"<a id=\"([^\"]+)\"", text))


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, fragment = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} in {page_id(page)}: there is no such file"
        assert target.is_relative_to(ROOT), f"{link} in {page_id(page)} leads out of the repository"
        if fragment:
            assert fragment in anchors(target), f"{link} in {page_id(page)}: there is no such heading"


def test_links_are_found_and_checked_for_fragments(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` (c)\n\n## Same\n\n## Same\n\n[x](y.md#z) ![i](a.svg) `[no](no.md)` [w](https://e.org)\n"
        "<!-- [no](no.md) -->\n```\n# no\n[no](no.md)\n```\n"
    )
    assert links(page) == ["y.md#z", "a.svg"]
    assert anchors(page) == {"a-b-c", "same", "same-1"}


def test_every_page_is_reachable() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md", ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        waiting += [(page.parent / unquote(link).partition("#")[0]).resolve() for link in links(page)]
    missing = [page_id(page) for page in PAGES if page.resolve() not in {one.resolve() for one in reached}]
    assert not missing, f"link these pages from docs/index.md: {missing}"


def commands(program: str) -> list[Any]:
    """Test parameters (block, words) of all commands of a program in all pages."""
    return [
        pytest.param(block, words, id=f"{block}-{' '.join(words[1:3])}")
        for page in PAGES
        for block in blocks(page)
        if block.language in SHELL
        for words, _ in block.commands()
        if words and words[0] == program
    ]


def names_of_the_example() -> set[str]:
    """Methods of the example distribution, which need not be installed."""
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "examples").rglob("*.py"))
    return set(re.findall(r"register\(\s*\"([a-z0-9_-]+)\"", source))


def check_method(registry: Any, text: str) -> None:
    from panda_fusion.method_string import parse_method

    name, _ = parse_method(text)
    if name in registry.names() or name not in names_of_the_example():
        registry.create(text)


def check_task(name: str) -> None:
    """A registered task; folders that the reader is to make are called my-something."""
    if not Path(name).name.startswith("my"):
        plugins.tasks().get(name)


@pytest.mark.parametrize(("block", "words"), commands("panda-fusion"))
def test_commands_parse(
    block: Block, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program itself parses them; only the bodies of the commands are left out."""
    parsed: list[click.Context] = []
    monkeypatch.setattr(click.Command, "invoke", lambda _, context: parsed.append(context))
    code = main(words[1:])
    assert code == 0, f"{block}: {capsys.readouterr().err}"
    if "--help" in words or "--version" in words:
        return
    registries = {
        "method": plugins.peft_methods(),
        "teacher": plugins.teachers(),
        "fusion": plugins.fusions(),
        "kd": plugins.kd_losses(),
        "similarity": plugins.similarities(),
    }
    values = {name: value for context in parsed for name, value in context.params.items()}
    for name, registry in registries.items():
        if values.get(name) is not None:
            check_method(registry, values[name])
    for name in ("task_name", "task"):
        if values.get(name) is not None:
            check_task(values[name])


def test_a_wrong_command_does_not_parse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(click.Command, "invoke", lambda _, context: None)
    assert main(["train", "--task", "tiny/nli", "--model", "tiny", "--out", "x", "--no-such-option"]) == 2
    assert main(["train", "--task", "tiny/nli", "--model", "tiny"]) == 2
    assert main(["no-such-command"]) == 2
    capsys.readouterr()
    with pytest.raises(panda_fusion.errors.OptionError):
        check_method(plugins.kd_losses(), "kl:no-such-option=1")
    with pytest.raises(panda_fusion.errors.UnknownNameError):
        check_task("tiny/no-such-task")


@pytest.mark.parametrize(("block", "words"), commands("make"))
def test_make_targets_exist(block: Block, words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in words[1:]:
        assert re.search(rf"^{re.escape(target)}:", makefile, flags=re.MULTILINE), f"{block}: make {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_in_commands_exist(page: Path) -> None:
    for block in blocks(page):
        if block.language in SHELL:
            for words, _ in block.commands():
                for word in words:
                    if word.startswith(REPOSITORY_FOLDERS):
                        assert (ROOT / word).exists(), f"{block}: {word}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_commands_exist(page: Path) -> None:
    """Inline code such as `panda-fusion prompt show` names commands that are there."""
    from panda_fusion_cli.main import make_cli

    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for words in re.findall(r"`panda-fusion\s+([a-z][^`]*)`", text):
        group: click.Command = make_cli()
        for word in words.split():
            if not isinstance(group, click.Group) or not re.fullmatch(r"[a-z|]+", word):
                break
            with click.Context(group) as context:
                known = {name: group.get_command(context, name) for name in word.split("|")}
            assert None not in known.values(), f"{page_id(page)}: `panda-fusion {words}`"
            group = next(command for command in known.values() if command is not None)


def shape(output: str) -> list[str]:
    """What must be equal between a printed output and a new one: all but numbers, device and spacing."""
    lines = []
    for line in output.strip().splitlines():
        plain = re.sub(r"\b(cpu|cuda), (bf16|fp32)\b", "DEVICE", line)
        plain = re.sub(r"(?<![\w.])-?\d+(\.\d+)?(e-?\d+)?|(?<==)-?\d+(\.\d+)?", "#", plain)
        lines.append(" ".join(re.sub("─+", "─", plain).split()))
    return [line for line in lines if line]


def test_shape_ignores_numbers_only() -> None:
    assert shape("a  0.91 (step 20)\n────\nb cpu, bf16\n") == shape("a -3 (step 7)\n──\nb cuda, fp32")
    assert shape("prefix:length=20") == shape("prefix:length=8") != shape("prompt:length=20")
    assert shape("best 1") != shape("last 1")


PAGES_TO_RUN = [page for page in PAGES if any(block.marker.startswith("run") for block in blocks(page))]


def test_the_readme_is_run() -> None:
    assert ROOT / "README.md" in PAGES_TO_RUN


@pytest.mark.parametrize("page", PAGES_TO_RUN, ids=page_id)
def test_marked_commands_run_as_printed(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks behind `<!-- run -->`, in order and in one folder; `<!-- file: NAME -->` writes a file."""
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.marker.startswith("file: "):
            (tmp_path / block.marker.removeprefix("file: ")).write_text(block.text, encoding="utf-8")
        if not block.marker.startswith("run"):
            continue
        for words, expected in block.commands():
            assert words[0] == "panda-fusion", f"{block}: only panda-fusion is run"
            code = main(words[1:])
            printed = capsys.readouterr()
            assert code == 0, f"{block}: {printed.err}"
            assert shape(printed.out) == shape(expected), f"{block}: {' '.join(words)} prints something else"


def test_predictions_in_the_readme_look_like_predictions() -> None:
    text = next(block.text for block in blocks(ROOT / "README.md") if '"probabilities"' in block.text)
    labels = plugins.tasks().get("tiny/contradiction").labels
    for line in text.splitlines():
        row = json.loads(line)
        assert row.keys() == {"label", "probabilities"}
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert row["label"] == labels[row["probabilities"].index(max(row["probabilities"]))]


def test_changelog_has_the_current_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    headings = re.findall(r"^## \[(.+?)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    version, date = headings[0]
    assert version == panda_fusion.__version__ == project["version"]
    assert re.fullmatch(r"Unreleased|\d{4}-\d\d-\d\d", date)


def test_readme_lists_the_built_in_methods() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## Built-in methods", 1)[1].split("\n## ", 1)[0]
    listed = set(re.findall(r"^\| ([\w ]+) \| `([\w-]+)` \|", section, flags=re.MULTILINE))
    built_in = {
        (registry.kind, entry.name)
        for registry in plugins.registries()
        for entry in registry.entries()
        if entry.plugin.distribution == "panda-fusion"
    }
    assert listed == built_in


def test_contributing_lists_every_module_of_the_engine() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("The engine, file by file:", 1)[1].split("A new module", 1)[0]
    listed = re.findall(r"`(\w+\.py)`", section)
    modules = {path.name for path in (ROOT / "panda_fusion").glob("*.py")} - {"__init__.py"}
    assert set(listed) == modules
    assert len(listed) == len(set(listed)), "a module is listed twice"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/method.md", "docs/concepts.md"])
def test_source_files_that_are_named_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for path in re.findall(r"`((?:panda_fusion|plugins|cli|examples|benchmarks|scripts|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def test_defaults_in_the_method_page() -> None:
    """Numbers that docs/method.md gives are those of the code."""
    from panda_fusion import head_fit, ranking
    from panda_fusion.optimizer import PackedAdamW
    from panda_fusion.run import RunSettings
    from panda_fusion.task_embedding import SAMPLES
    from panda_fusion.trainer import TrainSettings
    from panda_fusion_cli.commands.transfer import command as transfer
    from panda_fusion_plugins.target_like import LARGE_TASK, TargetLikeOptions

    text = " ".join((ROOT / "docs" / "method.md").read_text(encoding="utf-8").split())

    def numbers(pattern: str) -> list[float]:
        match = re.search(pattern, text)
        assert match is not None, pattern
        return [float(number.replace(",", "")) for number in match.groups()]

    number = r"([\d.e,-]*\d)"
    lambda_ = next(option for option in transfer.params if option.name == "lambda_")
    assert numbers(rf"`--lambda {number}` by default") == [lambda_.default]
    assert numbers(rf"- {number} samples of the task's own development set") == [SAMPLES]
    assert numbers(rf"a probe is trained for {number} steps") == [ranking.PROBE_STEPS]
    short = TargetLikeOptions()
    pattern = rf"`target-like` trains {number} epoch below {number} training examples, else {number} steps"
    assert numbers(pattern) == [short.epochs, LARGE_TASK, short.steps]
    pattern = (
        rf"then {number} epochs of AdamW at {number} in batches of {number}, at least {number} and at most {number}"
    )
    assert numbers(pattern) == [
        head_fit.EPOCHS,
        head_fit.LEARNING_RATE,
        head_fit.BATCH_SIZE,
        head_fit.MIN_STEPS,
        head_fit.MAX_STEPS,
    ]
    settings, training = RunSettings(TrainSettings()), TrainSettings()
    assert settings.learning_rate is None
    assert numbers(rf"\| learning rate \| {number} by default; {number} for `adapter`, {number} for `full`") == [
        plugins.peft_methods().load(name).learning_rate for name in ("prefix", "adapter", "full")
    ]
    assert numbers(rf"\| text length \| {number} by default") == [settings.max_length]
    assert numbers(rf"\| batch size \| {number} by default") == [training.batch_size]
    assert numbers(rf"\| epochs \| {number} by default") == [training.epochs]
    assert numbers(rf"\| dropout \| {number} in the head, none in the backbone") == [training.dropout]
    assert training.backbone_dropout == 0
    clip = inspect.signature(PackedAdamW).parameters["clip"].default
    assert numbers(rf"\| gradient clipping \| norm {number} for each prompt") == [clip]
    for name, what in (("early", plugins.fusions()), ("late", plugins.fusions())):
        assert what.create(name).options.normalize is False  # type: ignore[attr-defined]
    assert plugins.kd_losses().create("mse").spec == "mse:space=probs"
    assert numbers(rf"the temperature of that table; ours is {number} by default") == [
        plugins.kd_losses().create("kl").options.temperature  # type: ignore[attr-defined]
    ]
