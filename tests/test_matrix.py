"""Recipes, plans, packs, records and claims of a matrix."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from panda_fusion.errors import OutputError, RecipeError
from panda_fusion.matrix import records as record_files
from panda_fusion.matrix.cells import expand
from panda_fusion.matrix.packs import make_packs
from panda_fusion.matrix.plan import make_plan
from panda_fusion.matrix.recipe import read_recipe
from panda_fusion.matrix.records import append_records, read_records
from panda_fusion.matrix.results_folder import claim, open_folder
from panda_fusion.matrix_record import CellRecord
from panda_fusion.plugin_manager import peft_methods
from panda_fusion_cli.main import main

SMALL = """
model = "tiny"
sources = ["tiny/nli", "tiny/sentiment"]
targets = ["tiny/contradiction"]
systems = ["scratch", "vanilla", "panda", "similarity"]
source_sets = [["tiny/nli", "tiny/sentiment"]]
fusions = ["single", "late"]
lambdas = [0.05, 0.5]
transferability = ["panda", "eavg"]
seeds = [0, 1]
methods = "prefix:length=2"
[training]
epochs = 2
samples = 40
max_length = 24
dropout = 0.0
"""
CLAIM = """
import sys
from pathlib import Path
from panda_fusion.matrix.results_folder import claim
with claim(Path(sys.argv[1]), "p") as mine:
    print(mine)
"""
TIMES = ("finished", "train_seconds", "teacher_seconds", "samples_per_second", "pack", "pack_size")


def recipe(tmp_path: Path, text: str = SMALL, name: str = "recipe.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def run(*arguments: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "panda_fusion_cli", "matrix", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert check is None or done.returncode == check, done.stderr
    return done


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Records by cell, without what another run cannot repeat."""
    found = {}
    for cell, record in read_records(folder).done.items():
        values = msgspec.to_builtins(record)
        found[cell] = {name: value for name, value in values.items() if name not in TIMES}
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matrix that ran through, two prompts a pack."""
    folder = tmp_path_factory.mktemp("matrix")
    run(str(recipe(folder)), "--out", str(folder / "out"), "--pack-size", "2")
    return folder / "out"


# ---- recipes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("seeds = ", "seed = "), "unknown key 'seed'; nearest: seeds"),
        (("epochs = 2", "epoch = 2"), "unknown key 'training.epoch'; nearest: epochs"),
        (('targets = ["tiny/contradiction"]', "targets = []"), "`targets` is an empty list"),
        (("samples = 40", "samples = []"), "`training.samples` is an empty list"),
        (('targets = ["tiny/contradiction"]', ""), "missing required field `targets`"),
        (("epochs = 2", 'epochs = "two"'), "Expected `int"),
        (('model = "tiny"', ""), "names no `model`"),
        (("seeds = [0, 1]", "seeds = ["), "is not TOML"),
    ],
)
def test_bad_recipes(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(recipe(tmp_path, SMALL.replace(*change)))
    assert words in str(caught.value)


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = SMALL.replace("tiny/contradiction", "tiny/similarity").replace('"tiny/nli", ', '"tiny/nlii", ', 1)
    text = text.replace('methods = "prefix:length=2"', 'methods = "prefixx"\nkds = ["mse", "kll"]')
    with pytest.raises(RecipeError) as caught:
        make_plan(read_recipe(recipe(tmp_path, text)))
    message = str(caught.value)
    for words in ("The recipe has 3 problems, and nothing was run", "'tiny/nlii'", "'prefixx'", "'kll'"):
        assert words in message
    text = SMALL.replace("tiny/contradiction", "tiny/similarity").replace(
        "[training]", 'kds = ["mse", "kl"]\n[training]'
    )
    with pytest.raises(RecipeError, match="Target 'tiny/similarity': KD loss 'kl' is not defined for a regression"):
        make_plan(read_recipe(recipe(tmp_path, text)))
    with pytest.raises(RecipeError, match="needs `source_sets`"):
        make_plan(read_recipe(recipe(tmp_path, SMALL.replace("source_sets", "#"))))


def test_what_the_backbone_does_not_take_is_said_before_anything_runs(
    tmp_path: Path, tiny_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A decoder has no head for multiple choice; a length has no positions; both at once, and no folder is made."""
    for split, rows in (("train", 4), ("validation", 2)):
        lines = [{"question": "which", "one": f"a {i}", "two": f"b {i}", "label": i % 2} for i in range(rows)]
        path = tmp_path / "data" / "pick" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = 'kind = "multiple-choice"\ninputs = ["question"]\nlabel = "label"\n[columns]\nchoices = ["one", "two"]\n'
    (tmp_path / "data" / "pick" / "task.toml").write_text(task)
    text = (
        f'targets = ["{tmp_path}/data/pick", "tiny/nli"]\nsystems = "scratch"\n'
        '[training]\nmax_length = 20\n[tasks."tiny/nli"]\nmax_length = 500\n'
    )
    words = ["matrix", str(recipe(tmp_path, text)), "--out", str(tmp_path / "out"), "--model", str(tiny_folder("opt"))]
    assert main(words) == 1
    message = capsys.readouterr().err
    assert "The recipe has 2 problems, and nothing was run" in message
    assert "has no head for multiple-choice tasks" in message
    assert "texts of up to 500 tokens need 520 positions" in message
    assert not (tmp_path / "out").exists()


