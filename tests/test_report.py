"""Reports: their numbers against hand computation and scipy, strange names, links, repeatability, errors."""

from __future__ import annotations

import csv
import hashlib
import io
import random
import re
import subprocess
import sys
import xml.dom.minidom
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from cli_support import Done, environment, poison, run
from markdown_it import MarkdownIt
from PIL import Image
from scipy import stats

from panda_fusion.errors import OutputError, RecipeError
from panda_fusion.matrix.records import FILE, append_records
from panda_fusion.matrix_record import CellRecord, System
from panda_fusion.printable import printable
from panda_fusion.report.file_names import distinct, file_name
from panda_fusion.report.results import Results, load_results
from panda_fusion.report.table import Number, Row, Table, average, with_best
from panda_fusion.report.tables import all_tables
from panda_fusion.report.write import write_report

PREFIX = "prefix:length=20,projection=0,init=normal"
PANDA, EAVG = "panda:samples=own", "eavg"
TYPES = {"cb": "NLI", "rte": "NLI", "mnli": "NLI", "qqp": "SM", "sst2": "Others", "squad": "QA", "mrpc": "SM"}
TARGETS, SOURCES, SEEDS = ("cb", "rte"), ("mnli", "qqp", "sst2", "squad"), (0, 1, 2)


def record(system: System, target: str, seed: int = 0, sources: Sequence[str] = (), **values: object) -> CellRecord:
    """A finished cell; its identifier is made of everything that is said of it."""
    said = repr((system, target, seed, tuple(sources), sorted(values.items())))
    defaults: dict[str, object] = {
        "cell": hashlib.sha256(said.encode()).hexdigest()[:16],
        "recipe": "0" * 16,
        "status": "done",
        "model": "tiny",
        "target_type": TYPES.get(target, ""),
        "source_types": tuple(TYPES.get(name, "") for name in sources),
        "method": "full" if system == "full" else PREFIX,
        "device": "cpu",
        "precision": "fp32",
        "finished": "2026-01-01T00:00:00+00:00",
    }
    if system == "panda":
        defaults |= {"teacher": "target-like", "fusion": "single", "kd": "mse", "lambda_": 0.05, "similarity": PANDA}
    if system != "similarity":
        defaults |= {"learning_rate": 0.01, "metric": "accuracy"}
    return CellRecord(system=system, target=target, seed=seed, sources=tuple(sources), **(defaults | values))  # type: ignore[arg-type]


def results(folder: Path, records: Iterable[CellRecord]) -> Results:
    folder.mkdir(parents=True, exist_ok=True)
    append_records(folder, list(records))
    return load_results(folder)


def table(found: Results, name: str) -> Table:
    return next(one for one in all_tables(found) if one.name == name)


def numbers(one: Table) -> dict[tuple[str, ...], Number]:
    """(labels..., column) -> number."""
    return {
        (*row.labels, column): value for row in one.rows for column, value in zip(one.columns, row.numbers, strict=True)
    }


def score(system: str, source: str, target: str, seed: int) -> float:
    """Some score without a pattern, between .4 and .9, with three decimals."""
    digest = hashlib.sha256(f"{system} {source} {target} {seed}".encode()).digest()
    return 0.4 + int.from_bytes(digest[:2], "big") % 501 / 1000


def likeness(metric: str, source: str, target: str, seed: int) -> float:
    return round(2 * score(metric, source, target, seed) - 1, 3)


def study() -> list[CellRecord]:
    """Two targets, four sources, three seeds, every system."""
    made = []
    for target in TARGETS:
        for seed in SEEDS:
            made.append(record("full", target, seed, best=score("full", "", target, seed), train_seconds=9.0))
            made.append(
                record(
                    "scratch",
                    target,
                    seed,
                    best=score("scratch", "", target, seed),
                    first_epoch=0.5,
                    train_seconds=1.0 + seed,
                    trainable_parameters=1200 + seed,
                )
            )
            for source in SOURCES:
                vanilla, panda = (score(system, source, target, seed) for system in ("vanilla", "panda"))
                early = score("early", source, target, seed)
                values = {name: likeness(name, source, target, seed) for name in (PANDA, EAVG)}
                made.append(record("vanilla", target, seed, [source], best=vanilla, first_epoch=early))
                made.append(record("panda", target, seed, [source], best=panda, similarities=(values[PANDA],)))
                made.append(record("similarity", target, seed, [source], transferability=values))
    sources = [record("scratch", name, 1000 + seed, best=0.7) for name in SOURCES for seed in SEEDS]
    return [*sources, *made]


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results(tmp_path_factory.mktemp("study"), study())


def all_scores(system: str, target: str) -> np.ndarray:
    """[source, seed], times 100."""
    return np.array([[100 * score(system, source, target, seed) for seed in SEEDS] for source in SOURCES])


# Numbers


