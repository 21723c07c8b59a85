"""Clusters judged by the clients' true label distributions, which only a simulation knows."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedbicross_flwr.compare.cluster_quality import clustering_quality, label_clusters
from fedbicross_flwr.errors import FedBiCrossError

COUNTS = np.array(
    [
        [90, 5, 5],
        [1, 2, 37],
        [9, 1, 0],
        [0, 300, 20],
        [10, 0, 190],
        [2, 28, 0],
    ]
)
EXPECTED = (0, 1, 0, 2, 1, 2)


def test_clients_with_alike_labels_belong_together_whatever_their_size() -> None:
    assert label_clusters(COUNTS, 3, 0) == EXPECTED
    sizes = np.array([[1], [40], [3], [1], [500], [7]])
    assert label_clusters(COUNTS * sizes, 3, 0) == EXPECTED
    order = [3, 1, 5, 0, 2, 4]
    assert label_clusters(COUNTS[order], 3, 0) == (0, 1, 0, 2, 2, 1)


def test_one_cluster_one_client_each_and_too_many() -> None:
    assert label_clusters(COUNTS, 1, 0) == (0,) * 6
    assert label_clusters(COUNTS, 6, 0) == (0, 1, 2, 3, 4, 5)
    with pytest.raises(FedBiCrossError, match=r"7 clusters asked of 6 client"):
        label_clusters(COUNTS, 7, 0)


def test_equal_clients_and_empty_ones_pass_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(set(label_clusters(np.full((5, 3), 4), 3, 0))) == 3
        assert label_clusters(np.array([[0, 0], [8, 0], [7, 0]]), 2, 0) == (0, 1, 1)


def test_quality_by_hand() -> None:
    assert clustering_quality(EXPECTED, COUNTS, 0) == 1.0
    assert clustering_quality((2, 0, 2, 1, 0, 1), COUNTS, 0) == 1.0  # names of clusters mean nothing
    # Pairs {0,2} {1,4} {3,5} against {0,1} {2,4} {3,5}: one of three pairs is common, where 3 * 3 / 15
    # are expected: (1 - 0.6) / (3 - 0.6).
    assert clustering_quality((0, 0, 1, 2, 1, 2), COUNTS, 0) == pytest.approx(0.4 / 2.4)
    # No pair is common: worse than chance.
    assert clustering_quality((0, 0, 1, 1, 2, 2), COUNTS, 0) == pytest.approx(-0.6 / 2.4)


def test_the_reference_has_as_many_clusters_as_the_assignment() -> None:
    two = label_clusters(COUNTS, 2, 0)
    assert len(set(two)) == 2 and clustering_quality(two, COUNTS, 0) == 1.0
    assert clustering_quality((0,) * 6, COUNTS, 0) == 1.0


@hypothesis_settings(max_examples=25, deadline=None)
@given(st.data())
def test_quality_ignores_the_order_of_clients(data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(6)))
    drawn = data.draw(st.lists(st.integers(0, 2), min_size=6, max_size=6).filter(lambda a: len(set(a)) == 3))
    quality = clustering_quality(drawn, COUNTS, 0)
    assert -0.5 <= quality <= 1.0
    turned = clustering_quality([drawn[i] for i in order], COUNTS[order], 0)
    assert turned == pytest.approx(quality)


def test_a_seed_is_one_result_and_leaves_the_global_generator_alone() -> None:
    counts = np.random.default_rng(3).integers(0, 50, (20, 8))
    before = np.random.get_state(legacy=False)  # noqa: NPY002  # that nobody draws from it is the point
    first = label_clusters(counts, 4, 5)
    np.testing.assert_equal(np.random.get_state(legacy=False), before)  # noqa: NPY002
    assert first == label_clusters(counts, 4, 5)
