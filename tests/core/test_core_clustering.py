"""Stage 1, clusters: canonical assignments, the choice of K, probes and signatures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny import CPU, noise, smooth_net
from tiny import one_thread as one_thread
from torch import nn
from torch.nn.utils import parameters_to_vector

from fedbicross_flwr.clustering import (
    PROBES,
    SIGNATURES,
    Clustering,
    Evidence,
    agglomerate,
    by_proximity,
    centroids,
    choose_clusters,
    cluster_clients,
    cosine,
    draw_probes,
    k_means,
    silhouette,
    tidy,
)
from fedbicross_flwr.config_fedbicross import ClusteringConfig
from fedbicross_flwr.errors import FedBiCrossError


def biased(favourite: int, seed: int) -> nn.Module:
    """A network that takes nearly everything for one class, and whose weights are near its group's."""
    model = smooth_net(favourite)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(0.01 * noise(*parameter.shape, seed=100 * seed + index))
        model.get_parameter("fc.bias").zero_()[favourite] = 4.0
        model.get_parameter("fc.weight")[favourite] *= 3.0
    return model


def federation() -> list[nn.Module]:
    return [biased(favourite, seed) for seed, favourite in enumerate([1, 0, 1, 2, 0, 2])]


EXPECTED = (0, 1, 0, 2, 1, 2)


def grouped(clusters: int | str = 3, seed: int = 0, **options: Any) -> Clustering:
    config = ClusteringConfig(clusters=clusters, **{"num_probes": 12} | options)
    return cluster_clients(federation(), 1, config, seed, CPU)


@pytest.mark.parametrize(
    ("labels", "count", "expected"),
    [
        ([2, 2, 0, 1], 3, (0, 0, 1, 2)),
        ([5, 5, 5, 5], 1, (0, 0, 0, 0)),
        ([0, 0, 0, 0], 2, (0, 0, 0, 1)),  # K-means left one empty
        ([1, 1, 1, 0], 4, (0, 1, 2, 3)),
        ([1, 0, 1, 0, 0], 3, (0, 1, 0, 1, 2)),
    ],
)
def test_tidy_by_hand(labels: list[int], count: int, expected: tuple[int, ...]) -> None:
    assert tidy(np.asarray(labels, dtype=np.int64), count) == expected


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.data())
def test_tidy_is_canonical(data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=9))
    count = data.draw(st.integers(len(set(labels)), len(labels)))
    found = tidy(np.asarray(labels, dtype=np.int64), count)
    first = [found.index(cluster) for cluster in range(count)]
    assert set(found) == set(range(count)) and first == sorted(first)
    assert tidy(np.asarray(found), count) == found
    if count == len(set(labels)):
        pairs = [(i, j) for i in range(len(labels)) for j in range(i)]
        assert all((labels[i] == labels[j]) == (found[i] == found[j]) for i, j in pairs)


@pytest.mark.parametrize("by", sorted(SIGNATURES.keys() - {"pacfl"}))
def test_every_signature_of_models_finds_obvious_groups(by: str) -> None:
    found = grouped(by=by)
    assert found.assignment == EXPECTED and found.clusters == 3
    assert [found.members(k) for k in range(3)] == [[0, 2], [1, 4], [3, 5]]
    assert found.silhouette is not None and found.silhouette > 0.5


@pytest.mark.parametrize("by", ["outputs", "hierarchical"])
def test_auto_finds_their_number(by: str) -> None:
    assert grouped("auto", by=by).assignment == EXPECTED


@pytest.mark.parametrize("probes", PROBES)
@pytest.mark.parametrize("signature", ["probabilities", "logits"])
def test_probes_and_signatures_work_together(probes: str, signature: str) -> None:
    assert grouped(probes=probes, signature=signature).assignment == EXPECTED


def test_what_a_clustering_reports() -> None:
    found = grouped()
    assert found.similarity.shape == (6, 6) and found.centroid_similarity.shape == (3, 3)
    assert found.mean_prediction.shape == (6, 3)
    np.testing.assert_allclose(found.mean_prediction.sum(1), 1.0, atol=1e-6)
    assert found.mean_prediction.argmax(1).tolist() == [1, 0, 1, 2, 0, 2]
    assert found.similarity[0, 2] > 0.9 > 0.5 > found.similarity[0, 1]


def test_one_cluster_and_one_client_each() -> None:
    assert grouped(1).assignment == (0,) * 6 and grouped(1).silhouette is None
    assert grouped(6).assignment == (0, 1, 2, 3, 4, 5) and grouped(6).silhouette is None