def test_axes_that_do_not_apply_make_no_cells(tmp_path: Path) -> None:
    cells = expand(read_recipe(recipe(tmp_path)))
    assert len({cell.id for cell in cells}) == len(cells)
    asked: dict[str, int] = {}
    for cell in cells:
        if cell.asked:
            asked[cell.system] = asked.get(cell.system, 0) + 1
    # 2 seeds; times 2 sources; times (2 sources + 1 set) and 2 lambdas; times 2 sources
    assert asked == {"scratch": 2, "vanilla": 4, "panda": 12, "similarity": 4}
    sources = [cell for cell in cells if not cell.asked]
    assert {(cell.target, cell.seed) for cell in sources} == {
        (task, seed) for task in ("tiny/nli", "tiny/sentiment") for seed in (1000, 1001)
    }
    by_id = {cell.id: cell for cell in cells}
    for cell in cells:
        needed = [by_id[need] for need in cell.needs]
        assert [one.target for one in needed[: len(cell.sources)]] == list(cell.sources)
        assert all(one.seed == cell.seed + 1000 for one in needed[: len(cell.sources)])
        assert all((one.target, one.seed) == (cell.target, cell.seed) for one in needed[len(cell.sources) :])


def test_settings_of_a_task_come_before_all_others(tmp_path: Path) -> None:
    text = SMALL + '[source]\nepochs = 3\n[tasks."tiny/nli"]\nepochs = 5\n'
    cells = expand(read_recipe(recipe(tmp_path, text)))
    epochs = {cell.target: cell.epochs for cell in cells if cell.system == "scratch"}
    assert epochs == {"tiny/nli": 5, "tiny/sentiment": 3, "tiny/contradiction": 2}


def test_the_papers_preset(tmp_path: Path) -> None:
    text = 'model = "tiny"\npreset = "paper"\ntargets = ["cb", "rte"]\nsystems = "scratch"\n[tasks.rte]\nepochs = 3\n'
    cells = {cell.target: cell for cell in expand(read_recipe(recipe(tmp_path, text)))}
    assert (cells["cb"].learning_rate, cells["cb"].batch_size, cells["cb"].epochs) == (1e-2, 16, 100)
    assert (cells["rte"].learning_rate, cells["rte"].batch_size, cells["rte"].epochs) == (1e-2, 32, 3)


def test_the_preset_says_nothing_of_the_rate_of_model_tuning(tmp_path: Path) -> None:
    """Table I's rates are those of prompts."""
    text = 'model = "tiny"\npreset = "paper"\ntargets = "cb"\nsystems = ["scratch", "full"]\n'
    rates = {cell.system: cell.learning_rate for cell in expand(read_recipe(recipe(tmp_path, text)))}
    assert rates == {"scratch": 1e-2, "full": peft_methods().create("full").learning_rate}


