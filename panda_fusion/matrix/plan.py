"""The plan of a matrix: its cells and packs, checked as a whole before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from panda_fusion import plugin_manager as plugins
from panda_fusion import prompt_file
from panda_fusion.errors import PandaFusionError, RecipeError
from panda_fusion.matrix.cells import PROMPT_SUFFIX, Cell, expand
from panda_fusion.matrix.packs import Pack, make_packs
from panda_fusion.matrix.recipe import Recipe
from panda_fusion.model_name import check_model_name
from panda_fusion.rows import load_task_data
from panda_fusion.task_source import resolve_task

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.prompt import Prompt
    from panda_fusion.task import Task

SHOWN = 20
"""Problems that a message lists."""


@dataclass(frozen=True)
class Plan:
    """Everything that a recipe asks for.

    Attributes:
        recipe: the recipe.
        cells: all cells, those that others need first.
        rows: training rows of every task, before any limit of the recipe.
        tasks: the tasks by name.
    """

    recipe: Recipe
    cells: tuple[Cell, ...]
    rows: dict[str, int]
    tasks: dict[str, Task]

    def packs(self, size: int) -> list[Pack]:
        """The packs, in the order in which they should be done."""
        return make_packs(self.cells, size)

    def training_rows(self, cell: Cell) -> int:
        """Rows that pass forward and backward for a cell's own training."""
        if not cell.trains:
            return 0
        rows = self._rows(cell)
        if cell.max_steps is None:
            return cell.epochs * rows
        return min(cell.epochs * rows, cell.max_steps * cell.batch_size)

    def teacher_passes(self) -> int:
        """Forward passes of teachers over a training set; cells that differ in lambda alone share theirs."""
        return sum(passes for _, passes in self._teachers())

    def teacher_rows(self) -> int:
        """Rows of those passes."""
        return sum(passes * self._rows(cell) for cell, passes in self._teachers())

    def _rows(self, cell: Cell) -> int:
        """Training rows of a cell's target."""
        return min(self.rows[cell.target], cell.samples or self.rows[cell.target])

    def _teachers(self) -> list[tuple[Cell, int]]:
        """Passes of teachers, with one of the cells that they are for."""
        passes = {}
        for cell in self.cells:
            if cell.system == "panda":
                early = plugins.fusions().create(cell.fusion or "single").name == "early"
                key = msgspec.json.encode(msgspec.structs.replace(cell, lambda_=None, asked=True), order="sorted")
                passes[key] = cell, 1 if early else len(cell.sources)
        return list(passes.values())


def make_plan(recipe: Recipe) -> Plan:
    """Expand and check a recipe, data included.

    Raises:
        RecipeError: everything that is wrong with it, at once.
    """
    problems: list[str] = []

    def note(error: Exception) -> None:
        text = str(error).rstrip(".")
        if text not in problems:
            problems.append(text)

    for make, specs in (
        (plugins.peft_methods().create, recipe.methods),
        (plugins.teachers().create, recipe.teachers),
        (plugins.fusions().create, recipe.fusions),
        (plugins.kd_losses().create, recipe.kds),
        (plugins.similarities().create, (*recipe.similarities, *recipe.transferability)),
    ):
        for spec in specs:
            try:
                make(spec)
            except PandaFusionError as error:
                note(error)
    try:
        check_model_name(recipe.model or "")
    except PandaFusionError as error:
        note(error)
    _check_axes(recipe, problems)
    data = None if recipe.data is None else Path(recipe.data)
    rows: dict[str, int] = {}
    tasks: dict[str, Task] = {}
    names = [name for name in _sources(recipe) if not name.endswith(PROMPT_SUFFIX)]
    for name in dict.fromkeys((*names, *recipe.targets)):
        try:
            loaded = load_task_data(resolve_task(name, data), data)
        except PandaFusionError as error:
            note(error)
            continue
        rows[name], tasks[name] = len(loaded.train), loaded.task
    for name in _sources(recipe):
        if not name.endswith(PROMPT_SUFFIX):
            continue
        if not Path(name).is_file():
            problems.append(f"Source {name!r} is no file; name a prompt file or a task")
            continue
        try:
            prompt_file.load_prompt(name)
        except PandaFusionError as error:
            note(error)
    if problems:
        raise _all_at_once(problems)
    cells = expand(recipe)
    for cell in cells:
        if cell.system == "panda":
            try:
                plugins.fusions().create(cell.fusion or "single").check_sources(len(cell.sources))
                plugins.kd_losses().create(cell.kd or "mse").check_kind(tasks[cell.target].kind)
            except PandaFusionError as error:
                note(type(error)(f"Target {cell.target!r}: {error}"))
    if problems:
        raise _all_at_once(problems)
    return Plan(recipe, tuple(cells), rows, tasks)


