"""What systems cost."""

from __future__ import annotations

from panda_fusion.report.results import Results, short
from panda_fusion.report.statistics import summary
from panda_fusion.report.table import Row, Table, count, grouped, number
from panda_fusion.report.variants import WORDS


def cost_table(results: Results) -> Table | None:
    """Table XII: trainable parameters and time."""
    records = [record for record in results.done if record.train_seconds is not None]
    methods = {record.method for record in records}
    rows = []
    for (system, method), some in sorted(grouped(records, lambda r: (r.system, r.method)).items()):
        cells = [record.cell for record in some]
        training = summary([r.train_seconds for r in some if r.train_seconds is not None])
        teachers = summary([r.teacher_seconds for r in some if r.teacher_seconds is not None])
        numbers = (
            count(max(r.trainable_parameters or 0 for r in some), cells),
            number(training, cells),
            number(teachers, cells),
            count(len(some), cells),
        )
        rows.append(Row((WORDS[system], short(method, methods)), numbers))
    if not rows:
        return None
    devices = ", ".join(sorted({f"{r.device} {r.precision}" for r in records}))
    return Table(
        name="cost",
        title="Parameters and time",
        note="Trainable numbers of a prompt, head included (the largest of all targets); seconds of training and of "
        f"making and running teachers, a cell's share of its pack ({devices}): mean ± sample standard deviation. "
        "Training the sources is not part of a transfer here, but cells of prompt tuning. (Paper: Table XII.)",
        label_columns=("system", "method"),
        columns=("parameters", "training, s", "teachers, s", "cells"),
        rows=tuple(rows),
    )
