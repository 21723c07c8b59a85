"""Which sizes a benchmark takes."""

from __future__ import annotations

import pytest

from benchmarks.memory import IN_USE, ITERATIONS, READINGS, readings, shapes
from benchmarks.sizes import PAPER, Sizes
from fedbicross_flwr.errors import FedBiCrossError


def test_sizes_by_name_and_by_device() -> None:
    assert Sizes.named("auto", "cpu") == Sizes.named("quick", "cuda") == Sizes()
    assert Sizes.named("auto", "cuda") == Sizes.named("paper", "cpu") == PAPER != Sizes()
    with pytest.raises(FedBiCrossError, match="--sizes 'papper' is unknown; there are quick, paper, auto"):
        Sizes.named("papper", "cpu")


def test_memory_is_measured_of_the_cell_and_of_one_cluster() -> None:
    found = shapes(PAPER)
    assert list(found) == ["N = 5, K = 3", "N = 5, K = 1"]
    for sizes in found.values():
        assert (sizes.width, sizes.images, sizes.iterations) == (PAPER.width, PAPER.images, ITERATIONS)


def test_memory_in_use_is_read_once_where_nothing_else_is_known() -> None:
    assert readings("cpu") == [*READINGS] and readings("cuda") == [IN_USE]
