"""Working through a plan: claim a pack, run it, write its records, until all are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from panda_fusion.errors import OutputError, TrainingError
from panda_fusion.matrix.cells import Cell
from panda_fusion.matrix.packs import Pack
from panda_fusion.matrix.records import append_records, read_records
from panda_fusion.matrix.results_folder import claim, prompt_path
from panda_fusion.matrix.workshop import Workshop
from panda_fusion.matrix_record import CellRecord

WAIT_SECONDS = 0.5
"""Time between two looks at what other processes have done."""


@dataclass(frozen=True)
class Progress:
    """How far a matrix is.

    Attributes:
        cells: cells in all.
        done: finished ones, by whichever process.
        failed: failed ones.
        pack: the pack that is being started; None: one has ended, or others work on what is left.
        waiting: whether all packs that could start are being worked on by others.
    """

    cells: int
    done: int
    failed: int
    pack: Pack | None = None
    waiting: bool = False


def run_packs(
    packs: Sequence[Pack],
    folder: Path,
    workshop: Workshop,
    report: Callable[[Progress], None] = lambda _: None,
    retry_failed: bool = False,
) -> None:
    """Do all packs that are not done; beside other processes on the same folder, if there are any.

    Args:
        packs: the plan's packs.
        folder: the results folder.
        workshop: runs packs.
        report: told of every pack that starts or ends.
        retry_failed: run failed cells again, each once.

    Raises:
        OutputError: records or prompts cannot be written; everything written before is kept.
        KeyboardInterrupt: Ctrl-C; the pack under way is not recorded.
    """
    cells = {cell.id for pack in packs for cell in pack.cells}
    again = dict(read_records(folder).failed) if retry_failed else {}
    given_up: set[str] = set()  # finished once, their prompt files lost, and failed now
    while True:
        records = read_records(folder)
        lost = {id for id in workshop.kept if id in records.done and not prompt_path(folder, id).exists()}
        done = set(records.done) - lost
        # Another process may have tried one of them meanwhile: its new record is an answer.
        failed = {id for id, record in records.failed.items() if again.get(id) != record} | (lost & given_up)

        def so_far(pack: Pack | None = None, waiting: bool = False, d: set[str] = done, f: set[str] = failed) -> None:
            report(Progress(len(cells), len(d & cells), len(f & cells), pack, waiting))

        open_packs = [pack for pack in packs if any(cell.id not in done | failed for cell in pack.cells)]
        if not open_packs:
            so_far()
            return
        worked = False
        for pack in open_packs:
            broken = pack.needs & failed
            if not pack.needs <= done | failed:
                continue
            with claim(folder, pack.id) as mine:
                if not mine:
                    continue
                now = read_records(folder)
                if now.done.keys() != records.done.keys() or now.failed != records.failed:
                    worked = True  # somebody was faster: look again
                    break
                so_far(pack)
                missing = [cell for cell in pack.cells if cell.id not in done | failed]
                made = _without_sources(missing, failed, workshop, pack) if broken else []
                able = [cell for cell in pack.cells if not set(cell.needs) & failed]
                if able and any(cell in missing for cell in able):
                    made += _run(able, workshop, pack)
                wanted = {cell.id for cell in missing}
                append_records(folder, [record for record in made if record.cell in wanted])
                given_up |= {record.cell for record in made if record.status == "failed"} & lost
                for id in wanted:
                    again.pop(id, None)
                worked = True
            break
        if not worked:
            so_far(waiting=True)
            time.sleep(WAIT_SECONDS)


def _run(cells: Sequence[Cell], workshop: Workshop, pack: Pack) -> list[CellRecord]:
    """Records of a pack's cells; where the pack fails, its cells are tried one by one."""
    try:
        return workshop.run(cells, pack.id)
    except OutputError:
        raise
    except Exception as error:
        if len(cells) == 1:
            return [workshop.failed(cells[0], pack.id, error)]
    return [record for cell in cells for record in _run([cell], workshop, pack)]


def _without_sources(cells: Sequence[Cell], failed: set[str], workshop: Workshop, pack: Pack) -> list[CellRecord]:
    """Failed records of the cells that need a failed one."""
    records = []
    for cell in cells:
        missing = sorted(set(cell.needs) & failed)
        if missing:
            reason = TrainingError(f"It is made of cell {missing[0]}, which failed; see that cell's error.")
            records.append(workshop.failed(cell, pack.id, reason))
    return records
