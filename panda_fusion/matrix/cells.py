"""From a recipe to its cells: every combination of what applies to a system, each once."""

from __future__ import annotations

import hashlib
from itertools import product
from pathlib import Path
from typing import Any, Literal

import msgspec

from panda_fusion import plugin_manager as plugins
from panda_fusion.matrix.recipe import Recipe, settings_of
from panda_fusion.matrix_record import System
from panda_fusion.prompt_file import file_sha256

PROMPT_SUFFIX = ".safetensors"
Role = Literal["source", "target", "full"]
"""Whose training settings a cell takes."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt to train on one target with one seed, or one comparison of a source with a target.

    The attributes are those of `panda_fusion.matrix_record.CellRecord`, and:

    Attributes:
        needs: identifiers of the cells whose prompts this one is made of: one per source that is no file, then the
            target's own prompt, where the similarity looks at it.
        files: sha256 of the sources that are prompt files, by source.
        metrics: similarities that a `similarity` cell computes.
        asked: whether the recipe asks for the cell, or other cells need it.
    """

    system: System
    model: str
    target: str
    sources: tuple[str, ...] = ()
    files: dict[str, str] = {}
    method: str
    teacher: str | None = None
    fusion: str | None = None
    kd: str | None = None
    lambda_: float | None = None
    similarity: str | None = None
    metrics: tuple[str, ...] = ()
    learning_rate: float
    epochs: int
    max_steps: int | None
    batch_size: int
    samples: int | None
    max_length: int
    dropout: float
    backbone_dropout: float
    eval_every: int | None
    select_on: Literal["validation", "train-split"]
    seed: int
    needs: tuple[str, ...] = ()
    asked: bool = True

    @property
    def id(self) -> str:
        """16 hexadecimal digits: a digest of everything that decides the result."""
        values = msgspec.to_builtins(self)
        del values["asked"]
        values["model"] = Path(self.model).name
        return digest(values)

    @property
    def trains(self) -> bool:
        """Whether a prompt is trained."""
        return self.system != "similarity"


def digest(values: Any) -> str:
    """16 hexadecimal digits of a value that JSON can hold."""
    return hashlib.sha256(msgspec.json.encode(values, order="sorted")).hexdigest()[:16]


def expand(recipe: Recipe) -> list[Cell]:
    """All cells of a recipe: source prompts, prompts of the targets, then what is made of them.

    Axes that do not apply to a system are left out (a prompt from scratch has no lambda), so no cell comes twice.

    Raises:
        PandaFusionError: a method of the recipe does not exist or has wrong options.
    """
    return list(_Expansion(recipe).cells().values())


