"""PanDa along one of its options."""

from __future__ import annotations

from dataclasses import dataclass

from panda_fusion.report.file_names import file_name
from panda_fusion.report.results import Results, short
from panda_fusion.report.table import Row, Table, average, score, with_best
from panda_fusion.report.variants import plain, varies


@dataclass(frozen=True)
class Axis:
    """An option of PanDa.

    Attributes:
        name: the attribute of records that has it.
        title: its values in words.
        paper: where the paper varies it; empty where it does not.
        numeric: whether its values are numbers, which can be drawn as a line.
    """

    name: str
    title: str
    paper: str = ""
    numeric: bool = False

    @property
    def file(self) -> str:
        """Its part of a file's name."""
        return file_name(self.name.strip("_").replace("_", "-"))

    @property
    def note(self) -> str:
        """Where the paper has it, as the end of a note."""
        return f" (Paper: {self.paper}.)" if self.paper else ""


AXES = (
    Axis("fusion", "Fusions", "Table IV"),
    Axis("teacher", "Teachers", "Table V"),
    Axis("kd", "KD losses", "Table VII"),
    Axis("similarity", "Similarities in the loss", "Table VI"),
    Axis("method", "PEFT methods", "Figure 6"),
    Axis("lambda_", "Weights of the KD loss (λ)", "Figure 4", numeric=True),
    Axis("learning_rate", "Learning rates", numeric=True),
    Axis("samples", "Training rows", numeric=True),
)


def axis_table(results: Results, axis: Axis) -> Table | None:
    """PanDa's scores by one of its options, where a target has records with several values of it."""
    records = [record for record in results.of("panda") if getattr(record, axis.name) is not None]
    if not varies(records, axis.name):
        return None
    values = sorted({getattr(record, axis.name) for record in records})
    specs = [value for value in values if isinstance(value, str)]
    rows = []
    for value in values:
        own = [record for record in records if getattr(record, axis.name) == value]
        numbers = [score(record for record in own if record.target == target) for target in results.targets]
        label = short(value, specs) if isinstance(value, str) else plain(value)
        rows.append(Row((label,), (*numbers, average(numbers))))
    return Table(
        name=f"by-{axis.file}",
        title=axis.title,
        note="PanDa's best scores, times 100: mean ± sample standard deviation over sources, seeds and all else."
        + axis.note,
        label_columns=(axis.title if axis.title[1].isupper() else axis.title[0].lower() + axis.title[1:],),
        columns=(*results.targets, "average"),
        rows=tuple(with_best(rows)),
    )
