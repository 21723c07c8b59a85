"""The field's metrics, under both test protocols.

``global``: a client's model on the whole official test split. ``local``: on the part of it that was dealt
to the client with its own class proportions, or on a site's own test images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score
from torch import nn

from fedbicross_flwr.compute import Compute
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.labelled_images import LabelledImages, predict_logits

PROTOCOLS = ("global", "local")
METRICS = ("samples", "accuracy", "balanced_accuracy", "auc", "ece")

ROUNDING = 1e-6
"""By which a mean of fractions may be above one."""
MOST_IMAGES = 10**9
"""That anybody can say to have; a number beyond is a mistake or an attack."""

Scores = dict[str, float]
"""One value a metric of `METRICS`; ``auc`` is nan where no class has both positives and negatives."""

Probabilities = NDArray[np.float64]


def score_problem(values: Mapping[str, float]) -> str:
    """Return which metric has a value that it cannot have, as ``"ece is 1.5"``; nothing for sound scores.

    An AUC alone may be undefined (nan).
    """
    if set(values) != {*METRICS}:
        return f"metrics are {', '.join(sorted(values)) or 'none'}, not {', '.join(METRICS)}"
    for metric, value in values.items():
        if metric == "samples":
            fits = 1 <= value <= MOST_IMAGES and value == int(value)
        else:
            fits = 0.0 <= value <= 1.0 + ROUNDING or (metric == "auc" and math.isnan(value))
        if not fits:
            return f"{metric} is {value}"
    return ""


def score(labels: NDArray[np.int64], probabilities: Probabilities) -> Scores:
    """Return all metrics of one model on one set of images.

    Parameters
    ----------
    labels : ndarray
        int64 (n,).
    probabilities : ndarray
        (n, C), rows sum to one.

    Raises
    ------
    FedBiCrossError
        When a probability is not a number, as of a model that diverged in its last step.
    """
    if not np.isfinite(probabilities).all():
        raise FedBiCrossError(
            "the model's answers are not finite: its training diverged; lower client.lr or personal.lr"
        )
    answers = probabilities.argmax(1)
    present = np.unique(labels)
    return {
        "samples": float(len(labels)),
        "accuracy": float(accuracy_score(labels, answers)),
        "balanced_accuracy": float(
            recall_score(labels, answers, labels=present, average="macro", zero_division=0.0)
        ),
        "auc": mean_auc(labels, probabilities),
        "ece": expected_calibration_error(labels, probabilities),
    }


def mean_auc(labels: NDArray[np.int64], probabilities: Probabilities) -> float:
    """Return the mean one-against-rest AUC over the classes that have positives and negatives.

    With every class present this is MedMNIST's official AUC; on a client's part of the test split, which
    may lack a class, MedMNIST's evaluator has no value.
    """
    areas = [
        roc_auc_score(labels == index, probabilities[:, index])
        for index in range(probabilities.shape[1])
        if 0 < np.count_nonzero(labels == index) < len(labels)
    ]
    return float(np.mean(areas)) if areas else math.nan


def expected_calibration_error(
    labels: NDArray[np.int64], probabilities: Probabilities, bins: int = 15
) -> float:
    """Return the mean gap between confidence and accuracy, over equal bins (Guo et al., 2017)."""
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(index, correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def score_model(model: nn.Module, tests: Mapping[str, LabelledImages], compute: Compute) -> dict[str, Scores]:
    """Score a network on the test images of each protocol."""
    return score_predictor(
        lambda images: predict_logits(model, images.images, compute).softmax(1).cpu().double().numpy(), tests
    )


def score_predictor(
    predict: Callable[[LabelledImages], Probabilities], tests: Mapping[str, LabelledImages]
) -> dict[str, Scores]:
    """Score anything that predicts probabilities; a protocol without images has no score."""
    return {
        protocol: score(images.labels.cpu().numpy(), predict(images))
        for protocol, images in tests.items()
        if len(images)
    }
