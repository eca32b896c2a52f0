"""What similarities say about a source and a target."""

from __future__ import annotations

from statistics import fmean

from panda_fusion.matrix_record import CellRecord
from panda_fusion.report.results import Results

Question = tuple[str, int, int | None]
"""What a source is looked for: target, seed, and training rows of the target's prompt."""


def question_of(record: CellRecord) -> Question:
    """What the source of a comparison or transfer is compared with, or used for."""
    return (record.target, record.seed, record.samples)


def compared(results: Results, method: str) -> dict[tuple[str, Question], CellRecord]:
    """Source and question -> their comparison, for prompts of one PEFT method."""
    return {(r.sources[0], question_of(r)): r for r in results.of("similarity") if r.method == method}


def rankings(results: Results, method: str, metric: str) -> dict[tuple[str, int | None], list[str]]:
    """Sources from the most to the least similar, by their mean over seeds, for every target and number of rows.

    A metric that tells no two of several sources apart ranks none of them.
    """
    values: dict[tuple[str, int | None], dict[str, list[float]]] = {}
    for (source, (target, _, samples)), record in compared(results, method).items():
        if metric in record.transferability:
            values.setdefault((target, samples), {}).setdefault(source, []).append(record.transferability[metric])
    order = {}
    for place, found in values.items():
        means = {source: fmean(some) for source, some in found.items()}
        if len(means) == 1 or len(set(means.values())) > 1:
            order[place] = sorted(means, key=lambda source: (-means[source], source))
    return order


def metric_rows(results: Results) -> list[tuple[str, str]]:
    """(metric, PEFT method) of everything that was compared."""
    found = {(name, r.method) for r in results.of("similarity") for name in r.transferability}
    return sorted(found)
