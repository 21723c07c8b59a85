"""The fit of a stage's cost: exact where the form is, never negative, and worst errors told."""

from __future__ import annotations

import pytest

from benchmarks.scaling import POINTS, fit, fit_all, in_turn, measure_client, medians
from benchmarks.sizes import Sizes
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RuntimeConfig


def test_work_of_the_form_is_found_exactly() -> None:
    seconds = [0.3 * k + 0.07 * n * k for n, k in POINTS]
    found = fit(POINTS, seconds, "teacher answers")
    assert found["coefficients"] == pytest.approx([0.3, 0.07])
    assert found["largest_error"] == pytest.approx(0.0, abs=1e-9)


def test_of_several_passes_the_median_of_each_stage_counts() -> None:
    passes = [{"clustering": a, "synthesis": b} for a, b in ((1.0, 9.0), (5.0, 2.0), (2.0, 3.0))]
    assert medians(passes) == {"clustering": 2.0, "synthesis": 3.0}


def test_no_work_is_negative_and_the_worst_point_is_told() -> None:
    seconds = [0.07 * n * k - 0.2 * k for n, k in POINTS]
    found = fit(POINTS, seconds, "teacher answers")
    assert min(found["coefficients"]) >= 0.0
    a, b = found["coefficients"]
    errors = [abs((a * k + b * n * k) / s - 1.0) for (n, k), s in zip(POINTS, seconds, strict=True)]
    assert found["largest_error"] == pytest.approx(max(errors)) and max(errors) > 0.1


def test_a_client_s_stages_are_measured_and_fitted_by_the_number_of_its_images() -> None:
    tiny, compute = Sizes(width=2, batch=4, steps=1, epochs=1), Compute.of(RuntimeConfig(device="cpu"))
    (seconds,) = in_turn(lambda one: measure_client(one, compute), [tiny], repeats=1)
    assert seconds.keys() == {"client training", "personal distillation"}
    assert all(value > 0.0 for value in seconds.values())
    points = [(64,), (128,), (512,)]
    found = fit_all(points, [dict.fromkeys(seconds, 0.5 + 0.01 * n) for (n,) in points])
    for stage in seconds:
        assert found[stage]["coefficients"] == pytest.approx([0.5, 0.01])
