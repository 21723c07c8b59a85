"""The cross-cluster weights w_k: their start, their exact gradient, its scale, and the simplex (Eq. 8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbicross_flwr.source_gradients import SourceGradients


def project_onto_simplex(vector: Tensor) -> Tensor:
    """Return the nearest point with entries >= 0 that sum to one (Euclidean projection).

    The sort-based algorithm of Duchi et al. (2008); shape (K,).
    """
    # A constant added to all entries does not move the projection; without it float32 loses large ones.
    vector = vector - vector.max()
    ordered = vector.sort(descending=True).values
    excess = (ordered.cumsum(0) - 1.0) / torch.arange(1, len(vector) + 1, device=vector.device)
    # At least the largest entry, but for values that are no numbers, which stay what they are.
    support = (ordered > excess).sum(0, keepdim=True).clamp_min(1)
    # By an index that is a tensor, as an integer would have to come from the device.
    return (vector - excess.gather(0, support - 1)).clamp_min(0.0)


def outer_gradient(validation_gradient: Tensor, source_gradients: SourceGradients, lr: float) -> Tensor:
    """Return dL_val/dw, shape (K,), through one SGD step of size `lr`.

    Parameters
    ----------
    validation_gradient : Tensor
        grad L_val at the updated model, flat, shape (P,).
    source_gradients : SourceGradients
        grad L_j at the model before the step.
    """
    return -lr * source_gradients.along(validation_gradient)


def unscaled(
    gradient: Tensor, validation_gradient: Tensor, source_gradients: SourceGradients, lr: float
) -> Tensor:
    """Return the gradient as it is."""
    return gradient


def l2_scaled(
    gradient: Tensor, validation_gradient: Tensor, source_gradients: SourceGradients, lr: float
) -> Tensor:
    """Return the gradient at length one; zero stays zero."""
    scaled: Tensor = gradient / gradient.norm().clamp_min(1e-12)
    return scaled


def cosine_scaled(
    gradient: Tensor, validation_gradient: Tensor, source_gradients: SourceGradients, lr: float
) -> Tensor:
    """Return minus the cosine of the validation gradient with each source's gradient."""
    lengths = validation_gradient.norm() * source_gradients.lengths()
    scaled: Tensor = gradient / (lr * lengths).clamp_min(1e-12)
    return scaled


SCALES: Mapping[str, Callable[[Tensor, Tensor, SourceGradients, float], Tensor]] = {
    "none": unscaled,
    "l2": l2_scaled,
    "cosine": cosine_scaled,
}


def initial_weights(name: str, clusters: int, similarity: NDArray[np.float64]) -> Tensor:
    """Return the start of all w_k (K, K), which ``learned`` moves and every other choice keeps."""
    return torch.as_tensor(WEIGHTS[name](clusters, similarity), dtype=torch.float32)


def similarity_weights(clusters: int, similarity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine of the clusters' centroids, clipped at 0 and normalised by row."""
    clipped = np.clip(similarity, 0.0, None)
    return np.asarray(clipped / clipped.sum(1, keepdims=True))


WEIGHTS: Mapping[str, Callable[[int, NDArray[np.float64]], NDArray[np.float64]]] = {
    "learned": lambda clusters, similarity: np.full((clusters, clusters), 1.0 / clusters),
    "uniform": lambda clusters, similarity: np.full((clusters, clusters), 1.0 / clusters),
    "intra": lambda clusters, similarity: np.eye(clusters),
    "similarity": similarity_weights,
}
