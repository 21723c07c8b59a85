"""Which sizes a benchmark takes."""

from __future__ import annotations

import pytest
import torch

from benchmarks import paper_cell
from benchmarks.memory import IN_USE, ITERATIONS, READINGS, readings, shapes
from benchmarks.sizes import PAPER, Sizes
from benchmarks.stages import Bench
from fedbicross_flwr.compute import Compute, cpu_threads
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


def test_a_cell_of_the_paper_is_of_its_size_and_timed_in_two_parts() -> None:
    sizes = paper_cell.SIZES
    config = sizes.config()
    assert (sizes.width, sizes.clients, config.client.epochs, sizes.clients * sizes.client_images) == (
        *(64, 5, 100),
        13720,
    )
    inversion = config.inversion
    assert (config.clustering.clusters, inversion.iterations, inversion.batch_size) == (3, 500, 256)
    small = Sizes(width=4, images=8, batch=8, clusters=2, clients=4, iterations=2, client_images=16, epochs=1)
    bench = Bench(small, Compute(torch.device("cpu")), workers=1)
    with cpu_threads(1):
        assert all(paper_cell.seconds(name, bench) > 0 for name in paper_cell.PARTS)


def test_memory_in_use_is_read_once_where_nothing_else_is_known() -> None:
    assert readings("cpu") == [*READINGS] and readings("cuda") == [IN_USE]