def test_a_task_may_be_its_own_source(tmp_path: Path) -> None:
    """As in nine of the paper's 189 pairs; the source prompt is another one than the target's own."""
    text = 'model = "tiny"\nsources = ["tiny/nli", "tiny/sentiment"]\ntargets = "tiny/nli"\n'
    cells = expand(read_recipe(recipe(tmp_path, text + 'systems = ["vanilla", "similarity"]\n')))
    pairs = {(cell.system, cell.sources) for cell in cells if cell.sources}
    assert pairs == {(s, (name,)) for s in ("vanilla", "similarity") for name in ("tiny/nli", "tiny/sentiment")}
    (own,) = [cell for cell in cells if cell.system == "similarity" and cell.sources == ("tiny/nli",)]
    by_id = {cell.id: cell for cell in cells}
    assert [(by_id[need].target, by_id[need].seed) for need in own.needs] == [("tiny/nli", 1000), ("tiny/nli", 0)]


def test_packs_share_what_must_be_shared(tmp_path: Path) -> None:
    cells = expand(read_recipe(recipe(tmp_path, SMALL.replace('"similarity"]', '"similarity", "full"]'))))
    packs = make_packs(cells, 4)
    assert sorted(cell.id for pack in packs for cell in pack.cells) == sorted(cell.id for cell in cells)
    for pack in packs:
        assert len(pack.cells) <= (1 if pack.cells[0].system == "full" else 4)
        assert len({(cell.target, cell.method, cell.epochs, cell.samples, cell.trains) for cell in pack.cells}) == 1
    assert [pack.id for pack in make_packs(cells, 4)] == [pack.id for pack in packs]


# ---- records


def record(cell: str, status: str = "done", **values: Any) -> CellRecord:
    return CellRecord(
        cell=cell,
        recipe="r",
        status=status,
        system="scratch",
        model="m",
        target="t",
        method="p",
        seed=0,
        finished="now",
        **values,
    )  # type: ignore[arg-type]


def test_a_torn_line_spoils_no_other(tmp_path: Path) -> None:
    append_records(tmp_path, [record("a"), record("b", "failed", error="no")])
    path = tmp_path / record_files.FILE
    path.write_bytes(path.read_bytes() + b'{"cell": "c", "rec')
    append_records(tmp_path, [record("d")])
    found = read_records(tmp_path)
    assert set(found.done) == {"a", "d"}
    assert set(found.failed) == {"b"}
    assert found.damaged == (3,)
    append_records(tmp_path, [record("b")])
    assert not read_records(tmp_path).failed


def test_a_full_disk_loses_nothing_that_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_records(tmp_path, [record("a")])
    before = (tmp_path / record_files.FILE).read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(record_files.os, "fsync", full)
        with pytest.raises(
            OutputError, match=r"records\.jsonl: no space left on device; the records that it holds are kept"
        ):
            append_records(tmp_path, [record("b")])
    assert (tmp_path / record_files.FILE).read_bytes() == before
    append_records(tmp_path, [record("b")])
    assert set(read_records(tmp_path).done) == {"a", "b"}


def test_a_folder_belongs_to_one_recipe(tmp_path: Path) -> None:
    first = read_recipe(recipe(tmp_path))
    assert open_folder(tmp_path / "out", first, 5).pack_size == 5
    assert open_folder(tmp_path / "out", first, 9).pack_size == 5
    other = read_recipe(recipe(tmp_path, SMALL.replace("epochs = 2", "epochs = 3")))
    with pytest.raises(RecipeError, match="holds the results of another recipe"):
        open_folder(tmp_path / "out", other, 5)