def test_transfer_has_means_deviations_averages_and_changes(studied: Results) -> None:
    found = numbers(table(studied, "transfer-prefix"))
    assert studied.targets == ["cb", "rte"]
    averages = {}
    for place, source in enumerate(SOURCES):
        for system, word in (("vanilla", "vanilla"), ("panda", "PanDa")):
            for target in TARGETS:
                values = all_scores(system, target)[place]
                number = found[source, word, target]
                assert number.value == pytest.approx(values.mean())
                assert number.deviation == pytest.approx(values.std(ddof=1))
                assert number.text == f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"
                assert len(number.cells) == len(SEEDS)
            averages[source, word] = np.mean([all_scores(system, target)[place].mean() for target in TARGETS])
            assert found[source, word, "average"].value == pytest.approx(averages[source, word])
        change = averages[source, "PanDa"] - averages[source, "vanilla"]
        assert found[source, "PanDa", "change"].value == pytest.approx(change)
        assert found[source, "PanDa", "change"].text == f"{change:+.1f}"
        assert found[source, "vanilla", "change"].text == "–"
    plain = [100 * score("scratch", "", "cb", seed) for seed in SEEDS]
    assert found["–", "prompt tuning", "cb"].value == pytest.approx(np.mean(plain))
    assert found["–", "model tuning", "cb"].value == pytest.approx(
        np.mean([100 * score("full", "", "cb", s) for s in SEEDS])
    )


@pytest.mark.parametrize(("system", "word"), [("vanilla", "vanilla"), ("panda", "PanDa")])
def test_oracle_and_best_of_top_three(studied: Results, system: str, word: str) -> None:
    found = numbers(table(studied, "transfer-prefix"))
    for target in TARGETS:
        means = all_scores(system, target).mean(1)
        assert found["ORACLE", word, target].value == pytest.approx(means.max())
        for metric, name in ((PANDA, "panda"), (EAVG, "eavg")):
            similarity = [np.mean([likeness(metric, source, target, seed) for seed in SEEDS]) for source in SOURCES]
            first = np.argsort(similarity)[::-1][:3]
            number = found[f"best of top 3 by {name}", word, target]
            assert number.value == pytest.approx(means[first].max())
            best = first[means[first].argmax()]
            cells = {r.cell for r in studied.of(system) if r.sources == (SOURCES[best],) and r.target == target}
            assert set(number.cells) == cells


def test_systems_average_sources_before_seeds(studied: Results) -> None:
    found = numbers(table(studied, "systems"))
    by_seed = all_scores("panda", "rte").mean(0)
    number = found["PanDa", "prefix", "rte"]
    assert number.value == pytest.approx(by_seed.mean())
    assert number.deviation == pytest.approx(by_seed.std(ddof=1))
    plain = np.mean([100 * score("scratch", "", target, seed) for target in TARGETS for seed in SEEDS])
    gain = np.mean([all_scores("panda", target).mean() for target in TARGETS]) - plain
    assert found["PanDa", "prefix", "gain"].value == pytest.approx(gain)
    assert found["prompt tuning", "prefix", "gain"].text == "–"


def test_differences_have_the_t_interval_of_scipy(studied: Results) -> None:
    found = numbers(table(studied, "differences"))
    panda = np.concatenate([all_scores("panda", target).ravel() for target in TARGETS])
    vanilla = np.concatenate([all_scores("vanilla", target).ravel() for target in TARGETS])
    interval = stats.ttest_rel(panda, vanilla).confidence_interval(0.95)
    label = "PanDa against vanilla transfer"
    assert found[label, "difference"].value == pytest.approx((panda - vanilla).mean())
    assert found[label, "95 % interval"].text == f"{interval.low:+.2f} to {interval.high:+.2f}"
    assert found[label, "pairs"].value == 24
    plain = np.concatenate(
        [
            np.tile([100 * score("scratch", "", target, s) for s in SEEDS], (len(SOURCES), 1)).ravel()
            for target in TARGETS
        ]
    )
    interval = stats.ttest_rel(vanilla, plain).confidence_interval(0.95)
    label = "vanilla transfer against prompt tuning"
    assert found[label, "95 % interval"].text == f"{interval.low:+.2f} to {interval.high:+.2f}"


def test_differences_by_similarity_split_at_the_median(tmp_path: Path) -> None:
    gains = {"a": 0.01, "b": 0.02, "c": 0.03, "d": 0.05}  # in the order of their similarities
    made = []
    for place, (source, gain) in enumerate(gains.items()):
        made.append(record("vanilla", "cb", 0, [source], best=0.5))
        made.append(record("panda", "cb", 0, [source], best=0.5 + gain, similarities=(place / 10,)))
    found = numbers(table(results(tmp_path, made), "differences"))
    label = "PanDa against vanilla transfer, {} similar half"
    assert found[label.format("less"), "difference"].value == pytest.approx(1.5)
    assert found[label.format("more"), "difference"].value == pytest.approx(4.0)