def test_more_clusters_than_clients_is_refused() -> None:
    with pytest.raises(FedBiCrossError, match=r"clustering\.clusters = 7, but only 6 client"):
        grouped(7)


def test_a_single_upload_is_a_cluster() -> None:
    for by in ("outputs", "parameters", "hierarchical"):
        config = ClusteringConfig(clusters=1, by=by, num_probes=4)
        assert cluster_clients(federation()[:1], 1, config, 0, CPU).assignment == (0,)
    config = ClusteringConfig(clusters=1, by="pacfl", num_probes=4)
    subspaces = [torch.eye(4, 2).unsqueeze(0)]
    assert cluster_clients(federation()[:1], 1, config, 0, CPU, subspaces).assignment == (0,)


@pytest.mark.parametrize("count", [1, 2])
def test_auto_with_hardly_any_client_is_one_cluster(count: int) -> None:
    config = ClusteringConfig(clusters="auto", num_probes=4)
    assert cluster_clients(federation()[:count], 1, config, 0, CPU).assignment == (0,) * count


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_equal_models_still_give_the_asked_number() -> None:
    config = ClusteringConfig(clusters=3, num_probes=4)
    found = cluster_clients([smooth_net(1) for _ in range(5)], 1, config, 0, CPU)
    assert set(found.assignment) == {0, 1, 2}


def test_auto_takes_the_best_silhouette_also_where_it_is_zero() -> None:
    # Each of the outer points is as far from its neighbour as the pair in the middle is apart.
    points = np.array([[0.0], [1.0], [-1.0], [2.0]])
    crossed, middle = (0, 1, 1, 0), (0, 0, 1, 2)
    assert silhouette(points, crossed) == pytest.approx(-0.25) and silhouette(points, middle) == 0.0
    groups = {2: np.asarray(crossed), 3: np.asarray(middle)}
    assert choose_clusters(points, ClusteringConfig(clusters="auto"), lambda count: groups[count]) == middle


def test_silhouette_by_hand() -> None:
    # Pairs at distance 1, the pairs 10 apart: a = 1, b = 10.5 or 9.5.
    points = np.array([[0.0], [1.0], [10.0], [11.0]])
    assert silhouette(points, (0, 0, 1, 1)) == pytest.approx((2 * (1 - 1 / 10.5) + 2 * (1 - 1 / 9.5)) / 4)


