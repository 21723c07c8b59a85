"""PACFL: bases against the full SVD, angles against SciPy, invariances, and groups that are plain to see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from tiny import generator, noise
from tiny import one_thread as one_thread
from torch import Tensor

from fedbicross_flwr.clustering import by_proximity, choose_clusters
from fedbicross_flwr.config_fedbicross import ClusteringConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.labelled_images import LabelledImages
from fedbicross_flwr.pacfl import (
    data_subspace,
    leading_vectors,
    principal_angles,
    proximity_matrix,
    span,
    subspace_bytes,
)

D = 28 * 28


def cluster_proximity(proximity: NDArray[np.float64], clusters: int) -> tuple[int, ...]:
    config = ClusteringConfig(clusters=clusters)
    return choose_clusters(proximity, config, lambda count: by_proximity(proximity, count, config, 0))


def orthonormal(features: int, rank: int, seed: int) -> Tensor:
    random = torch.randn(features, rank, generator=generator(seed), dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(random)[0]
    return basis


def turn(rank: int, seed: int) -> Tensor:
    return orthonormal(rank, rank, seed)


def sent(*bases: Tensor) -> Tensor:
    """Bases (d, p) of the classes in the shape of an upload."""
    return torch.stack(bases).float()


def images_of(directions: Tensor, count: int, seed: int) -> Tensor:
    """Images (count, 1, 28, 28) that are mixtures of a few directions (784, k), and a little noise."""
    weights = noise(count, directions.shape[1], seed=seed) + 2.0
    pixels = weights @ directions.T.float() + 1e-3 * noise(count, D, seed=seed + 1)
    return pixels.view(count, 1, 28, 28)


def client(kind: int, seed: int, count: int = 40) -> LabelledImages:
    """A client of one of several kinds; a kind's classes have directions of their own."""
    labels = torch.arange(count) % 2
    images = torch.zeros(count, 1, 28, 28)
    for label in (0, 1):
        directions = orthonormal(D, 3, 100 * kind + label)
        rows = labels == label
        images[rows] = images_of(directions, int(rows.sum()), 10 * seed + label)
    return LabelledImages(images, labels)


@pytest.mark.parametrize(("count", "features"), [(5, 40), (40, 40), (200, 40), (3, 12)])
def test_leading_vectors_are_those_of_the_svd(count: int, features: int) -> None:
    scale = 0.7 ** torch.arange(features, dtype=torch.float64)
    rows = noise(count, features, seed=count).double() * scale
    found = leading_vectors(rows, 3)
    expected = torch.linalg.svd(rows.T, full_matrices=False)[0][:, :3]
    assert found.shape == (features, 3)
    torch.testing.assert_close(found.T @ found, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close((found * expected).sum(0).abs(), torch.ones(3, dtype=torch.float64))
    assert (found.max(0).values == found.abs().max(0).values).all()  # the largest entry is positive


def test_each_class_has_a_basis_and_absent_directions_are_zero() -> None:
    labels = torch.tensor([0] * 10 + [2] * 2 + [3] * 4)
    images = noise(16, 1, 28, 28)
    images[13:] = images[12]  # four times the same image
    subspace = data_subspace(LabelledImages(images, labels), 5, 3)
    assert subspace.shape == (5, D, 3) and subspace.dtype == torch.float32
    present = [[True] * 3, [False] * 3, [True, True, False], [True, False, False], [False] * 3]
    assert subspace.any(1).tolist() == present
    for basis, columns in zip(subspace, present, strict=True):
        gram = basis.T @ basis
        torch.testing.assert_close(gram, torch.diag(torch.tensor(columns).float()), rtol=0, atol=1e-5)
    mean = images[12].flatten() / images[12].norm()
    assert float((subspace[3, :, 0] @ mean).abs()) == pytest.approx(1.0, abs=1e-5)


def test_images_of_zeros_have_no_direction() -> None:
    subspace = data_subspace(LabelledImages(torch.zeros(4, 1, 28, 28), torch.zeros(4).long()), 1, 2)
    assert not subspace.any()
    with pytest.raises(FedBiCrossError, match="empty or not finite"):
        span(subspace)
    with pytest.raises(FedBiCrossError, match="empty or not finite"):
        proximity_matrix([sent(orthonormal(D, 2, 0)), torch.full((1, D, 2), torch.nan)])


def test_order_size_and_sign_of_the_images_do_not_matter() -> None:
    own = client(1, seed=3)
    order = torch.randperm(len(own), generator=generator(5))
    subspace = data_subspace(own, 2, 3)
    for other in (
        LabelledImages(own.images[order], own.labels[order]),
        LabelledImages(0.3 * own.images, own.labels),
        LabelledImages(-own.images, own.labels),
    ):
        torch.testing.assert_close(data_subspace(other, 2, 3), subspace, rtol=0, atol=1e-5)
    assert torch.equal(data_subspace(own, 2, 3), subspace)


def test_bytes_are_those_of_the_tensor() -> None:
    subspace = data_subspace(client(0, seed=0), 4, 3)
    assert subspace_bytes(4, D, 3) == subspace.numel() * subspace.element_size() == 37632


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.integers(0, 10**6))
def test_angles_are_scipys(m: int, n: int, shared: int, seed: int) -> None:
    common = orthonormal(30, shared, seed) if shared else torch.zeros(30, 0, dtype=torch.float64)
    a, b = (
        torch.linalg.qr(torch.cat([common, orthonormal(30, size, seed + 1 + side)], 1))[0]
        for side, size in enumerate((m, n))
    )
    found = principal_angles(a, b)
    expected = np.rad2deg(subspace_angles(a.numpy(), b.numpy()))[::-1]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert int((found < 1e-5).sum()) >= shared