def test_pairs_of_a_sweep_meet_at_their_own_learning_rate(tmp_path: Path) -> None:
    """A vanilla transfer at one rate is no counterpart of PanDa at another."""
    made = []
    for rate, low, high in ((0.01, 0.50, 0.51), (0.1, 0.70, 0.73)):
        made.append(record("vanilla", "cb", 0, ["mnli"], best=low, learning_rate=rate))
        made.append(record("panda", "cb", 0, ["mnli"], best=high, learning_rate=rate))
    found = results(tmp_path, made)
    differences = numbers(table(found, "differences"))
    assert differences["PanDa (lr 0.01) against vanilla transfer", "difference"].text == "+1.00"
    assert differences["PanDa (lr 0.1) against vanilla transfer", "difference"].text == "+3.00"
    transfer = numbers(table(found, "transfer-prefix"))
    assert transfer["mnli", "vanilla (lr 0.1)", "cb"].value == pytest.approx(70)
    report = write_report(found, tmp_path / "report")
    assert "by-learning-rate" in [one.name for one in report]
    assert "+2.0" in (tmp_path / "report" / "report.md").read_text()  # of both pairs, at the top


def test_spearman_is_computed_by_hand_for_every_seed(tmp_path: Path) -> None:
    first_epochs = {0: [0.1, 0.2, 0.3, 0.9], 1: [0.2, 0.1, 0.3, 0.9]}  # ranks count, not distances
    similarities = {0: [1, 2, 3, 4], 1: [4, 3, 2, 1]}
    made = []
    for seed in (0, 1):
        for source, score_, value in zip("abcd", first_epochs[seed], similarities[seed], strict=True):
            made.append(record("vanilla", "cb", seed, [source], first_epoch=score_, best=0.9))
            values = {PANDA: value / 10, "constant": 1.0}
            made.append(record("similarity", "cb", seed, [source], transferability=values))
    found = results(tmp_path, made)
    one = table(found, "similarity-against-transfer")
    assert [row.labels for row in one.rows] == [("panda",)], "a constant ranks nothing"
    number = numbers(one)["panda", "cb"]
    # 1 - 6 sum d^2 / (n (n^2 - 1)): d = 0 for seed 0; ranks 2 1 3 4 against 4 3 2 1, d^2 = 4 + 4 + 1 + 9, for seed 1
    by_seed = [1.0, 1 - 6 * 18 / (4 * 15)]
    assert number.value == pytest.approx(np.mean(by_seed))
    assert number.deviation == pytest.approx(np.std(by_seed, ddof=1))
    assert len(number.cells) == 16, "transfers and comparisons are behind it"
    labels = [row.labels[0] for row in table(found, "transfer-prefix").rows]
    assert "best of top 3 by constant" not in labels


def test_the_most_similar_source(studied: Results) -> None:
    found = numbers(table(studied, "most-similar-source"))
    for metric, name in ((PANDA, "panda"), (EAVG, "eavg")):
        expected = []
        for target in TARGETS:
            values = [np.mean([likeness(metric, source, target, seed) for seed in SEEDS]) for source in SOURCES]
            scores = all_scores("vanilla", target)[int(np.argmax(values))]
            assert found[name, target].value == pytest.approx(scores.mean())
            assert found[name, target].deviation == pytest.approx(scores.std(ddof=1))
            expected.append(scores.mean())
        assert found[name, "average"].value == pytest.approx(np.mean(expected))
    by_seed = all_scores("vanilla", "cb").mean(0)
    assert found["mean of all sources", "cb"].value == pytest.approx(by_seed.mean())
    assert found["mean of all sources", "cb"].deviation == pytest.approx(by_seed.std(ddof=1))


def test_similarities_of_one_method_are_not_those_of_another(tmp_path: Path) -> None:
    other = "prompt:length=20"
    made = []
    for method, order in ((PREFIX, "ab"), (other, "ba")):
        for place, source in enumerate(order):
            made.append(record("vanilla", "cb", 0, [source], best=0.8 - place / 10, method=method))
            values = {PANDA: 0.9 - place / 10}
            made.append(record("similarity", "cb", 0, [source], method=method, transferability=values))
    found = numbers(table(results(tmp_path, made), "most-similar-source"))
    assert found["panda, prefix", "cb"].value == pytest.approx(80)
    assert found["panda, prompt", "cb"].value == pytest.approx(80)


def test_same_and_different_types(studied: Results) -> None:
    found = numbers(table(studied, "same-and-different-types"))
    same = [likeness(EAVG, "mnli", target, seed) for target in TARGETS for seed in SEEDS]
    other = [likeness(EAVG, source, target, seed) for source in SOURCES[1:] for target in TARGETS for seed in SEEDS]
    for column, values in (("same type", same), ("different types", other)):
        assert found["eavg", column].value == pytest.approx(np.mean(values))
        assert found["eavg", column].deviation == pytest.approx(np.std(values, ddof=1))


def test_types_are_compared_where_there_are_both(tmp_path: Path) -> None:
    found = results(tmp_path, [record("similarity", "cb", 0, ["qqp"], transferability={EAVG: 0.5})])
    assert "same-and-different-types" not in [one.name for one in all_tables(found)]