def test_centroids_and_cosine_by_hand() -> None:
    points = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(centroids(points, (0, 0, 1)), [[2.0, 0.0], [0.0, 2.0]])
    found = cosine(np.array([[1.0, 0.0], [3.0, 3.0], [-2.0, 0.0], [0.0, 0.0]]))
    half = 0.5**0.5
    expected = [[1, half, -1, 0], [half, 1, -half, 0], [-1, -half, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("channels", [1, 3])
def test_probes_are_seeded_and_scaled(name: str, channels: int) -> None:
    config = ClusteringConfig(probes=name, num_probes=64)
    probes = draw_probes(config, channels, 3)
    assert probes.shape == (64, channels, 28, 28) and probes.dtype == torch.float32
    assert torch.equal(probes, draw_probes(config, channels, 3))
    assert not torch.equal(probes, draw_probes(config, channels, 4))
    double = draw_probes(ClusteringConfig(probes=name, num_probes=64, probe_amplitude=2.0), channels, 3)
    torch.testing.assert_close(double, 2 * probes)
    assert abs(float(probes.mean())) < 0.3 and 0.5 < float(probes.std()) < 1.3


def test_probe_kinds_differ_in_smoothness() -> None:
    def step(name: str) -> float:
        probes = draw_probes(ClusteringConfig(probes=name), 1, 0)
        return float((probes[..., 1:] - probes[..., :-1]).square().mean())

    assert step("gaussian") == pytest.approx(2.0, rel=0.05)
    assert 0 < step("smooth") < 0.2 and step("colour") == 0


def test_output_signatures_by_hand() -> None:
    answers = torch.tensor([[[0.75, 0.25]], [[0.5, 0.5]]]).log()
    probabilities = SIGNATURES["outputs"](Evidence([], answers, []), ClusteringConfig())
    np.testing.assert_allclose(probabilities, [[0.75, 0.25], [0.5, 0.5]], rtol=1e-6)
    logits: NDArray[np.float64] = SIGNATURES["outputs"](
        Evidence([], answers, []), ClusteringConfig(signature="logits")
    )
    np.testing.assert_allclose(logits, np.log([[0.75, 0.25], [0.5, 0.5]]), rtol=1e-6)


def test_classifier_signatures_by_hand() -> None:
    model = smooth_net()
    with torch.no_grad():
        model.get_parameter("fc.bias").copy_(torch.tensor([1.0, 2.0, 6.0]))
        model.get_parameter("fc.weight").zero_()[0, :2] = torch.tensor([3.0, 4.0])
    evidence = Evidence([model], torch.zeros(1, 1, 3), [])
    assert SIGNATURES["classifier_bias"](evidence, ClusteringConfig()).tolist() == [[-2.0, -1.0, 3.0]]
    shares = SIGNATURES["classifier_norms"](evidence, ClusteringConfig())
    np.testing.assert_allclose(shares, [[1.0, 0.0, 0.0]], atol=2e-3)


def test_parameter_signatures_lie_as_the_vectors_of_all_parameters_do() -> None:
    models = [smooth_net(seed) for seed in range(4)]
    vectors = torch.stack([parameters_to_vector(model.parameters()) for model in models]).detach().double()
    points = SIGNATURES["parameters"](Evidence(models, torch.zeros(4, 1, 3), []), ClusteringConfig())
    assert points.shape == (4, 4)
    np.testing.assert_allclose(points @ points.T, (vectors @ vectors.T).numpy(), rtol=1e-9)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.testing.assert_allclose(distances, torch.cdist(vectors, vectors).numpy(), rtol=1e-6, atol=1e-9)


def test_from_a_shared_start_weights_are_grouped_as_updates_are() -> None:
    models = [smooth_net(seed) for seed in range(7)]
    vectors = torch.stack([parameters_to_vector(model.parameters()) for model in models]).detach().double()
    updates = (vectors - 3.0 * noise(vectors.shape[1], seed=1)).numpy()
    config = ClusteringConfig(by="hierarchical")
    weights = SIGNATURES["hierarchical"](Evidence(models, torch.zeros(7, 1, 3), []), config)
    for count in range(2, 7):
        found, expected = (tidy(agglomerate(one, count, config, 0), count) for one in (weights, updates))
        assert found == expected and len({*found}) == count


def test_pacfl_s_silhouette_is_that_of_its_distances() -> None:
    # Two pairs at a distance of 10 degrees, the pairs 80 apart: 1 - 10/80.
    distances = np.full((4, 4), 80.0)
    np.fill_diagonal(distances, 0.0)
    distances[0, 1] = distances[1, 0] = distances[2, 3] = distances[3, 2] = 10.0
    assert silhouette(distances, (0, 0, 1, 1), "precomputed") == pytest.approx(0.875)


def test_auto_with_pacfl_reads_its_distances_as_distances() -> None:
    # With its rows taken for points, the best silhouette is that of (0, 0, 0, 1).
    distances = np.array([[0, 70, 30, 50], [70, 0, 10, 30], [30, 10, 0, 80], [50, 30, 80, 0]], dtype=float)
    config = ClusteringConfig(clusters="auto", by="pacfl")
    chosen = choose_clusters(distances, config, lambda count: by_proximity(distances, count, config, 0))
    assert chosen == (0, 1, 1, 2)


def test_pacfl_groups_by_the_subspaces_and_says_when_they_are_missing() -> None:
    models = [smooth_net(seed).eval() for seed in range(4)]
    config = ClusteringConfig(clusters=2, by="pacfl", num_probes=4)
    bases = [torch.zeros(1, 12, 2) for _ in models]
    for index, basis in enumerate(bases):
        first = 0 if index in (0, 3) else 6
        basis[0, first, 0] = basis[0, first + 1 + index % 2, 1] = 1.0
    found = cluster_clients(models, 1, config, 0, CPU, bases)
    assert found.assignment == (0, 1, 1, 0) and found.centroid_similarity.shape == (2, 2)
    with pytest.raises(FedBiCrossError, match=r"subspace.*0 of 4"):
        cluster_clients(models, 1, config, 0, CPU)


def test_k_means_starts_where_the_run_s_seed_says() -> None:
    """Six points that are all equally far apart: every start finds other groups."""
    config = ClusteringConfig(n_init=1)
    found = [[k_means(np.eye(6), 3, config, state).tolist() for state in range(5)] for _ in range(2)]
    assert found[0] == found[1] and len({tuple(one) for one in found[0]}) > 1