def test_angles_by_hand() -> None:
    axes = torch.eye(4, dtype=torch.float64)
    half = 0.5**0.5
    tilted = torch.stack([axes[0], half * (axes[1] + axes[2])], 1)
    torch.testing.assert_close(
        principal_angles(axes[:, :2], tilted), torch.tensor([0.0, 45.0], dtype=torch.float64)
    )
    torch.testing.assert_close(
        principal_angles(axes[:, :2], axes[:, 2:]), torch.tensor([90.0, 90.0], dtype=torch.float64)
    )


def test_a_direction_that_a_class_lacks_does_not_count() -> None:
    axes, nothing = torch.eye(5), torch.zeros(5)
    half = 0.5**0.5
    one = torch.stack([axes[:, :1], torch.zeros(5, 1)])  # the client lacks the second class
    two = torch.stack([(half * (axes[0] + axes[1])).unsqueeze(1), axes[:, 3:4]])
    np.testing.assert_allclose(proximity_matrix([one, two])[0, 1], 45.0, atol=1e-3)
    shared = torch.stack([axes[:, 2:3], nothing.unsqueeze(1)])
    np.testing.assert_allclose(proximity_matrix([one, shared])[0, 1], 90.0, atol=1e-3)


def distance(one: Tensor, other: Tensor) -> float:
    return float(proximity_matrix([one, other])[0, 1])


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_distance_depends_on_the_subspaces_alone(seed: int) -> None:
    a = [orthonormal(20, 2, seed + i) for i in (0, 1)]
    b = [orthonormal(20, 2, seed + i) for i in (2, 3)]
    expected = distance(sent(*a), sent(*b))
    assert 0 < expected <= 90
    turned = sent(a[0] @ turn(2, seed + 4), -a[1])
    assert distance(turned, sent(*b)) == pytest.approx(expected, abs=1e-2)
    assert distance(sent(*a[::-1]), sent(*b)) == pytest.approx(expected, abs=1e-2)
    whole = turn(20, seed + 5)  # all pixels of both clients are mixed alike
    mixed = [sent(*(whole @ basis for basis in bases)) for bases in (a, b)]
    assert distance(*mixed) == pytest.approx(expected, abs=1e-2)
    assert distance(turned, sent(*a)) < 0.1


def test_a_direction_that_two_classes_share_counts_once() -> None:
    basis = orthonormal(20, 2, 0)
    assert span(sent(basis, basis)).shape == (20, 2)
    assert span(sent(basis, orthonormal(20, 2, 1))).shape == (20, 4)


def test_two_obvious_groups_are_found_in_any_order() -> None:
    kinds = [1, 0, 0, 1, 1, 0]
    subspaces = [data_subspace(client(kind, seed), 2, 3) for seed, kind in enumerate(kinds)]
    proximity = proximity_matrix(subspaces)
    assert proximity.shape == (6, 6) and not proximity.diagonal().any()
    np.testing.assert_array_equal(proximity, proximity.T)
    same = np.equal.outer(kinds, kinds)
    assert proximity[same].max() < 0.5 * proximity[~same].min()
    assert cluster_proximity(proximity, 2) == (0, 1, 1, 0, 0, 1)
    order = [3, 5, 0, 1, 4, 2]
    turned = proximity_matrix([subspaces[i] for i in order])
    np.testing.assert_allclose(turned, proximity[np.ix_(order, order)], atol=1e-6)
    assert cluster_proximity(turned, 2) == (0, 1, 0, 1, 0, 1)


def test_linkage_is_the_average() -> None:
    # Single linkage would chain 0-1-2-3 and leave 4 alone; the average keeps the chain apart.
    points = np.array([0.0, 1.0, 2.1, 3.3, 4.7])
    assert cluster_proximity(np.abs(points[:, None] - points), 2) == (0, 0, 1, 1, 1)


def test_numbers_of_clusters() -> None:
    proximity = np.array([[0.0, 1.0, 9.0], [1.0, 0.0, 9.0], [9.0, 9.0, 0.0]])
    assert cluster_proximity(proximity, 1) == (0, 0, 0)
    assert cluster_proximity(proximity, 2) == (0, 0, 1)
    assert cluster_proximity(proximity, 3) == (0, 1, 2)
    assert cluster_proximity(np.zeros((1, 1)), 1) == (0,)