def test_source_prompts_are_not_prompt_tuning_of_a_target(tmp_path: Path) -> None:
    """A task may be both; its prompt as a source has a seed, and often rows and epochs, of its own."""
    made = [record("vanilla", target, 0, [source], best=0.5) for source, target in (("cb", "rte"), ("rte", "cb"))]
    made += [record("scratch", "cb", seed, best=best, first_epoch=best) for seed, best in ((0, 0.4), (1000, 0.8))]
    found = results(tmp_path, made)
    assert numbers(table(found, "systems"))["prompt tuning", "prefix", "cb"].text == "40.0"
    assert numbers(table(found, "transfer-prefix"))["–", "prompt tuning", "cb"].text == "40.0"


def test_tables_eight_and_nine_of_the_paper(tmp_path: Path) -> None:
    """The paper's similarities of QNLI (Table VIII) give its 0.01680 and 0.01783 (Table IX)."""
    targets = ["cb", "copa", "wsc", "rte", "wic", "cola", "mrpc", "stsb", "conll04"]
    printed = {
        50: (0.819, 0.479, 0.76, 0.897, 0.323, 0.302, 0.911, 0.912, 0.008),
        100: (0.757, 0.446, 0.733, 0.843, 0.365, 0.349, 0.847, 0.857, 0.005),
        200: (0.771, 0.461, 0.737, 0.850, 0.352, 0.320, 0.859, 0.857, 0.004),
        300: (0.778, 0.466, 0.742, 0.864, 0.332, 0.306, 0.866, 0.852, 0.006),
    }
    made = []
    for place, target in enumerate(targets):
        values = {f"panda:samples=own,count={n}": row[place] for n, row in printed.items()}
        values |= {"on:layers=all": 0.5, "not a method": 0.5}
        made.append(record("similarity", target, 0, ["qnli"], transferability=values))
    tables = {one.name: one for one in all_tables(results(tmp_path, made))}
    eight = numbers(tables["similarity-by-count-panda"])
    assert {key: number.value for key, number in eight.items()} == {
        ("qnli", str(n), target): value
        for n, row in printed.items()
        for target, value in zip(targets, row, strict=True)
    }
    assert [row.labels[1] for row in tables["similarity-by-count-panda"].rows] == ["50", "100", "200", "300"]
    nine = numbers(tables["spread-by-count-panda"])
    assert nine["qnli", "standard deviation"].text == "0.01680"
    assert nine["qnli", "|100 − mean|"].text == "0.01783"
    assert not [name for name in tables if "layers" in name], "one value is no sweep"


def test_options_of_panda(tmp_path: Path) -> None:
    made = [
        record("panda", target, seed, ["mnli"], teacher=teacher, best=score(teacher, "", target, seed))
        for target in TARGETS
        for seed in SEEDS
        for teacher in ("random", "source", "target-like")
    ]
    found = results(tmp_path, made)
    by_teacher = numbers(table(found, "by-teacher"))
    for teacher in ("random", "source", "target-like"):
        values = [100 * score(teacher, "", "cb", seed) for seed in SEEDS]
        assert by_teacher[teacher, "cb"].value == pytest.approx(np.mean(values))
        assert numbers(table(found, "systems"))[f"PanDa ({teacher})", "prefix", "cb"].value == pytest.approx(
            np.mean(values)
        )
    assert not [one.name for one in all_tables(found) if one.name.startswith("by-") and one.name != "by-teacher"]


def test_what_differs_between_tasks_alone_is_no_sweep(tmp_path: Path) -> None:
    """A preset gives every task its own learning rate, and a recipe may limit the rows of one task alone."""
    made = []
    for target, rate, samples in (("cb", 0.005, None), ("rte", 0.007, 500)):
        for system in ("vanilla", "panda"):
            best = score(system, "mnli", target, 0)
            made.append(record(system, target, 0, ["mnli"], best=best, learning_rate=rate, samples=samples))  # type: ignore[arg-type]
    found = results(tmp_path, made)
    one = table(found, "transfer-prefix")
    assert [row.labels for row in one.rows][:2] == [("mnli", "vanilla"), ("mnli", "PanDa")]
    expected = np.mean([100 * score("panda", "mnli", target, 0) for target in TARGETS])
    assert numbers(one)["mnli", "PanDa", "average"].value == pytest.approx(expected)
    assert not [name for name in (one.name for one in all_tables(found)) if name.startswith("by-")]


def test_rows_of_a_sweep_say_all_where_there_is_no_limit(tmp_path: Path) -> None:
    made = [record("panda", "cb", 0, ["mnli"], best=0.5, samples=samples) for samples in (None, 1_000_000)]
    labels = [row.labels[1] for row in table(results(tmp_path, made), "transfer-prefix").rows]
    assert labels[:2] == ["PanDa (rows all)", "PanDa (rows 1000000)"]