def check_backbone(plan: Plan, backbone: Backbone) -> None:
    """Check that the backbone takes every cell: task kinds, PEFT methods, lengths, prompt files.

    Raises:
        RecipeError: everything that it does not take, at once.
    """
    import torch

    problems: dict[str, None] = {}

    def note(about: str, check: Callable[[], object]) -> None:
        try:
            check()
        except PandaFusionError as error:
            problems[f"{about}: {str(error).rstrip('.')}"] = None

    for name in dict.fromkeys(cell.target for cell in plan.cells):
        task = plan.tasks[name]
        note(f"Target {name!r}", partial(backbone.head, task.outputs, task.kind))
    for spec in dict.fromkeys(cell.method for cell in plan.cells):
        method = plugins.peft_methods().create(spec)
        if method.packable:  # one that is not changes the backbone's own weights, which are there
            note(f"PEFT method {spec}", partial(method.create, backbone, torch.Generator()))
        for name, length in dict.fromkeys((c.target, c.max_length) for c in plan.cells if c.method == spec):
            note(f"Target {name!r} with {spec}", partial(backbone.check_length, method.virtual_tokens(), length))
    for name in dict.fromkeys(name for cell in plan.cells for name in cell.files):
        prompt = prompt_file.load_prompt(name)
        methods = {c.method for c in plan.cells if c.system == "vanilla" and c.sources == (name,)}
        note(f"Source {name!r}", partial(_check_prompt, prompt, backbone, sorted(methods)))
    if problems:
        raise _all_at_once(list(problems))


def _check_prompt(prompt: Prompt, backbone: Backbone, methods: list[str]) -> None:
    """Check that a prompt file is of the backbone, and that training with these PEFT methods can start from it."""
    from panda_fusion.sources import start_from

    prompt_file.check_backbone(prompt, backbone.info, backbone.name)
    prompt_file.check_stored(prompt, backbone)
    for spec in methods:
        start_from(prompt, plugins.peft_methods().create(spec), backbone.shape)


def _sources(recipe: Recipe) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*recipe.sources, *(name for some in recipe.source_sets for name in some))))


def _check_axes(recipe: Recipe, problems: list[str]) -> None:
    """Add what axes lack for the systems that are asked for."""
    single = [spec for spec in recipe.fusions if spec.partition(":")[0] == "single"]
    fused = [spec for spec in recipe.fusions if spec not in single]
    needing = [name for name in recipe.systems if name in ("vanilla", "similarity")]
    if needing and not recipe.sources:
        problems.append(f"System {needing[0]!r} needs `sources`, and the recipe names none")
    if "panda" in recipe.systems:
        if single and not recipe.sources:
            problems.append("System 'panda' with fusion 'single' needs `sources`, and the recipe names none")
        if fused and not recipe.source_sets:
            problems.append(f"Fusion {fused[0]!r} needs `source_sets`, and the recipe names none")
    if "similarity" in recipe.systems and not recipe.transferability:
        problems.append("System 'similarity' needs `transferability`, and the recipe names none")
    known = {*recipe.targets, *_sources(recipe)}
    for name in recipe.tasks:
        if name not in known:
            problems.append(f"Table [tasks.{name}] is about a task that is neither source nor target")


def _all_at_once(problems: list[str]) -> RecipeError:
    shown = [f"({number}) {problem}" for number, problem in enumerate(problems[:SHOWN], 1)]
    if len(problems) > SHOWN:
        shown.append(f"and {len(problems) - SHOWN} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return RecipeError(f"The recipe has {count}, and nothing was run: {'; '.join(shown)}.")
