"""The recipe of a matrix: a TOML file, typed and checked."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from panda_fusion.errors import RecipeError
from panda_fusion.matrix_record import System
from panda_fusion.nearest import nearest_names
from panda_fusion.printable import printable

Positive = Annotated[int, Meta(ge=1)]
Rate = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, lt=1)]


class TaskSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How prompts are trained; None: not said here. Every setting may be said for all tasks, for one, for source
    prompts and for model tuning.

    Attributes:
        lr: peak learning rate, or several to sweep.
        epochs: passes over the training set.
        max_steps: most steps, whatever the epochs.
        batch_size: rows per step.
        samples: training rows, drawn once with seed 0; several to sweep.
        max_length: tokens kept of a text.
        dropout: probability in the head.
        backbone_dropout: probability in the backbone.
        eval_every: steps between evaluations; None: an epoch.
    """

    lr: Rate | tuple[Rate, ...] | None = None
    epochs: Positive | None = None
    max_steps: Positive | None = None
    batch_size: Positive | None = None
    samples: Positive | tuple[Positive, ...] | None = None
    max_length: Positive | None = None
    dropout: Share | None = None
    backbone_dropout: Share | None = None
    eval_every: Positive | None = None


class OutputSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is kept beside the records.

    Attributes:
        prompts: keep the prompt file of every cell (those that other cells are made of are kept anyway).
    """

    prompts: bool = False


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A matrix: every combination of what applies to a system is a cell.

    Attributes:
        description: what it is for, in a sentence.
        model: the backbone.
        data: folder with the tasks' rows, relative to the recipe; None: the Hub.
        preset: `paper`: learning rate, epochs and batch size of each task from the paper, where nothing else is said.
        sources: source tasks, or prompt files (a name that ends in .safetensors).
        source_sets: sets of sources that are fused (fusions other than `single`).
        targets: target tasks.
        systems: what is compared.
        methods: PEFT methods.
        teachers, fusions, kds, lambdas: of the system `panda`; `single` distils every source by itself.
        similarities: whose value enters the loss or the fusion.
        transferability: similarities that the system `similarity` computes for every source and target.
        seeds: of the prompts on the targets.
        source_seed_offset: added to a seed for the source prompts; two prompts of one seed have one random start, which
            makes them look alike.
        select_on: which split chooses the best step.
        training: settings of all prompts.
        source: settings of source prompts, before those of `training`.
        full: settings of model tuning, before those of `training`.
        tasks: settings by task name, before all others.
        output: what is kept.
    """

    description: str = ""
    model: str | None = None
    data: str | None = None
    preset: Literal["paper"] | None = None
    sources: tuple[str, ...] = ()
    source_sets: tuple[tuple[str, ...], ...] = ()
    targets: tuple[str, ...]
    systems: tuple[System, ...] = ("scratch", "vanilla", "panda")
    methods: tuple[str, ...] = ("prefix:length=20",)
    teachers: tuple[str, ...] = ("target-like",)
    fusions: tuple[str, ...] = ("single",)
    kds: tuple[str, ...] = ("mse",)
    lambdas: tuple[Annotated[float, Meta(ge=0)], ...] = (0.05,)
    similarities: tuple[str, ...] = ("panda",)
    transferability: tuple[str, ...] = ("panda", "eavg", "on")
    seeds: tuple[Annotated[int, Meta(ge=0, lt=2**31)], ...] = (0,)
    source_seed_offset: Annotated[int, Meta(ge=0, lt=2**31)] = 1000
    select_on: Literal["validation", "train-split"] = "validation"
    training: TaskSettings = TaskSettings()
    source: TaskSettings = TaskSettings()
    full: TaskSettings = TaskSettings()
    tasks: dict[str, TaskSettings] = {}
    output: OutputSettings = OutputSettings()


