"""Scores against scikit-learn and scipy called directly, and one case of each worked out by hand."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import get_args

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from panda_fusion.errors import DataError, TrainingError
from panda_fusion.metrics import score
from panda_fusion.task import MetricName

# Predictions 0 0 1 1 1 0 for labels 0 1 1 1 0 0: two hits of class 1, one false positive, one false negative.
LABELS = [0, 1, 1, 1, 0, 0]
OUTPUTS = np.array([[2, 1], [1, 0], [0, 1], [-1, 0], [0.2, 0.3], [5, -5]], dtype=np.float32)


def test_accuracy_by_hand() -> None:
    assert score("accuracy", OUTPUTS, LABELS) == {"accuracy": pytest.approx(4 / 6)}


def test_f1_by_hand() -> None:
    # precision 2/3, recall 2/3
    assert score("f1", OUTPUTS, LABELS) == {"f1": pytest.approx(2 / 3), "accuracy": pytest.approx(4 / 6)}


def test_matthews_by_hand() -> None:
    # (TP TN - FP FN) / sqrt(3 * 3 * 3 * 3) = (2 * 2 - 1 * 1) / 9
    assert score("matthews", OUTPUTS, LABELS) == {"matthews": pytest.approx(1 / 3)}


def test_macro_f1_by_hand() -> None:
    # Predictions 0 0 1 2 for labels 0 1 1 2: F1 of 2/3 (precision 1/2, recall 1), 2/3 (1, 1/2) and 1.
    outputs = np.eye(3)[[0, 0, 1, 2]]
    scores = score("macro_f1", outputs, [0, 1, 1, 2])
    assert scores == {"macro_f1": pytest.approx((2 / 3 + 2 / 3 + 1) / 3), "accuracy": pytest.approx(3 / 4)}


def test_pearson_spearman_by_hand() -> None:
    # Deviations from the means: (-3, -1, 1, 3) / 2 and (-2, 0, -1, 3). Their products sum to 7, their squares
    # to
    # 5 and 14. Ranks 1 2 3 4 and 1 3 2 4 differ by 0 1 1 0, so Spearman's is 1 - 6 * 2 / (4 * 15).
    outputs = np.array([[1.0], [2.0], [3.0], [4.0]])
    pearson, spearman = 7 / np.sqrt(5 * 14), 0.8
    assert score("pearson_spearman", outputs, [1.0, 3.0, 2.0, 6.0]) == {
        "pearson_spearman": pytest.approx((pearson + spearman) / 2),
        "pearson": pytest.approx(pearson),
        "spearman": pytest.approx(spearman),
    }


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_class_metrics_against_scikit_learn(classes: int, dtype: type) -> None:
    generator = np.random.default_rng(classes)
    outputs = generator.normal(size=(200, classes)).astype(dtype)
    labels = generator.integers(classes, size=200)
    outputs[np.arange(200), labels] += 1
    predicted = outputs.argmax(axis=1)
    accuracy = reference.accuracy_score(labels, predicted)
    assert 0.3 < accuracy < 0.95
    assert score("accuracy", outputs, labels) == {"accuracy": pytest.approx(accuracy)}
    assert score("matthews", outputs, labels) == {
        "matthews": pytest.approx(reference.matthews_corrcoef(labels, predicted))
    }
    macro = reference.f1_score(labels, predicted, average="macro")
    assert score("macro_f1", outputs, labels) == {
        "macro_f1": pytest.approx(macro),
        "accuracy": pytest.approx(accuracy),
    }
    if classes == 2:
        f1 = reference.f1_score(labels, predicted)
        assert score("f1", outputs, labels) == {"f1": pytest.approx(f1), "accuracy": pytest.approx(accuracy)}


def test_regression_against_scipy() -> None:
    generator = np.random.default_rng(0)
    labels = np.round(generator.uniform(0, 5, size=300), 1)  # with ties, as in STS-B
    outputs = (labels + generator.normal(size=300)).astype(np.float32)[:, None]
    pearson = stats.pearsonr(outputs[:, 0].astype(np.float64), labels).statistic
    spearman = stats.spearmanr(outputs[:, 0], labels).statistic
    assert score("pearson_spearman", outputs, labels) == {
        "pearson_spearman": pytest.approx((pearson + spearman) / 2),
        "pearson": pytest.approx(pearson),
        "spearman": pytest.approx(spearman),
    }


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]), ([1.0], [1.0])],
)
def test_undefined_correlations_are_zero(outputs: list[float], labels: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score("pearson_spearman", np.array(outputs)[:, None], labels)
    assert scores == {"pearson_spearman": 0.0, "pearson": 0.0, "spearman": 0.0}


def test_constant_predictions_of_classes() -> None:
    outputs = np.tile([1.0, 0.0], (4, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score("matthews", outputs, [0, 1, 0, 1]) == {"matthews": 0.0}
        assert score("f1", outputs, [0, 0, 0, 0]) == {"f1": 0.0, "accuracy": 1.0}


def test_macro_f1_leaves_out_classes_that_do_not_occur() -> None:
    assert score("macro_f1", np.eye(3)[[0, 1]], [0, 1])["macro_f1"] == 1.0


def test_equal_outputs_count_as_the_first_class() -> None:
    assert score("accuracy", np.zeros((2, 3)), [0, 1]) == {"accuracy": 0.5}


@pytest.mark.parametrize("metric", ["accuracy", "f1", "macro_f1", "matthews", "pearson_spearman"])
def test_the_first_score_is_the_main_metric(metric: MetricName) -> None:
    outputs = np.array([[0.5], [1.0], [2.0]]) if metric == "pearson_spearman" else OUTPUTS
    scores = score(metric, outputs, [1.0, 2.0, 4.0] if metric == "pearson_spearman" else LABELS)
    assert next(iter(scores)) == metric
    assert all(type(value) is float for value in scores.values())


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_no_numbers(broken: float) -> None:
    outputs = OUTPUTS.copy()
    outputs[2, 0] = broken
    with pytest.raises(TrainingError, match="outputs for 1 of 6 rows are NaN or infinite"):
        score("accuracy", outputs, LABELS)


@pytest.mark.parametrize(
    ("metric", "shape", "count"),
    [
        ("accuracy", (3, 2), 4),
        ("accuracy", (0, 2), 0),
        ("accuracy", (3,), 3),
        ("accuracy", (3, 1), 3),
        ("f1", (3, 3), 3),
        ("pearson_spearman", (3, 2), 3),
    ],
)
def test_shapes_that_do_not_fit(metric: MetricName, shape: tuple[int, ...], count: int) -> None:
    with pytest.raises(ValueError, match=r"fit|needs"):
        score(metric, np.ones(shape), [0] * count)


@pytest.mark.parametrize("metric", ["span_f1", "squad"])
def test_metrics_of_later_versions(metric: MetricName) -> None:
    assert metric in get_args(MetricName)
    with pytest.raises(DataError, match="not supported yet"):
        score(metric, OUTPUTS, LABELS)


def test_importing_metrics_is_light() -> None:
    code = (
        "import sys, panda_fusion.metrics; "
        "print([m for m in ('numpy', 'sklearn', 'scipy', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
