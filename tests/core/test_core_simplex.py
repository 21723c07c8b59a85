"""The simplex, the scales of the weights' gradient and the starts of w (Eq. 8)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from fedbicross_flwr.cross_weights import SCALES, initial_weights, outer_gradient, project_onto_simplex
from fedbicross_flwr.source_gradients import GradientRows

QUICK = hypothesis_settings(max_examples=60, deadline=None)
VECTORS = st.lists(st.floats(-20.0, 20.0, width=32), min_size=1, max_size=8)


def projected(values: list[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return project_onto_simplex(torch.tensor(values, dtype=torch.float64)).numpy()


@pytest.mark.parametrize(
    ("vector", "expected"),
    [
        ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),  # already there
        ([0.5, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]),  # above the plane: each gives a sixth
        ([1.0, 0.5], [0.75, 0.25]),
        ([2.0, 0.0], [1.0, 0.0]),  # beyond a vertex
        ([0.8, 0.6, -1.0], [0.6, 0.4, 0.0]),  # one entry leaves, two share what is too much
        ([-5.0, -5.0], [0.5, 0.5]),
        ([0.0, 0.0, 0.0, 0.0], [0.25] * 4),
        ([-3.0], [1.0]),
    ],
)
def test_projection_by_hand(vector: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(projected(vector), expected, atol=1e-12)


@QUICK
@given(VECTORS)
def test_projection_satisfies_the_conditions_of_the_nearest_point(values: list[float]) -> None:
    # Necessary and sufficient for the convex problem: feasible, and v - p is one number where p > 0 and
    # no more than that number elsewhere.
    point = projected(values)
    assert (point >= 0).all() and point.sum() == pytest.approx(1.0, abs=1e-9)
    gap = np.asarray(values) - point
    level = gap[point > 1e-9]
    assert np.ptp(level) < 1e-9
    assert (gap[point <= 1e-9] <= level[0] + 1e-9).all()
    np.testing.assert_allclose(projected(point.tolist()), point, atol=1e-9)


@hypothesis_settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-2.0, 2.0), min_size=2, max_size=5))
def test_projection_against_a_general_solver(values: list[float]) -> None:
    target = np.asarray(values)
    found = minimize(
        lambda point: ((point - target) ** 2).sum(),
        np.full(len(values), 1 / len(values)),
        jac=lambda point: 2 * (point - target),
        method="SLSQP",
        bounds=[(0, None)] * len(values),
        constraints={"type": "eq", "fun": lambda point: point.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-14, "maxiter": 200},
    )
    np.testing.assert_allclose(projected(values), found.x, atol=1e-5)


@QUICK
@given(VECTORS, st.floats(-5.0, 5.0), st.randoms(use_true_random=False))
def test_projection_ignores_a_common_shift_and_the_order(
    values: list[float], shift: float, random: object
) -> None:
    order = list(range(len(values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    moved = projected([values[index] + shift for index in order])
    np.testing.assert_allclose(moved, projected(values)[order], atol=1e-9)


def test_projection_of_far_float32_points_stays_on_the_simplex() -> None:
    # An unscaled gradient times a large eta_w goes there; 1e8 - 1 is 1e8 in float32.
    assert project_onto_simplex(torch.tensor([1e8, 0.0])).tolist() == [1.0, 0.0]


def test_outer_gradient_by_hand() -> None:
    gradient = outer_gradient(
        torch.tensor([1.0, -2.0]), GradientRows(torch.tensor([[3.0, 1.0], [0.0, 4.0]])), 0.1
    )
    torch.testing.assert_close(gradient, torch.tensor([-0.1, 0.8]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", [-0.3, 0.4]),
        ("l2", [-0.6, 0.8]),
        # minus the cosines of (3, 4) with (1, 0) and (0, -2)
        ("cosine", [-0.6, 0.8]),
    ],
)
def test_scales_by_hand(name: str, expected: list[float]) -> None:
    validation = torch.tensor([3.0, 4.0])
    sources = GradientRows(torch.tensor([[1.0, 0.0], [0.0, -2.0]]))
    raw = torch.tensor([-0.3, 0.4]) if name != "cosine" else outer_gradient(validation, sources, 0.05)
    torch.testing.assert_close(SCALES[name](raw, validation, sources, 0.05), torch.tensor(expected))


@pytest.mark.parametrize("name", SCALES)
def test_scales_of_nothing_are_nothing(name: str) -> None:
    zeros = torch.zeros(3)
    assert SCALES[name](zeros, torch.zeros(5), GradientRows(torch.zeros(3, 5)), 0.1).tolist() == [
        0.0,
        0.0,
        0.0,
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("learned", [[0.5, 0.5], [0.5, 0.5]]),
        ("uniform", [[0.5, 0.5], [0.5, 0.5]]),
        ("intra", [[1.0, 0.0], [0.0, 1.0]]),
        ("similarity", [[0.8, 0.2], [0.2, 0.8]]),
    ],
)
def test_starts_of_the_weights(name: str, expected: list[list[float]]) -> None:
    start = initial_weights(name, 2, np.array([[1.0, 0.25], [0.25, 1.0]]))
    assert start.dtype == torch.float32
    torch.testing.assert_close(start, torch.tensor(expected))


def test_similarity_weights_clip_what_is_opposed() -> None:
    start = initial_weights("similarity", 2, np.array([[1.0, -0.7], [-0.7, 1.0]]))
    torch.testing.assert_close(start, torch.eye(2))
