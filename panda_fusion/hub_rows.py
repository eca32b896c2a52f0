"""Rows of a task from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator

from panda_fusion.errors import DataError
from panda_fusion.printable import printable
from panda_fusion.task import HubSource, SplitName


def hub_split(source: HubSource, split: SplitName) -> str:
    """The name that the Hub's data set gives to a split."""
    return source.train if split == "train" else source.validation


def hub_rows(task: str, source: HubSource, split: SplitName) -> Iterator[tuple[int, object]]:
    """Load one split with the `datasets` library, from its cache where it was loaded before.

    Args:
        task: name of the task, for messages.
        source: where the data set lies; `path` may be a local folder that `datasets` can load.
        split: which split.

    Returns:
        Pairs of row number (from 1) and row.

    Raises:
        DataError: the data set cannot be loaded, most often because the Hub cannot be reached.
    """
    import datasets

    name = source.path if source.config is None else f"{source.path} ({source.config})"
    try:
        rows = datasets.load_dataset(source.path, source.config, split=hub_split(source, split))
    except Exception as error:  # `datasets` raises errors of many libraries; each of them means: no rows
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(
            f"Split {hub_split(source, split)!r} of {name} cannot be loaded from the Hugging Face Hub "
            f"({printable(reason.rstrip('.'), 300)}); pass --data DIR, where DIR/{task} holds train.jsonl "
            "and validation.jsonl."
        ) from error
    yield from enumerate(rows, start=1)


def hub_labels(task: str, source: HubSource, column: str) -> tuple[str, ...]:
    """The tag names that the Hub's data set gives to a column of integers.

    Raises:
        DataError: the data set cannot be loaded, or the column names no tags.
    """
    import datasets

    try:
        features = datasets.load_dataset(source.path, source.config, split=source.train).features
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(
            f"The tags of {source.path} cannot be loaded from the Hugging Face Hub "
            f"({printable(reason.rstrip('.'), 300)}); pass --data DIR, where DIR/{task} holds train.jsonl, "
            "validation.jsonl and labels.json."
        ) from error
    names = getattr(getattr(features.get(column), "feature", None), "names", None)
    if not names:
        raise DataError(
            f"Column {column!r} of {source.path} names no tags; pass --data DIR with a labels.json in DIR/{task}."
        )
    return tuple(names)
