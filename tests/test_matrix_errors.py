"""Matrices that go wrong: failed sources, lost prompts, other processes, full disks, workers that die."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from executor_jobs import job

from panda_fusion.backbone import Backbone, load_backbone
from panda_fusion.errors import OutputError, RecipeError, TrainingError
from panda_fusion.matrix import estimate
from panda_fusion.matrix import results_folder as folders
from panda_fusion.matrix.cells import Cell, expand
from panda_fusion.matrix.packs import Pack
from panda_fusion.matrix.plan import check_backbone, make_plan
from panda_fusion.matrix.recipe import read_recipe
from panda_fusion.matrix.records import append_records, read_records
from panda_fusion.matrix.results_folder import claim, open_folder, prompt_path
from panda_fusion.matrix.runner import Progress, run_packs
from panda_fusion.matrix.workshop import Workshop
from panda_fusion.matrix_record import CellRecord
from panda_fusion.plugin_manager import executors
from panda_fusion.tensor_cache import TensorCache
from panda_fusion_cli.commands.matrix import _run_workers
from panda_fusion_cli.main import main
from panda_fusion_cli.matrix_progress import MatrixProgress

RECIPE = """
model = "tiny"
targets = "tiny/contradiction"
methods = "prefix:length=2"
[training]
epochs = 1
samples = 40
max_length = 24
"""


def recipe(tmp_path: Path, first: str = 'systems = "scratch"\n', text: str = RECIPE) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(first + text)
    return path


def tiny_model() -> Backbone:
    return load_backbone("tiny", device=torch.device("cpu"), dtype=torch.float32)


def cell(seed: int, needs: tuple[str, ...] = ()) -> Cell:
    return Cell(
        system="vanilla" if needs else "scratch",
        model="tiny",
        target="t",
        sources=tuple("s" for _ in needs),
        method="prefix:length=2",
        learning_rate=0.01,
        epochs=1,
        max_steps=None,
        batch_size=8,
        samples=None,
        max_length=24,
        dropout=0.0,
        backbone_dropout=0.0,
        eval_every=None,
        select_on="validation",
        seed=seed,
        needs=needs,
    )


def record(of: Cell, status: str = "done", finished: str = "now", **values: Any) -> CellRecord:
    return CellRecord(
        cell=of.id,
        recipe="r",
        status=status,  # type: ignore[arg-type]
        system=of.system,
        model="tiny",
        target="t",
        method=of.method,
        seed=of.seed,
        finished=finished,
        **values,
    )


class Desk:
    """Stands for the workshop: notes what it is asked to run, and does what the test says."""

    def __init__(self, run: Callable[[Cell], str] = lambda _: "done", kept: Sequence[Cell] = ()) -> None:
        self.kept = {one.id for one in kept}
        self.ran: list[str] = []
        self._status = run

    def run(self, cells: Sequence[Cell], pack: str) -> list[CellRecord]:
        self.ran += [one.id for one in cells]
        if len(self.ran) > 20:
            pytest.fail("the same cells are run for ever")  # no Exception: those are records of failed cells
        return [record(one, self._status(one), "later") for one in cells]

    def failed(self, one: Cell, pack: str, error: BaseException) -> CellRecord:
        return record(one, "failed", "later", error=f"{type(error).__name__}: {error}")


def begin(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / folders.CLAIMS).mkdir(parents=True)
    return folder


# ---- working through packs


def test_a_failed_source_does_not_hurry_those_that_wait_for_another(tmp_path: Path) -> None:
    """Another process still trains the second source: what is made of it must wait, and not fail for want of it."""
    folder = begin(tmp_path)
    first, second = cell(0), cell(1)
    of_first, of_second = cell(2, (first.id,)), cell(3, (second.id,))
    append_records(folder, [record(first, "failed", error="no")])
    packs = [Pack((first,), "a"), Pack((second,), "b"), Pack((of_first, of_second), "c")]
    other = claim(folder, "b")
    assert other.__enter__()
    desk = Desk()

    def report(progress: Progress) -> None:
        if progress.waiting:
            assert desk.ran == []
            append_records(folder, [record(second)])
            other.__exit__(None, None, None)

    run_packs(packs, folder, desk, report)  # type: ignore[arg-type]
    assert desk.ran == [of_second.id]
    found = read_records(folder)
    assert set(found.done) == {second.id, of_second.id}
    assert (found.failed[of_first.id].error or "").startswith("TrainingError: It is made of cell")


def test_processes_that_retry_together_retry_each_cell_once(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    ours, theirs = cell(0), cell(1)
    append_records(folder, [record(ours, "failed"), record(theirs, "failed")])

    def run(one: Cell) -> str:
        if one is ours:  # meanwhile
            append_records(folder, [record(theirs, "failed", "meanwhile")])
        return "failed"

    desk = Desk(run)
    run_packs([Pack((ours,), "a"), Pack((theirs,), "b")], folder, desk, retry_failed=True)  # type: ignore[arg-type]
    assert desk.ran == [ours.id]


def test_a_cell_that_another_process_has_just_retried_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record comes between our look at the records and our claim."""
    from panda_fusion.matrix import runner

    folder = begin(tmp_path)
    one = cell(0)
    append_records(folder, [record(one, "failed")])
    real = runner.claim

    def late(where: Path, pack: str) -> Any:
        append_records(folder, [record(one, "done", "meanwhile")])
        return real(where, pack)

    monkeypatch.setattr(runner, "claim", late)
    desk = Desk()
    run_packs([Pack((one,), "a")], folder, desk, retry_failed=True)  # type: ignore[arg-type]
    assert desk.ran == []


