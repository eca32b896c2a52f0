"""Scoring predictions. Every score is better when higher: 0 to 1, correlations -1 to 1, never percent."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from panda_fusion.errors import DataError, TrainingError
from panda_fusion.task import MetricName

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def score(
    metric: MetricName, outputs: NDArray[np.floating], labels: Sequence[int] | Sequence[float]
) -> dict[str, float]:
    """Score the outputs of one prompt, with scikit-learn and scipy.

    - `accuracy`: share of rows whose largest output is the label's (the first one where several are equal).
    - `f1`: F1 of class 1 of two; and accuracy.
    - `macro_f1`: mean of the F1 of every class that occurs among labels or predictions; and accuracy.
    - `matthews`: Matthews correlation coefficient, two classes or more.
    - `pearson_spearman`: mean of Pearson's and Spearman's correlation; and each of them.

    What is undefined counts as 0.0: a correlation where labels or predictions are constant, and an F1 where a
    class occurs among neither.

    Args:
        metric: the task's metric.
        outputs: [M, C] logits or probabilities; [M, 1] values for a regression; any float dtype.
        labels: M class indices or M numbers.

    Returns:
        Scores by name; the first one is the main metric.

    Raises:
        DataError: this version does not have the metric yet.
        TrainingError: an output is NaN or infinite.
        ValueError: shapes that do not fit each other or the metric.
    """
    import numpy as np

    scored = np.asarray(outputs, dtype=np.float64)
    truth = np.asarray(labels)
    if scored.ndim != 2 or len(scored) != len(truth) or len(truth) == 0:
        raise ValueError(f"outputs of shape {scored.shape} do not fit {len(truth)} labels")
    broken = int((~np.isfinite(scored)).any(axis=1).sum())
    if broken:
        raise TrainingError(
            f"The outputs for {broken} of {len(scored)} rows are NaN or infinite, so there is nothing to "
            "score; lower the learning rate or use --precision fp32."
        )
    if metric == "pearson_spearman":
        if scored.shape[1] != 1:
            raise ValueError(f"{metric} needs outputs of shape [M, 1], found {scored.shape}")
        return _correlations(scored[:, 0], truth.astype(np.float64))
    if metric == "span_f1" or metric == "squad":
        raise DataError(f"Metric {metric!r} is not supported yet by this version; choose one for whole rows.")
    if scored.shape[1] < 2 or (metric == "f1" and scored.shape[1] != 2):
        raise ValueError(f"{metric} does not fit outputs of shape {scored.shape}")
    return _class_scores(metric, scored.argmax(axis=1), truth)


def _class_scores(metric: str, predicted: NDArray[np.int_], truth: NDArray[np.int_]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    if metric == "matthews":
        return {metric: float(matthews_corrcoef(truth, predicted))}
    accuracy = float(accuracy_score(truth, predicted))
    if metric == "accuracy":
        return {metric: accuracy}
    average = {"f1": "binary", "macro_f1": "macro"}[metric]
    f1 = float(f1_score(truth, predicted, average=average, zero_division=0.0))
    return {metric: f1, "accuracy": accuracy}


def _correlations(predicted: NDArray[np.float64], truth: NDArray[np.float64]) -> dict[str, float]:
    import numpy as np
    from scipy.stats import pearsonr, spearmanr

    with warnings.catch_warnings():  # scipy warns and answers NaN where an input is constant
        warnings.simplefilter("ignore")
        pair = len(truth) > 1
        pearson = float(pearsonr(predicted, truth).statistic) if pair else np.nan
        spearman = float(spearmanr(predicted, truth).statistic) if pair else np.nan
    pearson, spearman = (0.0 if np.isnan(value) else value for value in (pearson, spearman))
    return {"pearson_spearman": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}
