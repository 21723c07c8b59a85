"""How far two arithmetics are apart, by hand; the runs themselves take minutes."""

from __future__ import annotations

import pytest

from benchmarks.precision import distances


def test_distances_by_hand() -> None:
    runs = {
        "bfloat16": [{"ours, global": 0.50}, {"ours, global": 0.70}],
        "float32": [{"ours, global": 0.40}, {"ours, global": 0.75}],
    }
    (found,) = distances(runs).values()
    assert found["mean"] == pytest.approx((0.10 - 0.05) / 2)
    assert found["largest"] == pytest.approx(0.10)
    assert found["deviation"] == pytest.approx(0.35 / 2**0.5)


def test_one_seed_has_no_deviation() -> None:
    runs = {"bfloat16": [{"ours, local": 0.5}], "float32": [{"ours, local": 0.7}]}
    found = distances(runs)["ours, local"]
    assert found == pytest.approx({"mean": -0.2, "largest": -0.2, "deviation": 0.0})
