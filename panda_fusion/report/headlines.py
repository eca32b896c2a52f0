"""What stands at the top of a report."""

from __future__ import annotations

from dataclasses import dataclass

from panda_fusion.report.results import Results
from panda_fusion.report.statistics import difference
from panda_fusion.report.tables.differences import pairs
from panda_fusion.report.variants import WORDS, transfer_key


@dataclass(frozen=True)
class Headline:
    """A number in large print: what it is, the number, what belongs to it."""

    label: str
    value: str
    detail: str


def headlines(results: Results) -> list[Headline]:
    """Cells, tasks and seeds, and PanDa against vanilla transfer."""
    found = [
        Headline("cells", str(len(results.done)), f"{len(results.failed)} failed"),
        Headline("targets", str(len(results.targets)), ", ".join(results.targets)),
        Headline("sources", str(len(results.sources)), ", ".join(results.sources)),
    ]
    vanilla = {transfer_key(record): record for record in results.of("vanilla")}
    compared = pairs(results.of("panda"), vanilla, transfer_key)
    change = difference([(100 * (a.best or 0.0), 100 * (b.best or 0.0)) for a, b in compared])
    if change is None:
        systems = sorted({WORDS.get(record.system, record.system) for record in results.done})
        return [*found, Headline("systems", str(len(systems)), ", ".join(systems))]
    detail = "1 pair"
    if change.low is not None and change.high is not None:
        detail = f"95 % t interval {change.low:+z.1f} to {change.high:+z.1f}, {change.count} pairs"
    return [*found, Headline("PanDa against vanilla", f"{change.mean:+z.1f}", detail)]