def test_a_source_that_is_a_target_has_no_average_but_a_change(tmp_path: Path) -> None:
    made = []
    for source, target in (("cb", "rte"), ("mnli", "cb"), ("mnli", "rte")):
        made.append(record("vanilla", target, 0, [source], best=0.5))
        made.append(record("panda", target, 0, [source], best=0.54 if source == "cb" else 0.52))
    found = numbers(table(results(tmp_path, made), "transfer-prefix"))
    assert found["cb", "PanDa", "cb"].text == "–"
    assert found["cb", "PanDa", "average"].value is None
    assert found["cb", "PanDa", "change"].text == "+4.0"
    assert found["mnli", "PanDa", "average"].text == "52.0"


def test_cost(studied: Results) -> None:
    found = numbers(table(studied, "cost"))
    seconds = [1.0, 2.0, 3.0] * 2
    assert found["prompt tuning", "prefix", "training, s"].value == pytest.approx(np.mean(seconds))
    assert found["prompt tuning", "prefix", "training, s"].deviation == pytest.approx(np.std(seconds, ddof=1))
    assert found["prompt tuning", "prefix", "parameters"].text == "1,202"
    assert found["prompt tuning", "prefix", "cells"].value == 6
    assert found["model tuning", "full", "teachers, s"].text == "–"


def test_best_of_a_column_may_be_zero_or_negative() -> None:
    def marked(*values: float | None) -> list[bool]:
        rows = [Row((str(value),), (Number(str(value), value),)) for value in values]
        return [row.numbers[0].best for row in with_best(rows)]

    assert marked(0.0, -1.0, None) == [True, False, False]
    assert marked(-2.0, -1.0) == [False, True]
    assert marked(1.0, 1.0) == [True, True]
    assert marked(None, None) == [False, False]
    rows = with_best([Row(("a",), (Number("1", 1), Number("2", 2)))], uncompared=1)
    assert [number.best for number in rows[0].numbers] == [True, False]


def test_nothing_is_averaged_over_a_missing_number() -> None:
    assert average([Number("1", 1.0), Number("3", 3.0)]).value == 2
    assert average([Number("1", 1.0), Number("–")]).value is None
    assert average([]).text == "–"


# Names that strangers chose

HOSTILE = (
    "<script>alert(1)</script>",
    "</td></table>",
    "' onclick='x",
    '"><img src=x>',
    "a&b",
    "&lt;i&gt;",
    "50%",
    "under_score_",
    "_first",
    "#tag",
    "a|b",
    "back\\slash",
    "\\input{x}",
    "line\nbreak",
    "new\n\n# heading",
    "naïve-日本-😀",
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "＝1",
    "$x^2$",
    "$\\frac$",
    "[y](http://evil.example)",
    "*z*",
    "{}",
    "~tilde~",
    "`code`",
    "http://evil.example/x",
    "www.evil.example",
    "a@b.example",
    "\u202eright to left",
    "\x1b[31mred",
    "nul\0",
    "x" * 300,
)
"""Every one of them is a task here."""


def shown(name: str) -> str:
    return printable(" ".join(name.split()))


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a matrix whose every text is hostile."""
    folder = tmp_path_factory.mktemp("strange")
    made = []
    for place, target in enumerate(HOSTILE):
        sources = [HOSTILE[(place + step) % len(HOSTILE)] for step in (1, 2, 3)]
        more = {"model": '<b>"m"', "device": "<i>", "precision": "`fp`"}
        made.append(record("scratch", target, best=0.4, first_epoch=0.3, train_seconds=1.0, **more))
        for step, source in enumerate(sources):
            made.append(record("vanilla", target, 0, [source], best=0.5, first_epoch=0.4 + step / 10, **more))
            made.append(record("panda", target, 0, [source], best=0.6, lambda_=0.05 * 9**step, kd="=mse<&>", **more))
            values = {"panda:<&>_$": step / 10, "=on|#%": 0.5 - step / 10}
            made.append(record("similarity", target, 0, [source], transferability=values, **more))
    made.append(
        record("panda", "cb", 0, ["mnli"], cell='"><script>', status="failed", error="<script>boom\x1b</script>")
    )
    made.append(record("panda", "cb", 0, ["mnli"], cell="=1+1 #'", best=0.1, kd="=ce\n<&>"))
    write_report(results(folder, made), folder / "report")
    return folder / "report"


class Page(HTMLParser):
    """Tags, attributes and the text of table heads and cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.cells: list[str] = []
        self.text = ""
        self.inside = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in ("th", "td"):
            self.cells.append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.inside:
            self.cells[-1] += data

    def ids(self) -> list[str]:
        return [value for _, name, value in self.attributes if name == "id"]


def check_page(text: str) -> Page:
    """Links lead somewhere, nothing comes from elsewhere, nothing is run."""
    page = Page(text)
    ids = page.ids()
    assert len(ids) == len(set(ids))
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("src", "srcset", "action", "data", "background")
        assert not name.startswith("xmlns")
        if name in ("href", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,")), value
            assert not value.startswith("#") or value[1:] in ids, value
        if name in ("style", "clip-path", "fill", "stroke", "marker"):
            assert re.findall(r"url\((?!#)", value) == []
            assert "http" not in value
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "input"} & set(page.tags)
    style = re.findall(r"<style.*?</style>", text, flags=re.DOTALL)
    assert not any("url(" in one or "@import" in one for one in style)
    return page


