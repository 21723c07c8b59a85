"""The metrics against scikit-learn, MedMNIST's own evaluator, and values worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.evaluation import METRICS, Probabilities, expected_calibration_error, mean_auc, score
from fedbicross_flwr.runs.record import tidy_scores

Labels = NDArray[np.int64]


def draw(seed: int, count: int, classes: int) -> tuple[Labels, Probabilities]:
    """Labels in which every class occurs, and answers that are right more often than not."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % classes).astype(np.int64)
    raw = generator.random((count, classes)) + 0.5 * np.eye(classes)[labels]
    return labels, raw / raw.sum(1, keepdims=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 60))
def test_every_metric_is_scikit_learn_s_where_all_classes_occur(seed: int, classes: int, extra: int) -> None:
    labels, answers = draw(seed, classes + extra, classes)
    found = score(labels, answers)
    assert tuple(found) == METRICS
    assert found["samples"] == len(labels)
    assert found["accuracy"] == pytest.approx(float((answers.argmax(1) == labels).mean()))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, answers.argmax(1)))
    expected = np.mean([roc_auc_score(labels == index, answers[:, index]) for index in range(classes)])
    assert found["auc"] == pytest.approx(expected)


@pytest.mark.parametrize("classes", [2, 4])
def test_accuracy_and_auc_are_medmnist_s(classes: int) -> None:
    from medmnist.evaluator import getACC, getAUC

    task = "binary-class" if classes == 2 else "multi-class"
    labels, answers = draw(3, 80, classes)
    found = score(labels, answers)
    assert found["auc"] == pytest.approx(getAUC(labels[:, None], answers, task))
    assert found["accuracy"] == pytest.approx(getACC(labels[:, None], answers, task))


def test_absent_classes_are_left_out_of_the_means() -> None:
    labels, answers = draw(5, 40, 4)
    some = labels != 2
    found = score(labels[some], answers[some])
    areas = [roc_auc_score(labels[some] == index, answers[some, index]) for index in (0, 1, 3)]
    recalls = [(answers.argmax(1)[labels == index] == index).mean() for index in (0, 1, 3)]
    assert found["auc"] == pytest.approx(np.mean(areas))
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))


def test_a_single_class_has_no_auc_and_json_says_null() -> None:
    labels = np.zeros(5, dtype=np.int64)
    _, answers = draw(1, 5, 3)
    assert math.isnan(mean_auc(labels, answers))
    found = score(labels, answers)
    tidy = tidy_scores(found)
    assert tidy["auc"] is None and tidy["samples"] == 5 and type(tidy["samples"]) is int
    assert '"auc": null' in json.dumps(tidy, allow_nan=False)
    assert tidy["balanced_accuracy"] == tidy["accuracy"] == found["accuracy"]


def test_the_calibration_error_of_a_worked_example() -> None:
    # Bins of 1/15: two answers at .68, one of them right; one sure answer, wrong; one at .40, right.
    answers = np.array([[0.68, 0.32, 0.0], [0.32, 0.68, 0.0], [0.0, 0.0, 1.0], [0.4, 0.35, 0.25]])
    labels = np.array([0, 0, 1, 0], dtype=np.int64)
    expected = (abs(1 - 2 * 0.68) + abs(0 - 1.0) + abs(1 - 0.4)) / 4
    assert expected_calibration_error(labels, answers) == pytest.approx(expected)


def test_perfect_answers_have_no_calibration_error_and_full_marks() -> None:
    labels = np.arange(12, dtype=np.int64) % 3
    found = score(labels, np.eye(3)[labels])
    assert (found["accuracy"], found["balanced_accuracy"], found["auc"], found["ece"]) == (1, 1, 1, 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_the_calibration_error_does_not_depend_on_order_and_stays_in_0_to_1(seed: int, count: int) -> None:
    labels, answers = draw(seed, count, 3)
    order = np.random.default_rng(seed).permutation(count)
    found = expected_calibration_error(labels, answers)
    assert 0.0 <= found <= 1.0
    assert found == pytest.approx(expected_calibration_error(labels[order], answers[order]), abs=1e-12)


def test_answers_that_are_no_numbers_are_one_line() -> None:
    labels, probabilities = draw(0, 6, 3)
    probabilities[2] = math.nan
    with pytest.raises(FedBiCrossError, match="answers are not finite: its training diverged"):
        score(labels, probabilities)