def test_a_lost_prompt_that_cannot_be_made_again_is_tried_once(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    source = cell(0)
    made = cell(1, (source.id,))
    append_records(folder, [record(source)])
    assert not prompt_path(folder, source.id).exists()
    desk = Desk(lambda _: "failed", kept=[source])
    run_packs([Pack((source,), "a"), Pack((made,), "b")], folder, desk)  # type: ignore[arg-type]
    assert desk.ran == [source.id]
    assert set(read_records(folder).failed) == {made.id}


# ---- the disk

FULL = """
import resource, sys
from pathlib import Path
import msgspec
from panda_fusion.errors import OutputError
from panda_fusion.matrix.records import append_records
from panda_fusion.matrix_record import CellRecord
folder = Path(sys.argv[1])
one = msgspec.json.decode(sys.argv[2], type=CellRecord)
size = (folder / "records.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 900, resource.RLIM_INFINITY))
try:
    append_records(folder, [one] * 3)
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on the size of files stands for the full disk")
def test_a_disk_that_fills_up_within_a_line_leaves_nothing_of_it(tmp_path: Path) -> None:
    """The part that did not fit must not follow when the file is closed."""
    one = record(cell(0))
    append_records(tmp_path, [one])
    before = (tmp_path / "records.jsonl").read_bytes()
    assert 450 < len(before) < 900
    line = msgspec.json.encode(one).decode()
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path), line], capture_output=True, text=True, check=True)
    assert "file too large; the records that it holds are kept" in done.stdout
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_locks_that_cannot_be_made_are_errors_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders.FileLock, "acquire", full)
    with (
        pytest.raises(OutputError, match=r"claims: no space left on device; correct that"),
        claim(begin(tmp_path), "p"),
    ):
        pass
    with pytest.raises(OutputError, match=r"records\.jsonl: no space left on device"):
        append_records(tmp_path, [record(cell(0))])


def test_a_folder_with_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "claims").write_text("")
    with pytest.raises(OutputError, match=r"Cannot write .*claims: file exists"):
        open_folder(tmp_path, read_recipe(recipe(tmp_path)), 1)


# ---- the plan


def test_an_empty_set_of_sources_is_refused(tmp_path: Path) -> None:
    first = 'systems = "panda"\nfusions = "late"\nsource_sets = [["tiny/nli"], []]\n'
    with pytest.raises(RecipeError, match="`source_sets` holds an empty set"):
        read_recipe(recipe(tmp_path, first))


def test_prompt_files_are_checked_before_anything_runs(
    tmp_path: Path, tiny_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """One is damaged; one is of another backbone; one of another method than training should start from it with."""
    damaged, good = tmp_path / "damaged.safetensors", tmp_path / "good.safetensors"
    damaged.write_bytes(b"no prompt")
    words = ["--model", "tiny", "--method", "prefix:length=2", "--max-steps", "1", "--out", str(good)]
    assert main(["train", "--task", "tiny/sentiment", *words]) == 0
    with pytest.raises(RecipeError, match=r"1 problem.*damaged\.safetensors"):
        make_plan(read_recipe(recipe(tmp_path, f'systems = "vanilla"\nsources = ["{damaged}", "{good}"]\n')))
    path = recipe(tmp_path, f'systems = "vanilla"\nsources = "{good}"\n')
    out = str(tmp_path / "out")
    assert main(["matrix", str(path), "--out", out, "--model", str(tiny_folder("roberta"))]) == 1
    error = capsys.readouterr().err
    assert "The recipe has 1 problem, and nothing was run" in error
    assert "good.safetensors was trained on" in error
    path.write_text(path.read_text().replace("length=2", "length=3"))
    assert main(["matrix", str(path), "--out", out]) == 1
    assert "so training cannot start from it with prefix:length=3" in capsys.readouterr().err
    assert not Path(out).exists()
    path.write_text(path.read_text().replace("length=3", "length=2"))
    check_backbone(make_plan(read_recipe(path)), tiny_model())


def test_the_estimate_counts_the_rows_that_teachers_see(tmp_path: Path) -> None:
    """40 rows of the recipe's samples, not the whole training set; early fusion is one pass; lambdas share theirs."""
    first = 'systems = "panda"\nsource_sets = [["tiny/nli", "tiny/sentiment"]]\nfusions = ["early", "late"]\n'
    plan = make_plan(read_recipe(recipe(tmp_path, first + "lambdas = [0.05, 0.5]\n")))
    assert plan.rows["tiny/contradiction"] > 40
    assert plan.teacher_rows() == (1 + 2) * 40
    training = sum(plan.training_rows(one) for one in plan.cells)
    assert estimate.seconds(plan, 10.0) == pytest.approx((training + 120 / 3) / 10)


def test_workers_share_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    from panda_fusion import activation_memory

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2400))
    monkeypatch.setattr(activation_memory, "activation_bytes", lambda *_: 100)
    cells = tuple(expand(read_recipe(recipe(tmp_path))))
    backbone = tiny_model()
    assert [estimate.pack_size(backbone, cells, workers) for workers in (1, 2, 3, 50)] == [12, 6, 4, 1]