def test_strange_names_in_html(strange: Path) -> None:
    text = (strange / "index.html").read_text(encoding="utf-8")
    page = check_page(text)
    cells = set(page.cells)
    for name in HOSTILE:
        assert printable(name) in cells, name
    assert "<script>boom\\x1b</script>" in cells
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", text)
    assert "http://www.w3.org" not in text


def test_strange_names_in_markdown(strange: Path) -> None:
    text = (strange / "report.md").read_text(encoding="utf-8")
    parser = MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(text)
    inner = [child for token in tokens for child in token.children or ()]
    assert {child.type for child in inner} <= {
        "text",
        "text_special",
        "strong_open",
        "strong_close",
        "image",
        "softbreak",
    }
    assert not [token for token in tokens if token.type in ("html_block", "code_block", "fence", "blockquote_open")]
    assert {child.attrs["src"] for child in inner if child.type == "image"} == {
        path.name for path in strange.glob("*.svg")
    }
    headings = [token.tag for token in tokens if token.type == "heading_open"]
    assert headings.count("h1") == 1
    page = Page(parser.render(text))
    for name in HOSTILE:
        assert shown(name) in page.cells, name
    # GitHub makes links and mentions of these without any brackets.
    assert not re.search(r"(?<!\\)@\w|\w://|www\.\w", text)
    widths = [len(row.split("<t")) for row in re.findall(r"<tr>(.*?)</tr>", parser.render(text), flags=re.DOTALL)]
    assert set(widths) - {1}, "there are tables"


def test_strange_names_in_csv(strange: Path) -> None:
    seen: set[str] = set()
    for path in strange.glob("*.csv"):
        head, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8")))
        for row in rows:
            assert len(row) == len(head)
            for cell in row:
                if not re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]\d+)?", cell):
                    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "＝")), cell
                assert cell.isprintable()
            seen |= set(row)
    for name in HOSTILE:
        assert {shown(name), f"'{shown(name)}"} & seen, name
    assert "'=1+1" in seen
    assert "'=1+1 #'" in seen, "a cell's identifier is a stranger's too"


def untex(text: str) -> str:
    """What LaTeX would print for text with these commands; fails on a character that LaTeX would act on."""
    commands = {
        "textbackslash{}": "\\",
        "textasciitilde{}": "~",
        "textasciicircum{}": "^",
        "textless{}": "<",
        "textgreater{}": ">",
        "textbar{}": "|",
        "textquotedbl{}": '"',
        **{letter: letter for letter in "&%$#_{}"},
    }
    plain, place = "", 0
    while place < len(text):
        letter = text[place]
        if letter == "\\":
            name = next(name for name in sorted(commands, key=len, reverse=True) if text.startswith(name, place + 1))
            plain += commands[name]
            place += 1 + len(name)
        elif text[place : place + 3] in ("{[}", "{*}"):
            plain += text[place + 1]
            place += 3
        else:
            assert letter not in '&%$#_{}~^"<>|', f"{letter} in {text}"
            plain += letter
            place += 1
    return plain


