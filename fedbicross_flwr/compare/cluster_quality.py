"""How well clusters of clients match the clients' true label distributions: known to a simulation alone.

Nothing that trains or chooses may read this: at real sites nobody holds the counts. It judges what was found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from fedbicross_flwr.clustering import tidy
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.seeds import derive_seed

RESTARTS = 50
"""Restarts of K-means: there are few clients, and the reference should be the best there is."""


def label_clusters(counts: NDArray[np.int64], clusters: int, seed: int) -> tuple[int, ...]:
    """Return the clusters that K-means finds in the clients' true label distributions.

    Parameters
    ----------
    counts : ndarray
        Training images of each class at each client, (N, C); see `Partition.counts`.
    clusters : int
        K.
    seed : int
        The run's seed.

    Returns
    -------
    tuple of int
        Cluster of each client; none is empty, and they are numbered by their first client.

    Raises
    ------
    FedBiCrossError
        When there are fewer clients than clusters.
    """
    if clusters > len(counts):
        raise FedBiCrossError(
            f"{clusters} clusters asked of {len(counts)} client(s); every cluster needs a client"
        )
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    state = derive_seed(seed, "label-clusters") % 2**32
    # More clusters than distinct clients would leave some empty, with a warning; `tidy` fills them.
    distinct = min(clusters, len(np.unique(shares, axis=0)))
    model = KMeans(distinct, n_init=RESTARTS, random_state=state).fit(shares)
    return tidy(np.asarray(model.labels_, dtype=np.int64), clusters)


def clustering_quality(assignment: Sequence[int], counts: NDArray[np.int64], seed: int) -> float:
    """Return the adjusted Rand index of clusters against `label_clusters` with as many clusters.

    Parameters
    ----------
    assignment : sequence of int
        Cluster of each client, (N,), as `Clustering.assignment` has it.
    counts : ndarray
        (N, C), rows in the same order.
    seed : int
        The run's seed.

    Returns
    -------
    float
        1 for the same clusters, 0 on average for random ones, negative for worse. It says nothing, and is
        1, where there is one cluster or every client has its own.
    """
    expected = label_clusters(counts, len(set(assignment)), seed)
    return float(adjusted_rand_score(expected, assignment))
