"""Tokenised examples, the batches of an epoch and the chunks of a pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from engine_samples import columns

from panda_fusion.backbone import Backbone
from panda_fusion.dataset import encode, epoch_batches, gather, length_sorted_chunks
from panda_fusion.testing import MODEL_TYPES

Tiny = Callable[[str], Backbone]


def lengths_of(count: int, seed: int = 0) -> np.ndarray:
    """Lengths as texts have them: many short ones, few long ones."""
    return np.random.default_rng(seed).geometric(0.05, count).clip(3, 128)


@pytest.mark.parametrize("count", [1, 7, 32, 33, 500, 4001])
@pytest.mark.parametrize("size", [1, 8, 32])
def test_every_example_comes_once_in_an_epoch(count: int, size: int) -> None:
    batches = epoch_batches(lengths_of(count), size, seed=3, epoch=1)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    assert len(batches) == -(-count // size)
    assert sorted(len(batch) for batch in batches)[1:] == [size] * (len(batches) - 1)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = lengths_of(700)

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(epoch_batches(lengths, 32, seed, epoch)).tolist()

    np.random.seed(1)
    first = order(5, 2)
    np.random.seed(2)
    assert order(5, 2) == first
    assert order(6, 2) != first
    assert order(5, 3) != first
    assert order(2, 5) != first


@pytest.mark.parametrize("count", [1000, 5000])
def test_prompts_of_a_pack_meet_batches_of_equal_size_and_similar_width(count: int) -> None:
    """A pack is as wide as its widest prompt; that may cost only little beside one prompt alone."""
    lengths = lengths_of(count)
    plans = [epoch_batches(lengths, 16, seed, 0) for seed in range(4)]
    assert len({tuple(len(batch) for batch in plan) for plan in plans}) == 1
    widths = np.array([[lengths[batch].max() for batch in plan] for plan in plans])
    alone = widths.sum(axis=1).mean()
    together = widths.max(axis=0).sum()
    unsorted = sum(
        lengths[np.random.default_rng(step).permutation(count)[:16]].max() for step in range(widths.shape[1])
    )
    assert together <= 1.25 * alone
    assert together < 0.8 * unsorted, "batches are no narrower than those of unsorted examples"


def test_batches_of_an_epoch_are_in_random_order_of_length() -> None:
    """Sorted ones would train all short texts first."""
    lengths = lengths_of(3000)
    widths = np.array([lengths[batch].max() for batch in epoch_batches(lengths, 32, 0, 0)])
    assert abs(np.corrcoef(widths, np.arange(len(widths)))[0, 1]) < 0.3


@pytest.mark.parametrize("prompts", [1, 4])
def test_chunks_hold_every_example_once_and_fit_into_the_budget(prompts: int) -> None:
    lengths = lengths_of(900)
    chunks = length_sorted_chunks(lengths, 2048, prompts)
    order = np.concatenate(chunks)
    assert sorted(order.tolist()) == list(range(900))
    assert (np.diff(lengths[order]) <= 0).all()
    for place, chunk in enumerate(chunks):
        assert len(chunk) * lengths[chunk[0]] * prompts <= 2048
        if place + 1 < len(chunks):
            assert (len(chunk) + 1) * lengths[chunk[0]] * prompts > 2048, "a chunk could hold one more"


def test_a_text_longer_than_the_budget_is_a_chunk_of_its_own() -> None:
    assert [chunk.tolist() for chunk in length_sorted_chunks(np.array([9, 50, 3]), 10, 2)] == [[1], [0], [2]]


@pytest.mark.parametrize("number", [1, 2], ids=["one column", "two columns"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_encoding_equals_the_tokenizer_row_by_row(model_type: str, number: int, tiny: Tiny) -> None:
    backbone = tiny(model_type)
    rows = columns(9, 2, number)
    data = encode(backbone, rows, list(range(9)), "classification", 128)
    assert len(data) == 9
    for place, parts in enumerate(zip(*rows, strict=True)):
        one = backbone.tokenizer(*parts)
        length = len(one["input_ids"])
        assert int(data.lengths[place]) == length
        assert data.input_ids[place, :length].tolist() == one["input_ids"]
        assert ("token_type_ids" in one) == (data.token_types is not None)
        if data.token_types is not None:
            assert data.token_types[place, :length].tolist() == one["token_type_ids"]
            assert bool(data.token_types[place].any()) == (number == 2)
    assert data.labels is not None
    assert data.labels.tolist() == list(range(9))
    assert (data.labels.dtype, data.truncated) == (torch.int64, 0)


def test_pairs_lose_the_end_of_the_longer_text(tiny: Tiny) -> None:
    backbone = tiny("bert")
    short, long = "yes", "the not of that they for"
    ids = {word: backbone.tokenizer.convert_tokens_to_ids(word) for word in (short, *long.split())}
    special = backbone.tokenizer
    data = encode(backbone, [[short], [long]], None, "classification", 8)
    expected = [
        special.cls_token_id,
        ids["yes"],
        special.sep_token_id,
        *[ids[word] for word in long.split()[:4]],
        special.sep_token_id,
    ]
    assert data.input_ids[0].tolist() == expected
    assert data.token_types is not None
    assert data.token_types[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert data.truncated == 1
    assert data.labels is None


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_only_texts_that_were_cut_count_as_truncated(model_type: str, tiny: Tiny) -> None:
    """One text is longer than the limit, one exactly as long, one shorter."""
    backbone = tiny(model_type)
    rows = ["the not", "the not of", "the not of that"]
    limit = len(backbone.tokenizer(rows[1])["input_ids"])
    data = encode(backbone, [rows], None, "classification", limit)
    assert data.lengths.tolist()[1:] == [limit, limit]
    assert data.truncated == 1


def test_values_become_float32_and_subsets_keep_rows_together(tiny: Tiny) -> None:
    data = encode(tiny("bert"), columns(5, 1, 2), [0.5, 1, 2.25, 3, 4], "regression", 32)
    assert data.labels is not None
    assert data.labels.dtype == torch.float32
    part = data.subset([4, 0, 2])
    assert part.labels is not None
    assert part.labels.tolist() == [4.0, 0.5, 2.25]
    assert part.token_types is not None
    assert data.token_types is not None
    for new, old in enumerate([4, 0, 2]):
        assert torch.equal(part.input_ids[new], data.input_ids[old])
        assert torch.equal(part.token_types[new], data.token_types[old])
        assert part.lengths[new] == data.lengths[old]
    assert (part.kind, len(part)) == ("regression", 3)


def test_gathered_rows_are_cut_to_the_width_asked_for(tiny: Tiny) -> None:
    data = encode(tiny("bert"), columns(6, 1), None, "classification", 32)
    index = torch.tensor([5, 5, 1])
    batch = gather(data, index, 3)
    assert batch.input_ids.dtype == torch.int64
    assert torch.equal(batch.input_ids, data.input_ids[index][:, :3].long())
    assert torch.equal(batch.lengths, data.lengths[index])
