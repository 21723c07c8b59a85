"""Clusters of clients by their data's subspaces, as PACFL finds them (Vahidian et al., AAAI 2023).

An ablation (Section IV-C). Each client sends the leading left singular vectors of the matrix of each class's
images (one column an image, uncentred). The server measures the principal angles between the clients'
subspaces and clusters bottom-up.

A subspace depends on the client's data, unlike all that FedBiCross uploads: the first vector of a class looks
like its average image, the vectors tell which classes a client holds, and they are an extra upload of
`subspace_bytes`. FedBiCross clusters by the uploaded models instead.

The published code differs in three ways: it cuts the tree at a threshold of the distance, not at K clusters;
it takes more vectors of a client's frequent classes; and it compares the vectors one by one, where
the principal angles used here depend on the subspaces alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.labelled_images import LabelledImages

NEGLIGIBLE = 1e-5
"""A singular value this small, relative to the largest, is rounding: the vectors travel in float32."""


def data_subspace(images: LabelledImages, num_classes: int, rank: int) -> Tensor:
    """Return what a client uploads: an orthonormal basis of each class's leading directions.

    Parameters
    ----------
    images : LabelledImages
        The client's own images, its validation images among them.
    num_classes : int
        C, also where the client lacks some of them.
    rank : int
        p, the vectors a class; a small number such as 3.

    Returns
    -------
    Tensor
        float32 (C, channels * 28 * 28, p) on the CPU. A class with fewer than p independent images has
        columns of zeros; one without images has zeros alone. Signs are fixed, so that equal data gives
        equal bits.
    """
    pixels = images.images.detach().flatten(1).cpu()
    labels = images.labels.cpu()
    subspace = torch.zeros(num_classes, pixels.shape[1], rank)
    for label in range(num_classes):
        basis = leading_vectors(pixels[labels == label].double(), rank)
        subspace[label, :, : basis.shape[1]] = basis.float()
    return subspace


def leading_vectors(rows: Tensor, rank: int) -> Tensor:
    """Return the leading singular vectors of n images (n, d), float64 (d, `rank`) or fewer if no more exist.

    They come from the eigenvectors of the smaller of the two Gram matrices, which is all of the SVD needed.
    """
    if not rows.any():
        return rows.new_zeros(rows.shape[1], 0)
    wide = rows.shape[0] <= rows.shape[1]
    values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    sizes = values.flip(0)[:rank].clamp_min(0.0).sqrt()
    leading = vectors.flip(1)[:, :rank][:, sizes > NEGLIGIBLE * sizes[0]]
    # Vectors that were carried over from the other side are orthogonal up to rounding; QR makes them unit.
    basis, _ = torch.linalg.qr(rows.T @ leading if wide else leading)
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    signed: Tensor = basis * largest.sign()
    return signed


def subspace_bytes(num_classes: int, features: int, rank: int) -> int:
    """Return the bytes that a client uploads for it, with `features` = channels * 28 * 28."""
    return num_classes * features * rank * torch.finfo(torch.float32).bits // 8


def span(subspace: Tensor) -> Tensor:
    """Return an orthonormal basis, float64 (d, m), of all directions of a client, whatever their class.

    Raises
    ------
    FedBiCrossError
        When the subspace holds no direction, or a value that is not finite.
    """
    columns = subspace.permute(1, 0, 2).flatten(1).double()
    if not (torch.isfinite(columns).all() and columns.any()):
        raise FedBiCrossError(
            "a client's data subspace is empty or not finite; an image that is not all zero is needed"
        )
    vectors, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    basis: Tensor = vectors[:, sizes > NEGLIGIBLE * sizes[0]]
    return basis


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """Return the principal angles between the spans of two orthonormal bases, in degrees, ascending.

    Parameters
    ----------
    a, b : Tensor
        float64 (d, m) and (d, n); there are min(m, n) angles.
    """
    cosines = torch.linalg.svdvals(a.T @ b).clamp(0.0, 1.0)
    return torch.rad2deg(torch.arccos(cosines))


def smallest_angle(a: Tensor, b: Tensor) -> float:
    """Return the smallest principal angle of two spans, in degrees 0..90, given by orthonormal bases.

    It says how near two clients come to each other in a single direction. PACFL takes it, or the sum of all
    angles, which does not compare between clients with different numbers of classes.
    """
    return float(principal_angles(a, b)[0])


def proximity_matrix(subspaces: Sequence[Tensor]) -> NDArray[np.float64]:
    """Return the smallest angle of each two clients in degrees, symmetric (N, N) with a diagonal of zeros.

    Parameters
    ----------
    subspaces : sequence of Tensor
        From `data_subspace`, (C, d, p).

    Raises
    ------
    FedBiCrossError
        See `span`.
    """
    spans = [span(subspace) for subspace in subspaces]
    proximity = np.zeros((len(spans), len(spans)))
    for i, j in itertools.combinations(range(len(spans)), 2):
        proximity[i, j] = proximity[j, i] = smallest_angle(spans[i], spans[j])
    return proximity
