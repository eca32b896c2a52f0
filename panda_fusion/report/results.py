"""The records of a matrix, ready to be tabulated."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from panda_fusion.errors import RecipeError
from panda_fusion.matrix.records import FILE, read_records
from panda_fusion.matrix_record import CellRecord
from panda_fusion.printable import printable


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

    @property
    def targets(self) -> list[str]:
        """Target tasks: those that something other than a prompt from scratch was trained on, if there are any."""
        others = [record.target for record in self.done if record.system != "scratch"]
        return _by_type(self, others or [record.target for record in self.done], "target")

    @property
    def sources(self) -> list[str]:
        """Sources of single-source transfers and comparisons."""
        return _by_type(self, [r.sources[0] for r in self.done if len(r.sources) == 1], "source")


def load_results(folder: Path) -> Results:
    """Read a results folder, finished or not.

    Raises:
        RecipeError: it holds no records.
        OutputError: they cannot be read.
    """
    records = read_records(folder)
    if not records.done and not records.failed:
        raise RecipeError(
            f"Folder {printable(str(folder))} holds no records ({FILE}); name the --out folder of `panda-fusion "
            "matrix`."
        )
    return Results(
        done=tuple(sorted(records.done.values(), key=_order)),
        failed=tuple(sorted(records.failed.values(), key=_order)),
        damaged=records.damaged,
    )


def short(spec: str | None, all_specs: list[str | None] | None = None) -> str:
    """A method string without its options, where no other one of the same name is around."""
    if not spec:
        return ""
    name = spec.partition(":")[0]
    others = {other for other in all_specs or [] if other and other.partition(":")[0] == name}
    return spec if len(others) > 1 else name


def _order(record: CellRecord) -> tuple[str, ...]:
    return (record.target, record.system, *record.sources, str(record.seed), record.cell)


def _by_type(results: Results, names: list[str], side: str) -> list[str]:
    """Different names, ordered by task type."""
    types: dict[str, str] = {}
    for record in results.done:
        types[record.target] = record.target_type
        types.update(zip(record.sources, record.source_types, strict=False))
    return sorted(Counter(names), key=lambda name: (types.get(name, ""), name))
