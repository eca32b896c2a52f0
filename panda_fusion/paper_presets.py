"""Learning rate, batch size and epochs of prompt tuning for every task of the PanDa paper (its Table I)."""

from __future__ import annotations

from dataclasses import dataclass

from panda_fusion.errors import DataError


@dataclass(frozen=True)
class Preset:
    """How the paper trains a prompt on a task.

    Attributes:
        learning_rate: peak learning rate.
        batch_size: rows per step.
        epochs: passes over the training set.
    """

    learning_rate: float
    batch_size: int
    epochs: int


PRESETS = {
    "boolq": Preset(5e-3, 32, 100),
    "cb": Preset(1e-2, 16, 100),
    "rte": Preset(1e-2, 32, 60),
    "wic": Preset(1e-2, 16, 80),
    "wsc": Preset(5e-3, 16, 80),
    "copa": Preset(1e-2, 16, 80),
    "multirc": Preset(5e-3, 32, 40),
    "record": Preset(5e-3, 16, 5),
    "mnli": Preset(5e-3, 64, 20),
    "cola": Preset(5e-3, 16, 40),
    "sst2": Preset(5e-3, 32, 60),
    "qnli": Preset(5e-3, 32, 20),
    "mrpc": Preset(1e-2, 32, 60),
    "stsb": Preset(1e-2, 32, 60),
    "qqp": Preset(5e-3, 64, 20),
    "squad": Preset(5e-3, 8, 10),
    "conll03": Preset(3e-2, 16, 30),
    "conll04": Preset(2e-2, 32, 40),
    "conll05": Preset(6e-3, 16, 15),
    "conll12": Preset(5e-3, 16, 45),
    "ontonotes": Preset(1e-2, 16, 30),
}


def preset(task: str) -> Preset:
    """The paper's settings for a task.

    Raises:
        DataError: the paper has none.
    """
    if task not in PRESETS:
        raise DataError(
            f"The paper has no settings for task {task!r}; leave the preset out, or use one of {', '.join(PRESETS)}."
        )
    return PRESETS[task]