def test_strange_names_in_latex(strange: Path) -> None:
    for path in strange.glob("*.tex"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith("% ")
        columns = len(re.findall("[lr]", lines[1].removeprefix(r"\begin{tabular}")))
        for line in lines[2:-1]:
            if line in (r"\toprule", r"\midrule", r"\bottomrule"):
                continue
            assert line.endswith(r" \\")
            assert not line.startswith(("[", "*")), "the \\\\ before it would take it for an argument"
            assert len(re.split(r"(?<!\\)&", line)) == columns
    lines = (strange / "transfer-prefix.tex").read_text(encoding="utf-8").splitlines()
    heads = [untex(part.strip()) for part in re.split(r"(?<!\\)&", lines[3].removesuffix(r"\\"))]
    assert set(map(shown, HOSTILE)) <= set(heads)


def test_strange_names_in_figures(strange: Path) -> None:
    drawn = list(strange.glob("similarity-*.svg"))
    assert len(drawn) == 2
    for path in drawn:
        document = xml.dom.minidom.parse(str(path))
        texts = {"".join(node.data for node in text.childNodes) for text in document.getElementsByTagName("text")}
        for name in HOSTILE:
            assert printable(name, 40) in texts, name
        assert not document.getElementsByTagName("script")
    sweep = (strange / "sweep-lambda.svg").read_text(encoding="utf-8")
    assert "_first" in sweep, "matplotlib's own legend leaves out such names"
    assert ">0.05<" in sweep


def test_files_of_methods_with_equal_beginnings_are_distinct(tmp_path: Path) -> None:
    long = "prompt:init=text,text=" + "a" * 200
    made = [record("vanilla", "cb", 0, ["mnli"], best=0.5, method=long + end) for end in ("b", "c")]
    tables = write_report(results(tmp_path, made), tmp_path / "report")
    names = [one.name for one in tables]
    assert len(set(names)) == len(names)
    assert sum(name.startswith("transfer-") for name in names) == 2
    assert {path.stem for path in (tmp_path / "report").glob("*.csv")} == set(names)


def test_file_names() -> None:
    assert file_name("by", "a/b:c d=1", "") == "by-a-b-c-d=1"
    assert file_name("../日本") == "-----"
    assert len(file_name("x" * 500)) == 80
    assert distinct(["a", "A", "b", "a", "a-2"]) == ["a", "A-2", "b", "a-3", "a-2-2"]


# The folder


def test_files_links_and_pictures(studied: Results, tmp_path: Path) -> None:
    tables = write_report(studied, tmp_path)
    page = check_page((tmp_path / "index.html").read_text(encoding="utf-8"))
    for one in tables:
        assert one.name in page.ids()
        assert (tmp_path / f"{one.name}.csv").is_file()
        assert (tmp_path / f"{one.name}.tex").is_file()
    assert {f"cell-{cell.cell}" for cell in studied.done} <= set(page.ids())
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    assert pictures == {path.stem for path in tmp_path.glob("*.svg")}
    assert pictures == {"similarity-panda", "similarity-eavg", "gain-panda", "gain-eavg"}
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            image.verify()
            assert image.format == "PNG"
            assert min(image.size) > 200
    for path in tmp_path.glob("*.svg"):
        assert xml.dom.minidom.parse(str(path)).documentElement.tagName == "svg"
    heat = xml.dom.minidom.parse(str(tmp_path / "similarity-eavg.svg"))
    texts = {"".join(node.data for node in text.childNodes) for text in heat.getElementsByTagName("text")}
    assert f"{np.mean([likeness(EAVG, 'qqp', 'cb', seed) for seed in SEEDS]):.2f}" in texts


def test_every_number_leads_to_its_cells(studied: Results, tmp_path: Path) -> None:
    write_report(studied, tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    number = numbers(table(studied, "transfer-prefix"))["qqp", "PanDa", "rte"]
    anchor = re.search(rf'href="#(cells-\w+)">{re.escape(number.text)}<', text)
    assert anchor
    group = re.search(rf'<li id="{anchor[1]}">(.*?)</li>', text)
    assert group
    expected = {r.cell for r in studied.of("panda") if (r.sources, r.target) == (("qqp",), "rte")}
    assert set(re.findall(r'href="#cell-(\w+)"', group[1])) == expected
    assert all(f'<tr id="cell-{cell}">' in text for cell in expected)


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    made = study()
    shuffled = made[:]
    random.Random(3).shuffle(shuffled)
    for name, records in (("one", made), ("two", shuffled)):
        found = results(tmp_path / name, records)
        write_report(found, tmp_path / name / "report")
    first = {path.name: path.read_bytes() for path in (tmp_path / "one" / "report").iterdir()}
    second = {path.name: path.read_bytes() for path in (tmp_path / "two" / "report").iterdir()}
    assert first == second
    write_report(load_results(tmp_path / "one"), tmp_path / "one" / "report")
    assert {path.name: path.read_bytes() for path in (tmp_path / "one" / "report").iterdir()} == first


def test_damaged_lines_are_reported(tmp_path: Path) -> None:
    results(tmp_path, study()[:20])
    with (tmp_path / FILE).open("a") as file:
        file.write('{"cell": "half a li\n\n[]\n')
    done = run("report", str(tmp_path), cwd=tmp_path)
    assert done.code == 0
    assert "2 lines" in done.err
    assert "21, 23" in done.err
    sentence = "2 damaged lines of records.jsonl left out (line 21, 23)."
    assert sentence in (tmp_path / "report" / "index.html").read_text()
    assert sentence in Page(MarkdownIt().render((tmp_path / "report" / "report.md").read_text())).text


def test_failed_cells_are_listed(tmp_path: Path) -> None:
    error = "The prompt diverged: its loss or gradient was not finite at learning rate 9; lower the rate."
    failed = record("panda", "cb", 7, ["mnli"], status="failed", error=error)
    again = record("vanilla", "cb", 0, ["mnli"], status="failed", error="first try")
    found = results(tmp_path, [failed, again, record("vanilla", "cb", 0, ["mnli"], cell=again.cell, best=0.5)])
    assert [r.cell for r in found.failed] == [failed.cell], "what was done later has not failed"
    write_report(found, tmp_path / "report")
    page = check_page((tmp_path / "report" / "index.html").read_text())
    assert error in page.cells
    assert "#failed" in [value for _, name, value in page.attributes if name == "href"]
    assert "first try" not in page.text
    markdown = Page(MarkdownIt().render((tmp_path / "report" / "report.md").read_text())).text
    assert error in markdown


def test_a_matrix_of_failures_alone(tmp_path: Path) -> None:
    found = results(tmp_path, [record("scratch", "cb", status="failed", error="No memory left.")])
    assert write_report(found, tmp_path / "report") == []
    page = check_page((tmp_path / "report" / "index.html").read_text())
    assert "No memory left." in page.cells
    assert "Backbone tiny." in page.text


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.7])
def test_a_half_finished_matrix_reports_what_is_there(tmp_path: Path, share: float) -> None:
    some = random.Random(5).sample(study(), round(share * len(study())))
    found = results(tmp_path, some)
    tables = write_report(found, tmp_path / "report")
    assert tables
    page = check_page((tmp_path / "report" / "index.html").read_text())
    assert {f"cell-{one.cell}" for one in some} <= set(page.ids())
    for one in tables:
        for row in one.rows:
            for number in row.numbers:
                assert number.value is None or np.isfinite(number.value)
                assert set(number.cells) <= {r.cell for r in some}
                assert (number.text == "–") == (not number.cells)


