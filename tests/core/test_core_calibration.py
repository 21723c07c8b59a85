"""Temperature scaling: known answers, an independent search, and whose images it is fitted on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tiny import CPU, blobs, noise, one_thread, settings, task, tiny_resnet, tiny_spec  # noqa: F401
from torch import Tensor

from fedbicross_flwr.calibration import (
    BOUNDS,
    MIN_IMAGES,
    fit_temperature,
    negative_log_likelihood,
    validation_temperature,
)
from fedbicross_flwr.labelled_images import LabelledImages, predict_logits
from fedbicross_flwr.models import state_of

PARTS = ((7, 2, 1), (1, 8, 1), (4, 4, 2))
"""Of ten images with the same logits, how many are of each class."""


def calibrated() -> tuple[Tensor, Tensor]:
    """Logits whose probabilities are exactly the shares of the labels."""
    logits = torch.cat([(torch.tensor(part) / 10).log().repeat(10, 1) for part in PARTS])
    labels = torch.cat([torch.repeat_interleave(torch.arange(3), torch.tensor(part)) for part in PARTS])
    return logits, labels


def searched(logits: Tensor, labels: Tensor) -> float:
    """The best of 40,000 temperatures, from the formula itself in NumPy."""
    scores, truth = logits.double().numpy(), labels.numpy()
    grid = np.geomspace(*BOUNDS, 40_000)
    losses = np.zeros_like(grid)
    for row, label in zip(scores, truth, strict=True):
        scaled = row[None, :] / grid[:, None]
        top = scaled.max(1)
        losses += top + np.log(np.exp(scaled - top[:, None]).sum(1)) - scaled[:, label]
    return float(grid[losses.argmin()])


def test_calibrated_logits_have_temperature_one() -> None:
    assert fit_temperature(*calibrated()) == pytest.approx(1.0, abs=1e-4)


@examples(max_examples=30, deadline=None)
@given(st.floats(0.1, 10.0), st.floats(-50.0, 50.0))
def test_logits_times_c_have_temperature_c_whatever_is_added_to_them(c: float, shift: float) -> None:
    logits, labels = calibrated()
    assert fit_temperature(c * logits.double() + shift, labels) == pytest.approx(c, rel=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_the_temperature_is_the_one_that_a_grid_search_finds(seed: int) -> None:
    """Answers that are right for most images, surer or less sure from seed to seed."""
    labels = torch.arange(60) % 4
    logits = (0.5 + seed) * (noise(60, 4, seed=seed) + 1.5 * torch.eye(4)[labels])
    found = fit_temperature(logits, labels)
    assert BOUNDS[0] < found < BOUNDS[1] and found != 1.0
    assert found == pytest.approx(searched(logits, labels), rel=1e-3)


@examples(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 5), st.floats(0.01, 100.0))
def test_it_is_within_its_bounds_and_never_worse_than_none(
    seed: int, count: int, classes: int, size: float
) -> None:
    logits = size * noise(count, classes, seed=seed).double()
    labels = torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))
    found = fit_temperature(logits, labels)
    assert BOUNDS[0] <= found <= BOUNDS[1]
    assert negative_log_likelihood(logits, labels, found) <= negative_log_likelihood(logits, labels, 1.0)


def test_no_answer_changes() -> None:
    logits, labels = 7.0 * noise(50, 4), torch.arange(50) % 4
    assert torch.equal((logits / fit_temperature(logits, labels)).argmax(1), logits.argmax(1))


def test_answers_that_are_all_right_ask_for_no_certainty() -> None:
    labels = torch.arange(30) % 3
    logits = torch.eye(3)[labels] * 2.0 + 0.1 * noise(30, 3)
    assert fit_temperature(logits, labels) == 1.0
    # One that is wrong is enough for a minimum.
    assert fit_temperature(logits, labels.roll(1).where(torch.arange(30) == 0, labels)) != 1.0


def test_answers_worse_than_chance_are_flattened() -> None:
    labels = torch.arange(30) % 3
    assert fit_temperature(5.0 * torch.eye(3)[(labels + 1) % 3], labels) == pytest.approx(BOUNDS[1], rel=1e-3)


def test_no_image_gives_temperature_one() -> None:
    assert fit_temperature(torch.empty(0, 3), torch.empty(0, dtype=torch.int64)) == 1.0


def test_only_the_client_s_validation_images_count() -> None:
    config, model = settings(client__validation_fraction=0.2), tiny_resnet()
    images = blobs(100).images
    answers = predict_logits(model, images, CPU)
    # Seven of ten validation answers are right; no training answer is.
    labels = torch.where(torch.arange(100) % 10 < 7, answers.argmax(1), answers.argmin(1))
    labels[20:] = answers[20:].argmin(1)
    found = validation_temperature(LabelledImages(images, labels), state_of(model), task(config))
    assert found == pytest.approx(searched(answers[:20], labels[:20]), rel=1e-3)
    assert found != pytest.approx(searched(answers, labels), rel=0.1)
    assert found != 1.0


@pytest.mark.parametrize(("count", "fitted"), [(0, False), (MIN_IMAGES - 1, False), (MIN_IMAGES, True)])
def test_few_validation_images_fit_nothing(count: int, fitted: bool) -> None:
    images, model = blobs(100).images, tiny_resnet()
    labels = predict_logits(model, images, CPU).argmin(1)
    config = settings(client__validation_fraction=count / 100 + 1e-6 if count else 0.0)
    found = validation_temperature(LabelledImages(images, labels), state_of(model), task(config))
    assert (found != 1.0) == fitted
