"""The fit of a stage's cost: exact where the form is, never negative, and worst errors told."""

from __future__ import annotations

import pytest

from benchmarks.scaling import POINTS, fit, medians


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