def test_missing_cells_are_not_zeros(tmp_path: Path) -> None:
    left_out = [r for r in study() if not (r.target == "rte" and r.seed == 2) and r.sources != ("squad",)]
    unfinished = [r for r in left_out if (r.system, r.target, r.sources) != ("panda", "rte", ("qqp",))]
    found = numbers(table(results(tmp_path, unfinished), "transfer-prefix"))
    assert found["qqp", "PanDa", "rte"].text == "–"
    assert found["qqp", "PanDa", "average"].text == "–"
    values = all_scores("panda", "cb")[SOURCES.index("qqp")]
    assert found["qqp", "PanDa", "cb"].value == pytest.approx(values.mean())
    assert found["best of top 3 by panda", "PanDa", "rte"].text == "–", "one of the three has no score yet"
    two = all_scores("vanilla", "rte")[0][:2]
    assert found["mnli", "vanilla", "rte"].deviation == pytest.approx(two.std(ddof=1))


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    found = results(tmp_path, [r for r in study() if r.seed in (0, 1000)])
    number = numbers(table(found, "transfer-prefix"))["mnli", "vanilla", "cb"]
    assert number.deviation is None
    assert "±" not in number.text


def test_prompts_from_scratch_alone(tmp_path: Path) -> None:
    """Figure 2: no transfer in it."""
    made = [
        record("scratch", "cb", seed, method=f"prefix:length=20,init={start}", best=score(start, "", "cb", seed))
        for start in ("normal", "sparse")
        for seed in SEEDS
    ]
    found = numbers(table(results(tmp_path, made), "systems"))
    values = [100 * score("sparse", "", "cb", seed) for seed in SEEDS]
    assert found["prompt tuning", "prefix:length=20,init=sparse", "cb"].value == pytest.approx(np.mean(values))


# The command


def error_of(done: Done) -> str:
    assert done.code == 1
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("Error: ")
    return lines[0]


def test_folders_without_records(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / FILE).write_text("\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / FILE).write_text("{\nnonsense\n")
    for name, reason in (
        ("missing", "There is no folder missing; "),
        ("empty", "Folder empty holds no records of a matrix (no records.jsonl); "),
        ("blank", "Folder blank holds no records of a matrix (its records.jsonl is empty); "),
        ("broken", "Folder broken holds no records of a matrix (all 2 lines of its records.jsonl are damaged); "),
    ):
        expected = f"Error: {reason}name the --out folder of `panda-fusion matrix`."
        assert error_of(run("report", name, cwd=tmp_path)) == expected
        with pytest.raises(RecipeError):
            load_results(tmp_path / name)
        assert not (tmp_path / name / "report").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    results(tmp_path, study()[:5])
    assert "Cannot read" in error_of(run("report", FILE, cwd=tmp_path))
    (tmp_path / "taken").write_text("mine")
    assert "Cannot write" in error_of(run("report", ".", "--out", "taken", cwd=tmp_path))
    assert (tmp_path / "taken").read_text() == "mine"
    with pytest.raises(OutputError):
        write_report(load_results(tmp_path), tmp_path / "taken")


def test_the_program(tmp_path: Path) -> None:
    """In a process of its own, which imports neither torch nor transformers."""
    results(tmp_path / "results", study())
    done = subprocess.run(
        [sys.executable, "-m", "panda_fusion_cli", "report", "results"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=poison(tmp_path)),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    count = len(study())
    assert done.stdout.startswith(f"{count} cells, 0 failed: ")
    path = Path(done.stdout.strip().split(": ", 1)[1])
    check_page((tmp_path / path).read_text(encoding="utf-8"))


def test_the_result_as_json(tmp_path: Path) -> None:
    results(tmp_path / "results", study())
    done = run("report", "results", "--out", "page", "--json", cwd=tmp_path)
    assert done.json["cells"] == len(study())
    assert (tmp_path / "page" / "index.html").is_file()
    assert done.json["tables"] == [one.name for one in all_tables(load_results(tmp_path / "results"))]
