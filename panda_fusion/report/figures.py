"""The figures of a report, as SVG and PNG."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from panda_fusion.atomic_write import write_bytes
from panda_fusion.report.results import Results, short
from panda_fusion.report.tables import AXES, similarity_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

INK, ACCENT = "#31405b", "#b2543a"
SWEPT = ("lambda_", "learning_rate", "samples")


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
    """Every figure for which there are records."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(
        {
            "svg.hashsalt": "panda-fusion",  # the same records make the same bytes
            "svg.fonttype": "none",
            "font.size": 9,
            "font.family": "sans-serif",
            "axes.edgecolor": "#8892a6",
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "text.color": INK,
        }
    ):
        metrics = sorted({name for record in results.of("similarity") for name in record.transferability})
        made = [heatmap(results, metric, metrics) for metric in metrics]
        made += [scatter(results, metric, metrics) for metric in metrics]
        made += [sweep(results, name, title) for name, title, _ in AXES if name in SWEPT]
    return [figure for figure in made if figure is not None]


def write_figures(figures: list[Figure], folder: Path) -> None:
    """Write every figure as NAME.svg and NAME.png."""
    for figure in figures:
        write_bytes(folder / f"{figure.name}.svg", figure.svg.encode())
        write_bytes(folder / f"{figure.name}.png", figure.png)


def heatmap(results: Results, metric: str, metrics: list[str]) -> Figure | None:
    """Similarities of sources (rows) and targets (columns), both ordered by task type."""
    from matplotlib.figure import Figure as Drawing

    values = similarity_values(results, metric)
    grid = [
        [
            fmean(found) if (found := [v for (s, t, _), v in values.items() if s == source and t == target]) else None
            for target in results.targets
        ]
        for source in results.sources
    ]
    known = [value for row in grid for value in row if value is not None]
    if not known:
        return None
    drawing = Drawing(figsize=(1.6 + 0.75 * len(results.targets), 1.2 + 0.42 * len(results.sources)))
    axes = drawing.add_subplot()
    low, high = min(known), max(known)
    image = axes.imshow(
        [[float("nan") if value is None else value for value in row] for row in grid],
        cmap="cividis",
        vmin=low,
        vmax=high,
        aspect="auto",
    )
    axes.set_xticks(range(len(results.targets)), results.targets, rotation=35, ha="right")
    axes.set_yticks(range(len(results.sources)), results.sources)
    for y, row in enumerate(grid):
        for x, value in enumerate(row):
            light = value is not None and high > low and (value - low) / (high - low) > 0.55
            axes.text(
                x,
                y,
                "–" if value is None else f"{value:.2f}",
                ha="center",
                va="center",
                color="black" if light else "white",
            )
    drawing.colorbar(image, ax=axes, fraction=0.05)
    name = short(metric, list(metrics))
    return _figure(
        drawing,
        f"similarity-{_file(name)}",
        f"Similarity of sources and targets: {name}",
        "Mean over seeds; rows are sources, columns targets, both ordered by task type.",
    )


def scatter(results: Results, metric: str, metrics: list[str]) -> Figure | None:
    """Similarity against the gain of vanilla transfer after one epoch."""
    from matplotlib.figure import Figure as Drawing

    values = similarity_values(results, metric)
    scratch: dict[tuple[str, int], float] = {
        (r.target, r.seed): r.first_epoch for r in results.of("scratch") if r.first_epoch is not None
    }
    drawing = Drawing(figsize=(5.2, 3.4))
    axes = drawing.add_subplot()
    drawn = 0
    for number, target in enumerate(results.targets):
        points = [
            (values[r.sources[0], target, r.seed], 100 * (r.first_epoch - scratch[target, r.seed]))
            for r in results.of("vanilla")
            if r.target == target
            and r.first_epoch is not None
            and (r.sources[0], target, r.seed) in values
            and (target, r.seed) in scratch
        ]
        if points:
            drawn += 1
            marker = "osD^v<>PX*"[number % 10]
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=18, marker=marker, label=target, alpha=0.8)
    if not drawn:
        return None
    axes.axhline(0, color="#8892a6", linewidth=0.8)
    axes.set_xlabel("similarity")
    axes.set_ylabel("gain over prompt tuning\nafter one epoch")
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    name = short(metric, list(metrics))
    return _figure(
        drawing,
        f"gain-{_file(name)}",
        f"Similarity and first-epoch gain: {name}",
        "One point per source, target and seed: how much better vanilla transfer is than prompt tuning after one epoch "
        "(times 100), by the similarity of the source.",
    )


def sweep(results: Results, name: str, title: str) -> Figure | None:
    """PanDa's scores along an option, with the spread over sources and seeds."""
    from matplotlib.figure import Figure as Drawing

    records = [r for r in results.of("panda") if getattr(r, name) is not None and r.best is not None]
    values = sorted({getattr(record, name) for record in records})
    if len(values) < 2:
        return None
    drawing = Drawing(figsize=(5.2, 3.4))
    axes = drawing.add_subplot()
    for number, target in enumerate(results.targets):
        some = [[100 * (r.best or 0) for r in records if getattr(r, name) == v and r.target == target] for v in values]
        along = [(v, scores) for v, scores in zip(values, some, strict=True) if scores]
        if not along:
            continue
        x = [v for v, _ in along]
        y = [fmean(scores) for _, scores in along]
        spread = [stdev(scores) if len(scores) > 1 else 0.0 for _, scores in along]
        (line,) = axes.plot(x, y, marker="osD^v<>PX*"[number % 10], markersize=4, label=target)
        axes.fill_between(
            x,
            [a - b for a, b in zip(y, spread, strict=True)],
            [a + b for a, b in zip(y, spread, strict=True)],
            color=line.get_color(),
            alpha=0.15,
            linewidth=0,
        )
    if min(values) > 0 and max(values) / min(values) > 20:
        axes.set_xscale("log")
    axes.set_xlabel(title)
    axes.set_ylabel("best score, times 100")
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return _figure(
        drawing,
        f"sweep-{name.strip('_').replace('_', '-')}",
        title,
        "PanDa's best scores: mean, and one sample standard deviation over sources and seeds.",
    )


def _figure(drawing: Drawing, name: str, title: str, note: str) -> Figure:
    svg, png = io.StringIO(), io.BytesIO()
    drawing.savefig(svg, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None}, transparent=True)
    drawing.savefig(png, format="png", bbox_inches="tight", dpi=160, metadata={"Software": None}, facecolor="white")
    text = svg.getvalue()
    return Figure(name, title, note, text[text.index("<svg") :], png.getvalue())


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_=" else "-" for letter in name)[:60]