# ---- the workshop


def test_texts_are_kept_once_for_all_prompt_lengths(tmp_path: Path) -> None:
    path = recipe(tmp_path, text=RECIPE.replace('"prefix:length=2"', '["prefix:length=2", "prefix:length=3"]'))
    first, second = expand(read_recipe(path))
    workshop = Workshop(tiny_model(), None, tmp_path, "", set())
    assert workshop.encoded(first) is workshop.encoded(second)


def test_a_second_matrix_on_the_same_rows_tokenises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = next(iter(expand(read_recipe(recipe(tmp_path)))))
    cache = TensorCache(tmp_path / "tokens")
    made = Workshop(tiny_model(), None, tmp_path, "", set(), cache).encoded(one)
    monkeypatch.setattr("panda_fusion.token_cache.encode_split", None)  # cannot be called
    found = Workshop(tiny_model(), None, tmp_path, "", set(), cache).encoded(one)
    assert torch.equal(found.train.input_ids, made.train.input_ids)
    assert torch.equal(found.validation.input_ids, made.validation.input_ids)


def test_a_prompt_file_twice_in_a_set_leaves_the_targets_own_in_place(tmp_path: Path) -> None:
    file = "a.safetensors"
    one = msgspec.structs.replace(cell(0, ("own",)), sources=(file, file), files={file: "0"})
    workshop = Workshop(None, None, tmp_path, "", set())  # type: ignore[arg-type]
    own: Any = object()
    workshop._prompts[prompt_path(tmp_path, "own")] = own
    assert workshop._own(one) is own


# ---- workers


def test_jobs_that_die_or_raise_what_cannot_be_read_take_no_other_with_them() -> None:
    found = dict(executors().create("local:processes=2").run(job, ["dies", "unreadable", "fine"]))
    assert found["fine"] == "fine"
    assert isinstance(found["dies"], TrainingError)
    assert "exit code 3 and no result" in str(found["dies"])
    assert isinstance(found["unreadable"], TrainingError)
    assert "cannot be read" in str(found["unreadable"])


ORPHANS = """
import sys, time
from pathlib import Path
from panda_fusion.plugin_manager import executors
from executor_jobs import stay
if __name__ == "__main__":
    list(executors().create("local:processes=2").run(stay, sys.argv[1:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    parent = subprocess.Popen([sys.executable, str(script), *map(str, files)], env=environment)
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(alive(int(file.read_text())) for file in files))


def wait_for(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 40
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.1)


def alive(process: int) -> bool:
    """A zombie that nobody waits for counts as dead."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Screen:
    """Stands for the command's output."""

    quiet = False

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_a_dead_worker_is_a_warning_where_others_did_its_work(tmp_path: Path) -> None:
    first, second = cell(0), cell(1)
    folder = begin(tmp_path)
    work = SimpleNamespace(folder=folder, plan=SimpleNamespace(cells=(first, second)))
    error = TrainingError("It died.")
    chosen = SimpleNamespace(workers=lambda: 1, run=lambda _, jobs: [(jobs[0], error)])
    progress = SimpleNamespace(watch=lambda folder, ended: ended.wait())
    screen: Any = Screen()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("panda_fusion_cli.commands.matrix.replace", lambda job, **_: job)
        append_records(folder, [record(first)])
        with pytest.raises(TrainingError, match="It died"):
            _run_workers(screen, chosen, work, progress)  # type: ignore[arg-type]
        append_records(folder, [record(second, "failed")])
        _run_workers(screen, chosen, work, progress)  # type: ignore[arg-type]
    assert screen.warnings == ["A worker ended early, and the others did its work: It died."]


def test_failed_cells_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(read_recipe(recipe(tmp_path, 'systems = "scratch"\nseeds = [0, 1, 2, 3]\n')))
    screen: Any = Screen()
    progress = MatrixProgress(screen, plan, read_records(tmp_path))
    progress._begun -= 60
    for done, failed in ((2, 1), (2, 2)):
        progress.report(Progress(4, done, failed))
    lines = capsys.readouterr().err.splitlines()
    assert [("left" in line, "about 0 min" in line or "about 1 min" in line) for line in lines] == [
        (True, True),
        (False, False),
    ]