def test_a_pack_is_claimed_once(tmp_path: Path) -> None:
    open_folder(tmp_path, read_recipe(recipe(tmp_path)), 1)
    with claim(tmp_path, "p") as first:
        other = subprocess.run([sys.executable, "-c", CLAIM, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (first, other.stdout.strip()) == (True, "False")
    with claim(tmp_path, "p") as again:
        assert again


# ---- whole runs


def test_every_cell_has_a_record(undisturbed: Path) -> None:
    found = read_records(undisturbed)
    assert (len(found.done), len(found.failed), found.damaged) == (26, 0, ())
    for one in found.done.values():
        assert 0 <= (one.best or 0) <= 1
        if one.system == "panda":
            assert len(one.similarities) == len(one.sources)
            assert one.teacher_seconds is not None
        if one.system == "similarity":
            assert set(one.transferability) == {"panda:samples=own,count=100", "eavg"}
        else:
            assert one.steps == 4
            assert [point[1] for point in one.history] == [1.0, 2.0]
            assert one.first_epoch == one.history[0][2]


def test_again_nothing_runs(undisturbed: Path, tmp_path: Path) -> None:
    before = (undisturbed / "records.jsonl").read_bytes()
    done = run(str(recipe(tmp_path)), "--out", str(undisturbed), "--json")
    assert json.loads(done.stdout)["done"] == 26
    assert (undisturbed / "records.jsonl").read_bytes() == before


def close(first: Any, second: Any) -> bool:
    """Equal, numbers up to rounding."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(close(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(close, first, second))
    return first == (pytest.approx(second, abs=0.06) if isinstance(second, float) else second)


def test_packs_of_another_size_give_the_same_records(tmp_path: Path) -> None:
    """In float32 and without dropout; a score may differ by a row or two, where rounding decides a tie."""
    text = SMALL.replace("seeds = [0, 1]", "seeds = 0").replace('"vanilla", ', "")
    for size in ("1", "8"):
        run(str(recipe(tmp_path, text)), "--out", str(tmp_path / size), "--pack-size", size, "--precision", "fp32")
    one, many = results(tmp_path / "1"), results(tmp_path / "8")
    assert one.keys() == many.keys()
    differing = [cell for cell in one if not close(one[cell], many[cell])]
    assert not differing


def test_killed_at_random_moments_the_records_are_the_same(undisturbed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "panda_fusion_cli", "matrix", str(recipe(tmp_path))]
    command += ["--out", str(tmp_path / "out"), "--pack-size", "2"]
    for seconds in (3.0, 4.0, 5.0):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(*command[4:])
    assert results(tmp_path / "out") == results(undisturbed)


def test_two_processes_share_a_folder(undisturbed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "panda_fusion_cli", "matrix", str(recipe(tmp_path))]
    command += ["--out", str(tmp_path / "out"), "--pack-size", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    assert len(lines) == 26
    assert results(tmp_path / "out").keys() == results(undisturbed).keys()


def test_workers_of_the_local_executor(undisturbed: Path, tmp_path: Path) -> None:
    run(str(recipe(tmp_path)), "--out", str(tmp_path / "out"), "--executor", "local:processes=2", "--pack-size", "2")
    assert results(tmp_path / "out").keys() == results(undisturbed).keys()


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    text = SMALL.replace("dropout = 0.0", "dropout = 0.0\nlr = [1e-2, 1e30]").replace(
        '"panda", "similarity"', '"similarity"'
    )
    text = text.replace("lambdas = [0.05, 0.5]", "").replace(
        'systems = ["scratch", "vanilla", "similarity"]', 'systems = ["scratch"]'
    )
    done = run(str(recipe(tmp_path, text)), "--out", str(tmp_path / "out"), check=1)
    found = read_records(tmp_path / "out")
    assert {one.learning_rate for one in found.done.values()} == {1e-2}
    assert {one.learning_rate for one in found.failed.values()} == {1e30}
    assert all("diverged" in (one.error or "") or "finite" in (one.error or "") for one in found.failed.values())
    assert done.stderr.count("Error:") == 1
    assert "2 of 4 cells failed" in done.stderr
    again = run(str(recipe(tmp_path, text)), "--out", str(tmp_path / "out"), "--retry-failed", check=1)
    assert "2 of 4 cells failed" in again.stderr


def test_a_damaged_record_is_named_and_its_cell_runs_again(undisturbed: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(undisturbed, tmp_path / "out")
    path = tmp_path / "out" / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[6] = lines[6][:40] + b"#\n"
    path.write_bytes(b"".join(lines))
    done = run(str(recipe(tmp_path)), "--out", str(tmp_path / "out"))
    assert "are no records (line 7)" in done.stderr
    assert results(tmp_path / "out") == results(undisturbed)


def test_dry_run_counts_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["matrix", str(recipe(tmp_path)), "--out", str(tmp_path / "out"), "--dry-run", "--no-probe", "--json"])
        == 0
    )
    plan = json.loads(capsys.readouterr().out)
    assert plan["cells"] == 26
    assert plan["training_rows"] == 22 * 2 * 40
    # per seed: two single sources and a set of two; lambdas share their teachers
    assert plan["teacher_passes"] == 2 * (1 + 1 + 2)
    assert not (tmp_path / "out").exists()


ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_ready_recipes_expand(path: Path) -> None:
    read = read_recipe(path, model="tiny")
    assert read.description
    cells = expand(read)
    assert cells
    assert len({cell.id for cell in cells}) == len(cells)