def read_recipe(path: Path, model: str | None = None, data: Path | None = None) -> Recipe:
    """Read a recipe; `model` and `data` stand in for what it says of them.

    Raises:
        RecipeError: the file cannot be read, or is no recipe; the message names the file and the key.
    """
    where = printable(str(path))
    try:
        document = tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise RecipeError(f"Cannot read recipe {where}: {(error.strerror or str(error)).lower()}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"Recipe {where} is not UTF-8 (byte {error.start + 1}); save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"Recipe {where} is not TOML: {printable(str(error), 200)}; correct it.") from error
    _check_keys(where, document)
    for name, value in document.items():
        if name in _AXES and not isinstance(value, list):
            document[name] = [value]
    try:
        recipe = msgspec.convert(document, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"Recipe {where}: {printable(str(error), 200)}; correct it (docs/matrix.md).") from error
    for name in _AXES:
        if name in document and not document[name]:
            raise RecipeError(f"Recipe {where}: `{name}` is an empty list; give at least one value or leave it out.")
    if () in recipe.source_sets:
        raise RecipeError(
            f"Recipe {where}: `source_sets` holds an empty set; name the sources to fuse, or leave it out."
        )
    for place, settings in _settings(recipe):
        for name in ("lr", "samples"):
            if getattr(settings, name) == ():
                raise RecipeError(f"Recipe {where}: `{place}.{name}` is an empty list; give at least one value.")
    folder = recipe.data if data is None else str(data)
    if data is None and recipe.data is not None:
        folder = str(path.parent / recipe.data)
    chosen = recipe.model if model is None else model
    if chosen is None:
        raise RecipeError(f"Recipe {where} names no `model`; add one, or pass --model.")
    return msgspec.structs.replace(recipe, model=chosen, data=folder)


def settings_of(recipe: Recipe, task: str, role: Literal["source", "target", "full"]) -> dict[str, Any]:
    """Everything that is said of training on a task, the nearest first: the task, the role, all prompts, the preset."""
    layers = [recipe.tasks.get(task, TaskSettings())]
    if role != "target":
        layers.append(recipe.source if role == "source" else recipe.full)
    layers.append(recipe.training)
    found: dict[str, Any] = {}
    for layer in layers:
        for name in TaskSettings.__struct_fields__:
            value = getattr(layer, name)
            if value is not None:
                found.setdefault(name, value)
    if recipe.preset == "paper":
        from panda_fusion.paper_presets import preset

        chosen = preset(task)
        for name, value in (
            ("lr", chosen.learning_rate),
            ("epochs", chosen.epochs),
            ("batch_size", chosen.batch_size),
        ):
            # Table I is about prompts, whose rates are a hundred times what a whole model bears.
            if (role, name) != ("full", "lr"):
                found.setdefault(name, value)
    return found


_AXES = (
    "sources",
    "source_sets",
    "targets",
    "systems",
    "methods",
    "teachers",
    "fusions",
    "kds",
    "lambdas",
    "similarities",
    "transferability",
    "seeds",
)


def _settings(recipe: Recipe) -> list[tuple[str, TaskSettings]]:
    named = [("training", recipe.training), ("source", recipe.source), ("full", recipe.full)]
    return [*named, *((f"tasks.{name}", settings) for name, settings in recipe.tasks.items())]


def _check_keys(where: str, document: dict[str, Any]) -> None:
    """Raise RecipeError for a key that no recipe has, with the nearest ones."""
    tables: list[tuple[str, Any, type[msgspec.Struct]]] = [
        ("", document, Recipe),
        ("output.", document.get("output"), OutputSettings),
        *((f"{name}.", document.get(name), TaskSettings) for name in ("training", "source", "full")),
    ]
    tasks = document.get("tasks")
    if isinstance(tasks, dict):
        tables += [(f"tasks.{name}.", value, TaskSettings) for name, value in tasks.items()]
    for prefix, table, struct in tables:
        if not isinstance(table, dict):
            continue
        known = struct.__struct_fields__
        for key in table:
            if key not in known:
                near = nearest_names(key, known, 2)
                hint = f"; nearest: {', '.join(near)}" if near else f"; known: {', '.join(known)}"
                raise RecipeError(f"Recipe {where} has an unknown key {printable(prefix + key, 80)!r}{hint}.")
