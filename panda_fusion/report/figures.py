"""The figures of a report, as SVG and PNG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from panda_fusion.atomic_write import write_bytes
from panda_fusion.printable import printable
from panda_fusion.report.file_names import distinct, file_name
from panda_fusion.report.pairs import compared, metric_rows, question_of
from panda_fusion.report.results import Results
from panda_fusion.report.tables.ablation import AXES, Axis
from panda_fusion.report.tables.similarity import metric_label
from panda_fusion.report.variants import own_key, plain, varies

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

INK, LINE = "#31405b", "#8892a6"
MARKERS = "osD^v<>PX*"
LABEL = 40
"""Letters of a name that are shown."""
DPI, PIXELS = 160, 16_000
"""Of PNG files: dots per inch, and the most on a side."""
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "panda-fusion",  # the same records make the same bytes
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
}


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: name of its files.
        title: what it shows.
        note: how to read it.
        svg: the picture, for the page.
        png: the picture, as a file.
    """

    name: str
    title: str
    note: str
    svg: str
    png: bytes


def all_figures(results: Results) -> list[Figure]:
    """Every figure for which there are records, under names of their own."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The page's own fonts may have what matplotlib's lack.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        made = [heatmap(results, metric, method) for metric, method in metric_rows(results)]
        made += [scatter(results, metric, method) for metric, method in metric_rows(results)]
        made += [sweep(results, axis) for axis in AXES if axis.numeric]
    figures = [figure for figure in made if figure is not None]
    names = distinct(figure.name for figure in figures)
    return [replace(figure, name=name) for figure, name in zip(figures, names, strict=True)]


def write_figures(figures: list[Figure], folder: Path) -> None:
    """Write every figure as NAME.svg and NAME.png."""
    for figure in figures:
        write_bytes(folder / f"{figure.name}.svg", figure.svg.encode())
        write_bytes(folder / f"{figure.name}.png", figure.png)


def inline(figure: Figure) -> str:
    """The SVG as a part of a page: identifiers of its own, and no names of the XML around it."""

    def own(tag: re.Match[str]) -> str:
        text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", tag[0])
        return re.sub(r'( id="| xlink:href="#|url\(#)', rf"\g<1>{figure.name}-", text)

    # matplotlib escapes < and > wherever they are not part of a tag.
    return re.sub(r"<[^>]*>", own, figure.svg)


def heatmap(results: Results, metric: str, method: str) -> Figure | None:
    """Similarities of sources (rows) and targets (columns), both ordered by task type (Figures 5 and 9)."""
    from matplotlib.figure import Figure as Drawing

    values: dict[tuple[str, str], list[float]] = {}
    for (source, (target, _, _)), record in compared(results, method).items():
        if metric in record.transferability:
            values.setdefault((source, target), []).append(record.transferability[metric])
    if not values:
        return None
    means = {pair: fmean(some) for pair, some in values.items()}
    low, high = min(means.values()), max(means.values())
    targets, sources = results.targets, results.sources
    drawing = Drawing(figsize=(1.6 + 0.75 * len(targets), 1.2 + 0.42 * len(sources)))
    axes = drawing.add_subplot()
    grid = [[means.get((source, target), float("nan")) for target in targets] for source in sources]
    image = axes.imshow(grid, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    axes.set_xticks(range(len(targets)), list(map(_shown, targets)), rotation=35, ha="right")
    axes.set_yticks(range(len(sources)), list(map(_shown, sources)))
    for y, source in enumerate(sources):
        for x, target in enumerate(targets):
            value = means.get((source, target))
            color = INK
            if value is not None:
                color = "black" if high > low and (value - low) / (high - low) > 0.55 else "white"
            axes.text(x, y, "–" if value is None else f"{value:z.2f}", ha="center", va="center", color=color)
    drawing.colorbar(image, ax=axes, fraction=0.05)
    name = metric_label(results, metric, method)
    return _figure(
        drawing,
        file_name("similarity", name),
        f"Similarity of sources and targets: {name}",
        "Mean over seeds; rows are sources, columns targets, both ordered by task type. (Paper: Figures 5 and 9.)",
    )


def scatter(results: Results, metric: str, method: str) -> Figure | None:
    """Similarity against the gain of vanilla transfer after one epoch."""
    from matplotlib.figure import Figure as Drawing

    comparisons = compared(results, method)
    scratch = {own_key(r): r.first_epoch for r in results.scratch if r.first_epoch is not None}
    points: dict[str, list[tuple[float, float]]] = {}
    for record in results.of("vanilla"):
        comparison = comparisons.get((record.sources[0], question_of(record)))
        base = scratch.get(own_key(record))
        if record.method != method or record.first_epoch is None or comparison is None or base is None:
            continue
        if metric in comparison.transferability:
            point = (comparison.transferability[metric], 100 * (record.first_epoch - base))
            points.setdefault(record.target, []).append(point)
    if not points:
        return None
    drawing = Drawing(figsize=(5.2, 3.4))
    axes = drawing.add_subplot()
    drawn = {}
    for number, target in enumerate(results.targets):
        if target in points:
            x, y = zip(*points[target], strict=True)
            drawn[target] = axes.scatter(x, y, s=18, marker=MARKERS[number % len(MARKERS)], alpha=0.8)
    axes.axhline(0, color=LINE, linewidth=0.8)
    axes.set_xlabel("similarity")
    axes.set_ylabel("gain over prompt tuning\nafter one epoch")
    _legend(axes, drawn)
    name = metric_label(results, metric, method)
    return _figure(
        drawing,
        file_name("gain", name),
        f"Similarity and first-epoch gain: {name}",
        "One point per source, target and seed: how much better vanilla transfer is than prompt tuning after one epoch "
        "(times 100), by the similarity of the source.",
    )


def sweep(results: Results, axis: Axis) -> Figure | None:
    """PanDa's scores along an option, with the spread over sources and seeds (Figure 4: λ)."""
    from matplotlib.figure import Figure as Drawing

    records = [r for r in results.of("panda") if getattr(r, axis.name) is not None and r.best is not None]
    if not varies(records, axis.name):
        return None
    drawing = Drawing(figsize=(5.2, 3.4))
    axes = drawing.add_subplot()
    drawn = {}
    for number, target in enumerate(results.targets):
        along: dict[float, list[float]] = {}
        for record in records:
            if record.target == target:
                along.setdefault(getattr(record, axis.name), []).append(100 * (record.best or 0.0))
        if not along:
            continue
        x = sorted(along)
        y = [fmean(along[value]) for value in x]
        spread = [stdev(along[value]) if len(along[value]) > 1 else 0.0 for value in x]
        (line,) = axes.plot(x, y, marker=MARKERS[number % len(MARKERS)], markersize=4)
        drawn[target] = line
        low = [a - b for a, b in zip(y, spread, strict=True)]
        high = [a + b for a, b in zip(y, spread, strict=True)]
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    values = sorted({getattr(record, axis.name) for record in records})
    if values[0] > 0 and values[-1] / values[0] > 20:
        axes.set_xscale("log")
    axes.set_xticks(values, list(map(plain, values)), rotation=35, ha="right")
    axes.minorticks_off()
    axes.set_xlabel(axis.title)
    axes.set_ylabel("best score, times 100")
    _legend(axes, drawn)
    return _figure(
        drawing,
        f"sweep-{axis.file}",
        axis.title,
        "PanDa's best scores: mean, and one sample standard deviation over sources and seeds." + axis.note,
    )


def _legend(axes: Axes, drawn: Mapping[str, Artist]) -> None:
    # matplotlib leaves out labels that begin with an underscore, so they are put in afterwards.
    places = list(map(str, range(len(drawn))))
    legend = axes.legend(
        list(drawn.values()), places, fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    for text, name in zip(legend.get_texts(), drawn, strict=True):
        text.set_text(_shown(name))


def _figure(drawing: Drawing, name: str, title: str, note: str) -> Figure:
    svg, png = io.StringIO(), io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    drawing.savefig(svg, format="svg", bbox_inches="tight", metadata=nothing, transparent=True)
    dpi = min(DPI, PIXELS / max(drawing.get_size_inches()))
    drawing.savefig(png, format="png", bbox_inches="tight", dpi=dpi, metadata={"Software": None}, facecolor="white")
    text = svg.getvalue()
    return Figure(name, title, note, text[text.index("<svg") :], png.getvalue())


def _shown(name: str) -> str:
    return printable(name, LABEL)