class _Expansion:
    """The cells made so far, by identifier."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.methods = [plugins.peft_methods().create(spec) for spec in recipe.methods]
        self.made: dict[str, Cell] = {}
        self.full: dict[str, Cell] = {}
        self.later: dict[str, Cell] = {}

    def cells(self) -> dict[str, Cell]:
        """Source prompts, prompts of the targets, model tuning, transfers and comparisons, in this order."""
        recipe = self.recipe
        transfers: list[tuple[System, str, tuple[str, ...], str, str]] = []
        for target in recipe.targets:
            for system in recipe.systems:
                if system == "scratch":
                    for method, seed in product(self.methods, recipe.seeds):
                        for rate, samples in self._sweep(target, "target"):
                            self._scratch(target, method, seed, rate, samples)
                elif system == "full":
                    self._full(target)
                elif system in ("vanilla", "similarity"):
                    for source in recipe.sources:
                        transfers.append((system, target, (source,), "", ""))
                else:
                    for teacher, fusion in product(recipe.teachers, recipe.fusions):
                        single = plugins.fusions().create(fusion).name == "single"
                        sets = tuple((source,) for source in recipe.sources) if single else recipe.source_sets
                        transfers += [(system, target, sources, teacher, fusion) for sources in sets]
        for transfer in transfers:
            self._transfer(*transfer)
        sources = {id: cell for id, cell in self.made.items() if not cell.asked}
        return {**sources, **self.made, **self.full, **self.later}

    def _common(self, task: str, role: Role) -> dict[str, Any]:
        said = settings_of(self.recipe, task, role)
        assert self.recipe.model is not None
        return {
            "model": self.recipe.model,
            "epochs": said.get("epochs", 10),
            "max_steps": said.get("max_steps"),
            "batch_size": said.get("batch_size", 32),
            "max_length": said.get("max_length", 128),
            "dropout": said.get("dropout", 0.1),
            "backbone_dropout": said.get("backbone_dropout", 0.0),
            "eval_every": said.get("eval_every"),
            "select_on": self.recipe.select_on,
        }

    def _sweep(self, task: str, role: Role) -> list[tuple[float | None, int | None]]:
        """Learning rates (None: the method's own) times numbers of training rows (None: all)."""
        said = settings_of(self.recipe, task, role)
        return list(product(_values(said.get("lr")), _values(said.get("samples"))))

    def _scratch(
        self, task: str, method: Any, seed: int, rate: float | None, samples: int | None, asked: bool = True
    ) -> str:
        """Plan a prompt from scratch on a target; its identifier."""
        return self._keep(self._alone("scratch", "target", task, method, seed, rate, samples, asked))

    def _source(self, task: str, method: Any, seed: int) -> str:
        """Plan a source prompt; its identifier. Sweeps are of the targets: a source takes the first value."""
        rate, samples = self._sweep(task, "source")[0]
        seed += self.recipe.source_seed_offset
        return self._keep(self._alone("scratch", "source", task, method, seed, rate, samples, asked=False))

    def _alone(
        self,
        system: System,
        role: Role,
        task: str,
        method: Any,
        seed: int,
        rate: float | None,
        samples: int | None,
        asked: bool = True,
    ) -> Cell:
        """A cell that needs no other; a rate of None is the method's own."""
        return Cell(
            system=system,
            target=task,
            method=method.spec,
            learning_rate=method.learning_rate if rate is None else rate,
            samples=samples,
            seed=seed,
            asked=asked,
            **self._common(task, role),
        )

    def _keep(self, cell: Cell) -> str:
        known = self.made.get(cell.id)
        if known is None or (cell.asked and not known.asked):
            self.made[cell.id] = cell
        return cell.id

    def _full(self, target: str) -> None:
        method = plugins.peft_methods().create("full")
        for (rate, samples), seed in product(self._sweep(target, "full"), self.recipe.seeds):
            cell = self._alone("full", "full", target, method, seed, rate, samples)
            self.full[cell.id] = cell

    def _transfer(self, system: System, target: str, sources: tuple[str, ...], teacher: str, fusion: str) -> None:
        recipe = self.recipe
        files = {name: file_sha256(name) for name in sources if name.endswith(PROMPT_SUFFIX)}
        sweep = self._sweep(target, "target")
        first_rate = sweep[0][0]
        for method, seed, (rate, samples) in product(self.methods, recipe.seeds, sweep):
            needs = tuple(self._source(name, method, seed) for name in sources if name not in files)
            common: dict[str, Any] = {
                "system": system,
                "target": target,
                "sources": sources,
                "files": files,
                "method": method.spec,
                "learning_rate": method.learning_rate if rate is None else rate,
                "samples": samples,
                "seed": seed,
                **self._common(target, "target"),
            }

            def own(
                method: Any = method, seed: int = seed, samples: int | None = samples
            ) -> str:  # the target's own prompt
                return self._scratch(target, method, seed, first_rate, samples, asked=False)

            if system == "vanilla":
                self._add(Cell(**common, needs=needs))
            elif system == "similarity":
                if rate == first_rate and recipe.transferability:
                    metrics = tuple(plugins.similarities().create(spec).spec for spec in recipe.transferability)
                    self._add(Cell(**common, needs=(*needs, own()), metrics=metrics))
            else:
                for kd, weight, similarity in product(recipe.kds, recipe.lambdas, recipe.similarities):
                    metric = plugins.similarities().create(similarity)
                    self._add(
                        Cell(
                            **common,
                            teacher=plugins.teachers().create(teacher).spec,
                            fusion=plugins.fusions().create(fusion).spec,
                            kd=plugins.kd_losses().create(kd).spec,
                            lambda_=weight,
                            similarity=metric.spec,
                            needs=(*needs, own()) if metric.needs_target else needs,
                        )
                    )

    def _add(self, cell: Cell) -> None:
        self.later[cell.id] = cell


def _values(said: Any) -> tuple[Any, ...]:
    return said if isinstance(said, tuple) else (said,)
