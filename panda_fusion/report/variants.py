"""What tells the records of one system apart: the options that have several values."""

from __future__ import annotations

from collections.abc import Sequence

from panda_fusion.matrix_record import CellRecord
from panda_fusion.report.results import short
from panda_fusion.report.table import grouped

WORDS = {"scratch": "prompt tuning", "full": "model tuning", "vanilla": "vanilla", "panda": "PanDa"}
"""Systems as tables call them."""
Key = tuple[object, ...]
"""What two records have in common that are compared."""
_SPECS = ("fusion", "teacher", "kd", "similarity")
_NUMBERS = (("lambda_", "λ"), ("learning_rate", "lr"), ("samples", "rows"))


def varies(records: Sequence[CellRecord], name: str) -> bool:
    """Whether an option has several values on one and the same target.

    A preset gives every task its own learning rate; that is one setting, not a sweep.
    """
    return any(len({getattr(r, name) for r in some}) > 1 for some in grouped(records, lambda r: r.target).values())


def variants(records: Sequence[CellRecord]) -> dict[str, str]:
    """Cell -> its system in words, with what varies among the records of that system.

    Args:
        records: trained prompts of one PEFT method, or such as should be told apart by nothing but these words.
    """
    names: dict[str, str] = {}
    for system, own in grouped(records, lambda r: r.system).items():
        specs = {name: {getattr(r, name) for r in own} for name in _SPECS if varies(own, name)}
        numbers = [(name, sign) for name, sign in _NUMBERS if varies(own, name)]
        for record in own:
            words = [short(getattr(record, name), others) for name, others in specs.items()]
            words += [f"{sign} {plain(getattr(record, name))}" for name, sign in numbers]
            names[record.cell] = WORDS[system] + (f" ({', '.join(words)})" if words else "")
    return names


def variant_order(records: Sequence[CellRecord], names: dict[str, str]) -> list[str]:
    """Different variants: model tuning, prompt tuning, vanilla, PanDa; then by the values of what varies."""

    def key(record: CellRecord) -> tuple[object, ...]:
        specs = tuple(getattr(record, name) or "" for name in _SPECS)
        numbers = tuple(getattr(record, name) or 0 for name, _ in _NUMBERS)
        return (("full", "scratch", "vanilla", "panda").index(record.system), specs, numbers)

    return list(dict.fromkeys(names[record.cell] for record in sorted(records, key=key)))


def plain(value: object) -> str:
    """An option's value: whole numbers in full, others without needless digits."""
    if value is None:
        return "all"
    return f"{value:g}" if isinstance(value, float) else str(value)


def transfer_key(record: CellRecord) -> Key:
    """What a transfer has in common with the one that it is compared with."""
    return (record.method, record.target, record.sources, *own_key(record)[2:])


def own_key(record: CellRecord) -> Key:
    """What a transfer has in common with the prompt from scratch that it is compared with."""
    return (record.method, record.target, record.seed, record.learning_rate, record.samples)
