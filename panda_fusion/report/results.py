"""The records of a matrix, ready to be tabulated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from panda_fusion.errors import RecipeError
from panda_fusion.matrix.records import FILE, read_records
from panda_fusion.matrix_record import CellRecord
from panda_fusion.printable import printable

SHOWN = 20
"""Damaged lines whose numbers are said."""


@dataclass(frozen=True)
class Results:
    """What a results folder holds.

    Attributes:
        done: finished records that were asked for or are compared with, in a stable order.
        failed: failed cells.
        damaged: numbers of lines that are no records.
    """

    done: tuple[CellRecord, ...]
    failed: tuple[CellRecord, ...]
    damaged: tuple[int, ...]

    def of(self, *systems: str) -> list[CellRecord]:
        """Finished records of these systems."""
        return [record for record in self.done if record.system in systems]

    @cached_property
    def targets(self) -> list[str]:
        """Target tasks: those that something other than a prompt from scratch was trained on, if there are any."""
        others = [record.target for record in self.done if record.system != "scratch"]
        return self._by_type(others or [record.target for record in self.done])

    @cached_property
    def sources(self) -> list[str]:
        """Sources of single-source transfers and comparisons."""
        return self._by_type(record.sources[0] for record in self.done if len(record.sources) == 1)

    @cached_property
    def scratch(self) -> list[CellRecord]:
        """Prompts from scratch on the targets; those of source tasks have seeds that no other system has."""
        seeds = {record.seed for record in self.done if record.system != "scratch"}
        return [r for r in self.of("scratch") if r.target in self.targets and (not seeds or r.seed in seeds)]

    @cached_property
    def methods(self) -> list[str]:
        """PEFT methods of all but model tuning."""
        return sorted({record.method for record in self.done if record.system != "full"})

    @cached_property
    def metrics(self) -> list[str]:
        """Similarities that were computed for pairs of tasks."""
        return sorted({name for record in self.of("similarity") for name in record.transferability})

    @property
    def damage(self) -> str:
        """How many lines are no records, in a sentence; empty where there are none."""
        if not self.damaged:
            return ""
        count, some = len(self.damaged), ", ".join(map(str, self.damaged[:SHOWN]))
        lines = "1 damaged line" if count == 1 else f"{count} damaged lines"
        more = f" and {count - SHOWN} more" if count > SHOWN else ""
        return f"{lines} of {FILE} left out (line {some}{more})."

    def _by_type(self, names: Iterable[str]) -> list[str]:
        """Different names, ordered by task type."""
        types: dict[str, str] = {}
        for record in self.done:
            types[record.target] = record.target_type
            types.update(zip(record.sources, record.source_types, strict=False))
        return sorted(set(names), key=lambda name: (types.get(name, ""), name))


def load_results(folder: Path) -> Results:
    """Read a results folder, finished or not.

    Raises:
        RecipeError: it is not there, or holds no records.
        OutputError: they cannot be read.
    """
    shown = printable(str(folder))
    if not folder.exists():
        raise RecipeError(f"There is no folder {shown}; name the --out folder of `panda-fusion matrix`.")
    records = read_records(folder)
    if not records.done and not records.failed:
        found = f"all {len(records.damaged)} lines of its {FILE} are damaged" if records.damaged else f"no {FILE}"
        if not records.damaged and (folder / FILE).exists():
            found = f"its {FILE} is empty"
        raise RecipeError(
            f"Folder {shown} holds no records of a matrix ({found}); name the --out folder of `panda-fusion matrix`."
        )
    return Results(
        done=tuple(sorted(records.done.values(), key=_order)),
        failed=tuple(sorted(records.failed.values(), key=_order)),
        damaged=records.damaged,
    )


def short(spec: str | None, all_specs: Iterable[str | None] = ()) -> str:
    """A method string without its options, where no other one of the same name is around."""
    if not spec:
        return ""
    name = spec.partition(":")[0]
    return spec if any(other and other != spec and other.partition(":")[0] == name for other in all_specs) else name


def _order(record: CellRecord) -> tuple[object, ...]:
    return (record.target, record.system, record.sources, record.seed, record.cell)
