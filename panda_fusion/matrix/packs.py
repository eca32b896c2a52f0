"""Packs: cells that are trained side by side in one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from panda_fusion.matrix.cells import Cell, digest
from panda_fusion.plugin_manager import peft_methods

LARGEST = 64
"""Prompts in a pack, whatever the memory."""


@dataclass(frozen=True)
class Pack:
    """Cells that share backbone, target, PEFT method, training set and schedule; seeds, learning rates, sources,
    lambdas, KD losses and teachers may differ.

    Attributes:
        cells: the cells.
        id: digest of the cells' identifiers.
    """

    cells: tuple[Cell, ...]
    id: str

    @property
    def needs(self) -> set[str]:
        """Cells that must be done before."""
        return {need for cell in self.cells for need in cell.needs}


def make_packs(cells: Iterable[Cell], size: int) -> list[Pack]:
    """Cut cells into packs of at most `size`; the same cells always give the same packs.

    Args:
        cells: in the order in which they should be done; what others need comes first.
        size: most prompts in a pack.
    """
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_shared(cell), []).append(cell)
    packs = []
    for members in groups.values():
        packable = peft_methods().create(members[0].method).packable
        each = size if packable else 1
        packs += [_pack(members[first : first + each]) for first in range(0, len(members), each)]
    return packs


def _pack(cells: Sequence[Cell]) -> Pack:
    return Pack(tuple(cells), digest([cell.id for cell in cells]))


def _shared(cell: Cell) -> tuple[object, ...]:
    """What all cells of a pack have in common."""
    return (
        cell.trains,
        bool(cell.needs),
        cell.model,
        cell.target,
        cell.method,
        cell.epochs,
        cell.max_steps,
        cell.batch_size,
        cell.samples,
        cell.max_length,
        cell.dropout,
        cell.backbone_dropout,
        cell.eval_every,
        cell.select_on,
    )
