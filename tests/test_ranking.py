"""Ranking: many prompts in few passes, task embeddings kept on disk, and the probe's own random draws."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_samples import CLASSES, encoded, largest, method, pack, texts
from scipy.spatial.distance import cosine
from transformers import AutoModel

from panda_fusion.backbone import Backbone
from panda_fusion.dataset import EncodedSet, encode
from panda_fusion.encoded_task import EncodedTask
from panda_fusion.errors import BackboneError, OptionError, PromptFileError
from panda_fusion.plugin_manager import similarities
from panda_fusion.prompt import Prompt
from panda_fusion.prompt_embedding import embeddings_on, with_task_embedding
from panda_fusion.random_streams import random_stream, stream_seed
from panda_fusion.ranking import score_sources, target_for, train_probe
from panda_fusion.rows import Split
from panda_fusion.run import RunSettings, task_info
from panda_fusion.similarity import SimilarityContext
from panda_fusion.students import new_students
from panda_fusion.task_embedding import task_embeddings
from panda_fusion.tensor_cache import (
    EMBEDDINGS,
    TensorCache,
    cache_key,
    digest_prompt,
    digest_samples,
    user_cache,
)
from panda_fusion.trainer import TrainSettings

Folder = Callable[[str], Path]
Tiny = Callable[[str], Backbone]
TARGET = "panda:samples=target"


def prompt(backbone: Backbone, seed: int, spec: str = "prefix:length=4") -> Prompt:
    """A prompt without a task embedding, as one that was imported."""
    peft = method(spec)
    tensors = {name: tensor[0] for name, tensor in pack(peft, backbone, 1, seed).items()}
    return Prompt(
        method=peft.spec,
        tensors=tensors,
        head={},
        embedding=None,
        backbone=backbone.info,
        task=task_info(CLASSES),
        path=f"prompt-{seed}.safetensors",
    )


def samples_of(backbone: Backbone, count: int = 9, seed: int = 3) -> EncodedSet:
    return encode(backbone, [texts(count, seed)], [0] * count, "classification", 40)


def task_of(backbone: Backbone, count: int = 24) -> EncodedTask:
    data = encoded(backbone, CLASSES, count)
    return EncodedTask(CLASSES, data, data, None, data.subset(range(10)), ())


def settings(rate: float = 1e-2) -> RunSettings:
    return RunSettings(TrainSettings(epochs=1, batch_size=8, dropout=0.0), rate, 40)


@contextmanager
def counted(backbone: Backbone) -> Iterator[list[int]]:
    """Rows of every forward pass inside the block."""
    passes: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        forward = backbone.forward

        def counting(input_ids: torch.Tensor, *rest: object, **named: object) -> torch.Tensor:
            passes.append(input_ids.shape[0])
            return forward(input_ids, *rest, **named)  # type: ignore[arg-type]

        patch.setattr(backbone, "forward", counting)
        yield passes


# Many prompts at once


def test_21_prompts_cost_22_passes_of_the_samples_packed(tiny: Tiny) -> None:
    """One per prompt and one without, in hardly more calls of the backbone than one prompt takes."""
    backbone = tiny("bert")
    samples = encode(backbone, [texts(100, 1)], None, "classification", 40)
    prompts = [prompt(backbone, seed) for seed in range(21)]
    with counted(backbone) as alone:
        embeddings_on(prompts[:1], backbone, samples)
    assert sum(alone) == 2 * len(samples)
    with counted(backbone) as packed:
        found = embeddings_on(prompts, backbone, samples)
    assert sum(packed) == 22 * len(samples)
    assert len(packed) < 15
    assert found.shape == (21, backbone.shape.hidden)


def test_prompts_of_any_method_share_the_pass_without_a_prompt(tiny: Tiny) -> None:
    """Each embedding is what `task_embeddings` gives the prompt alone; that is tested against PEFT elsewhere."""
    backbone, samples = tiny("bert"), samples_of(tiny("bert"))
    specs = ["prefix:length=4", "prompt:length=3", "prefix:length=2", "prefix:length=4", "prompt:length=3"]
    prompts = [prompt(backbone, seed, spec) for seed, spec in enumerate(specs)]
    with counted(backbone) as passes:
        found = embeddings_on(prompts, backbone, samples)
    assert sorted(passes) == [9, 9, 18, 18]
    for one, embedding in zip(prompts, found, strict=True):
        tensors = {name: tensor[None] for name, tensor in one.tensors.items()}
        assert largest(embedding, task_embeddings(backbone, method(one.method), tensors, samples)[0]) <= 1e-5


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_target_samples_against_the_plain_model(model_type: str, tiny: Tiny, tiny_folder: Folder) -> None:
    """Prompts inserted by hand in front of each text of the target, one text at a time, no padding."""
    backbone = tiny(model_type)
    rows = texts(7, 5)
    data = encode(backbone, [rows], None, "classification", 40)
    task = replace(task_of(backbone), samples=data)
    prompts = [prompt(backbone, seed, "prompt:length=3") for seed in (1, 2, 3)]
    model = AutoModel.from_pretrained(tiny_folder(model_type), attn_implementation="eager", dtype=torch.float32).eval()
    shifts = np.zeros((3, len(rows), backbone.shape.hidden))
    with torch.no_grad():
        for place, row in enumerate(rows):
            ids = backbone.tokenizer(row, return_tensors="pt")["input_ids"]
            plain = model(input_ids=ids).last_hidden_state[0, 0]
            words = model.get_input_embeddings()(ids)
            for number, one in enumerate(prompts):
                inputs = torch.cat((one.tensors["embedding"][None], words), dim=1)
                shifts[number, place] = (model(inputs_embeds=inputs).last_hidden_state[0, 3] - plain).double().numpy()
    means = shifts.mean(1)
    expected = [1 - cosine(mean, means[2]) for mean in means]
    found = score_sources(backbone, similarities().create(TARGET), prompts, prompts[2], task)
    assert found == pytest.approx(expected, abs=1e-4)
    assert found[2] == pytest.approx(1.0)


def test_own_samples_run_no_pass(tiny: Tiny) -> None:
    backbone = tiny("bert")
    generator = torch.Generator().manual_seed(0)
    prompts = [
        replace(prompt(backbone, seed), embedding=torch.randn(backbone.shape.hidden, generator=generator))
        for seed in range(3)
    ]
    with counted(backbone) as passes:
        score_sources(backbone, similarities().create("panda"), prompts[:2], prompts[2], task_of(backbone))
    assert passes == []


def test_sources_are_checked_before_a_probe_is_paid_for(tiny: Tiny) -> None:
    backbone = tiny("bert")
    bare, task = prompt(backbone, 1), task_of(backbone)
    with counted(backbone) as passes, pytest.raises(PromptFileError, match=r"--similarity panda:samples=target"):
        target_for(
            similarities().create("panda"),
            [bare],
            None,
            backbone,
            method("prefix:length=4"),
            task,
            settings(),
            steps=2,
            seed=0,
        )
    assert passes == []


def test_samples_too_long_for_one_of_the_prompts(tiny: Tiny) -> None:
    backbone = tiny("bert")
    long = prompt(backbone, 1, "prefix:length=120")
    with pytest.raises(BackboneError, match=r"^120 virtual tokens and texts of up to \d+ tokens need"):
        embeddings_on([long], backbone, samples_of(backbone))


def test_number_of_samples_of_a_task_embedding(tiny: Tiny) -> None:
    """Table VIII: as many class-balanced rows as asked for."""
    backbone = tiny("bert")
    split = Split(texts=(tuple(texts(30, 2)),), labels=tuple(number % 2 for number in range(30)))
    for count in (4, 30):
        with counted(backbone) as passes:
            made = with_task_embedding(prompt(backbone, 1), backbone, split, 40, count)
        assert sum(passes) == 2 * count
        assert made.embedding is not None
        assert made.embedding.shape == (backbone.shape.hidden,)


# The cache


def test_the_second_ranking_runs_no_pass(tiny: Tiny, tmp_path: Path) -> None:
    backbone, samples = tiny("bert"), samples_of(tiny("bert"))
    prompts = [prompt(backbone, seed) for seed in range(4)]
    fresh = embeddings_on(prompts, backbone, samples)
    first = TensorCache(tmp_path / "cache")
    assert largest(embeddings_on(prompts[:3], backbone, samples, first), fresh[:3]) <= 1e-6
    assert (first.found, first.missed) == (0, 3)
    second = TensorCache(tmp_path / "cache")
    with counted(backbone) as passes:
        kept = embeddings_on(prompts[:3], backbone, samples, second)
    assert (passes, second.found, second.missed) == ([], 3, 0)
    assert largest(kept, fresh[:3]) <= 1e-6
    with counted(backbone) as passes:  # what is new is computed, and that alone
        both = embeddings_on(prompts[::-1], backbone, samples, second)
    assert sum(passes) == 2 * len(samples)
    assert largest(both, fresh.flip(0)) <= 1e-6


def test_what_an_entry_depends_on(tiny: Tiny) -> None:
    backbone, samples, one = tiny("bert"), samples_of(tiny("bert")), prompt(tiny("bert"), 1)

    def key(own: Backbone = backbone, made: Prompt = one, data: EncodedSet = samples) -> str:
        return cache_key(EMBEDDINGS, own, digest_prompt(made), digest_samples(data))

    moved = {name: tensor.clone() for name, tensor in one.tensors.items()}
    moved["value"].view(-1)[-1] += 1e-6
    others = [
        key(own=tiny("roberta")),
        key(made=replace(one, tensors=moved)),
        key(made=replace(one, method="prefix:length=4,projection=8")),
        key(data=samples_of(backbone, seed=4)),
        key(data=samples_of(backbone, count=8)),
        key(data=samples.subset(list(range(8, -1, -1)))),
        key(data=encode(backbone, [texts(9, 3), texts(9, 3)], None, "classification", 40)),
    ]
    assert len({key(), *others}) == len(others) + 1
    same = [
        key(made=replace(one, head={"classifier.bias": torch.ones(3)}, embedding=torch.ones(32), path="elsewhere")),
        key(data=replace(samples, labels=None)),
        key(data=replace(samples, input_ids=torch.nn.functional.pad(samples.input_ids, (0, 5)))),
    ]
    if samples.token_types is not None:
        same[2] = key(
            data=replace(
                samples,
                input_ids=torch.nn.functional.pad(samples.input_ids, (0, 5)),
                token_types=torch.nn.functional.pad(samples.token_types, (0, 5)),
            )
        )
    assert set(same) == {key()}


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[:-5],
    "a flipped bit in a number": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "text": lambda data: b"no safetensors at all",
    "header length": lambda data: b"\xff" * 8 + data[8:],
}


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_a_damaged_entry_is_computed_and_written_again(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    backbone, samples, one = tiny("bert"), samples_of(tiny("bert")), prompt(tiny("bert"), 1)
    first = embeddings_on([one], backbone, samples, TensorCache(tmp_path))
    (file,) = tmp_path.iterdir()
    sound = file.read_bytes()
    file.write_bytes(DAMAGE[kind](sound))
    cache = TensorCache(tmp_path)
    assert torch.equal(embeddings_on([one], backbone, samples, cache), first)
    assert (cache.found, cache.missed) == (0, 1)
    assert file.read_bytes() == sound


def test_an_entry_under_another_name_does_not_count(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    cache.put({"a" * 64: torch.ones(3)})
    (tmp_path / f"{'a' * 64}.safetensors").rename(tmp_path / f"{'b' * 64}.safetensors")
    assert cache.get("b" * 64) is None


def test_the_cache_is_bounded_and_keeps_what_was_read_last(tmp_path: Path) -> None:
    keys = [f"{number:064x}" for number in range(6)]
    TensorCache(tmp_path).put({key: torch.full((256,), float(number)) for number, key in enumerate(keys[:5])})
    size = next(tmp_path.iterdir()).stat().st_size
    for age, key in enumerate(keys[:5]):
        os.utime(tmp_path / f"{key}.safetensors", (1_000_000 + age, 1_000_000 + age))
    (tmp_path / "notes.txt").write_text("not ours" * 1000)
    cache = TensorCache(tmp_path, limit=3 * size)
    assert cache.get(keys[0]) is not None
    cache.put({keys[5]: torch.full((256,), 5.0)})
    kept = {path.stem for path in tmp_path.glob("*.safetensors")}
    assert kept == {keys[0], keys[4], keys[5]}
    assert (tmp_path / "notes.txt").exists()
    again = cache.get(keys[4])
    assert again is not None
    assert torch.equal(again, torch.full((256,), 4.0))


def test_a_folder_that_cannot_be_written_costs_the_cache_not_the_ranking(tiny: Tiny, tmp_path: Path) -> None:
    backbone, samples, one = tiny("bert"), samples_of(tiny("bert")), prompt(tiny("bert"), 1)
    (tmp_path / "file").write_text("in the way")
    cache = TensorCache(tmp_path / "file" / "folder")
    found = embeddings_on([one], backbone, samples, cache)
    assert torch.equal(found, embeddings_on([one], backbone, samples))
    assert (tmp_path / "file").read_text() == "in the way"


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PANDA_FUSION_CACHE", str(tmp_path))
    named = user_cache(EMBEDDINGS)
    assert named is not None
    assert named.folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []  # nothing is made before there is something to keep
    monkeypatch.setenv("PANDA_FUSION_CACHE", "")
    assert user_cache(EMBEDDINGS) is None
    monkeypatch.delenv("PANDA_FUSION_CACHE")
    own = user_cache(EMBEDDINGS)
    assert own is not None
    assert "panda-fusion" in own.folder.parts
    assert not own.folder.is_relative_to(Path.cwd())


# The probe


def test_a_probe_never_starts_where_a_source_of_its_seed_did(tiny: Tiny) -> None:
    """At a rate that moves nothing the probe is its start: no prompt and no head that `train` would draw."""
    backbone, peft, task = tiny("bert"), method("prefix:length=4"), task_of(tiny("bert"))
    for seed in (0, 1, 11):
        probe = train_probe(backbone, peft, task, settings(1e-30), steps=1, seed=seed)
        (source,) = new_students(backbone, CLASSES, peft, [seed], 1e-2)
        for name, tensor in source.tensors.items():
            own = probe.tensors[name].flatten().double().numpy()
            assert abs(1 - cosine(own, tensor.flatten().double().numpy())) < 0.4, name  # 256 independent numbers
        weight = probe.head["classifier.weight"].flatten().double().numpy()
        assert abs(1 - cosine(weight, source.head["classifier.weight"].flatten().double().numpy())) < 0.6


def test_a_probe_is_repeatable(tiny: Tiny) -> None:
    backbone, peft, task = tiny("bert"), method("prefix:length=4"), task_of(tiny("bert"))
    first, second, other = (
        train_probe(backbone, peft, task, settings(), steps=2, seed=seed).tensors["key"] for seed in (5, 5, 6)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_probe_stream_is_none_of_the_others() -> None:
    names = ("prompt", "head", "teacher", "probe")
    draws = [torch.randn(1000, generator=random_stream(seed, name)).numpy() for seed in (0, 1, 2) for name in names]
    correlations = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlations).max() < 0.15
    seeds = {stream_seed(seed, "probe") for seed in range(1000)}
    assert len(seeds) == 1000
    assert not seeds & set(range(1000))


# The command line


def test_importing_the_metrics_takes_no_torch() -> None:
    code = (
        "import sys, panda_fusion_plugins.on, panda_fusion_plugins.panda, panda_fusion_plugins.random\n"
        "import panda_fusion.tensor_cache\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'platformdirs')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_count_draws_that_many_samples_of_the_target(tiny: Tiny) -> None:
    """Table VIII: the similarity at another number of samples is that of embeddings on those samples."""
    backbone = tiny("bert")
    data = encoded(backbone, CLASSES, 24)
    drawn: list[int] = []

    def draw(count: int) -> EncodedSet:
        drawn.append(count)
        return data.subset(range(count))

    context = SimilarityContext(backbone, data.subset(range(10)), draw=draw)
    one, other = prompt(backbone, 1), prompt(backbone, 2)
    found = similarities().create(TARGET + ",count=7").score(one, other, context)
    first, second = embeddings_on([one, other], backbone, data.subset(range(7))).double()
    assert drawn == [7]
    assert found == pytest.approx(float(first @ second / (first.norm() * second.norm())), abs=1e-6)
    with pytest.raises(OptionError, match="another count than 100 needs samples=target"):
        similarities().create("panda:count=50")
