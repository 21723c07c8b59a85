"""Stage 1, clusters: which clients' models answer alike (Section III-A1).

A *signature* is one vector a client, computed from its upload alone; clusterers group the signatures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.metrics import silhouette_score
from torch import Tensor, nn

from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config_fedbicross import ClusteringConfig
from fedbicross_flwr.ensemble import class_shares
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.labelled_images import predict_logits
from fedbicross_flwr.pacfl import proximity_matrix
from fedbicross_flwr.seeds import derive_seed, torch_generator

Signatures = NDArray[np.float64]
"""One row a client, shape (N, d)."""


@dataclass(frozen=True)
class Clustering:
    """Clients in clusters.

    Parameters
    ----------
    assignment : tuple of int
        Cluster of each client, in the order of the uploads; clusters are numbered by their first client.
    similarity : ndarray
        Cosine of the mean-centred signatures, (N, N).
    centroid_similarity : ndarray
        Cosine of the clusters' mean signatures, (K, K), for ``similarity`` weights.
    silhouette : float or None
        Mean silhouette coefficient; None where it is not defined (one cluster, or every client its own).
    mean_prediction : ndarray
        Mean probability of each class over the probes, (N, C): what a client's model tends to say.
    """

    assignment: tuple[int, ...]
    similarity: NDArray[np.float64]
    centroid_similarity: NDArray[np.float64]
    silhouette: float | None
    mean_prediction: NDArray[np.float64]

    @property
    def clusters(self) -> int:
        """Return K."""
        return max(self.assignment) + 1

    def members(self, cluster: int) -> list[int]:
        """Return the positions of a cluster's clients."""
        return [index for index, own in enumerate(self.assignment) if own == cluster]


def gaussian_probes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw independent pixels from N(0, 1)."""
    return torch.randn(shape, generator=generator)


def smooth_probes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw noise of a quarter of the resolution, enlarged to blobs, with standard deviation 1."""
    count, channels, height, width = shape
    coarse = torch.randn((count, channels, max(height // 4, 1), max(width // 4, 1)), generator=generator)
    blobs = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return blobs / blobs.std()


def colour_probes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw images of a single colour."""
    count, channels, _, _ = shape
    return torch.randn((count, channels, 1, 1), generator=generator).expand(shape)


PROBES: Mapping[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "gaussian": gaussian_probes,
    "smooth": smooth_probes,
    "colour": colour_probes,
}


def draw_probes(config: ClusteringConfig, channels: int, seed: int) -> Tensor:
    """Return the probes z_1..z_M in normalised space, float32 (M, channels, 28, 28)."""
    shape = (config.num_probes, channels, 28, 28)
    return PROBES[config.probes](shape, torch_generator(seed, "probes")) * config.probe_amplitude


def cluster_clients(
    models: Sequence[nn.Module],
    channels: int,
    config: ClusteringConfig,
    seed: int,
    compute: Compute,
    subspaces: Sequence[Tensor] = (),
) -> Clustering:
    """Group clients whose models are alike, or with ``pacfl`` whose data are.

    Parameters
    ----------
    models : sequence of nn.Module
        The uploads, in a fixed order, on the compute device.
    subspaces : sequence of Tensor
        For ``pacfl``: what each client uploaded besides, see `fedbicross_flwr.pacfl`.

    Raises
    ------
    FedBiCrossError
        When there are fewer clients than clusters, or a subspace is missing.
    """
    wanted = config.clusters
    if isinstance(wanted, int) and wanted > len(models):
        raise FedBiCrossError(
            f"clustering.clusters = {wanted}, but only {len(models)} client(s) uploaded a usable model; "
            "lower the number of clusters or bring back the missing clients"
        )
    evidence = evidence_of(models, channels, config, seed, compute, subspaces)
    signatures = SIGNATURES[config.by](evidence, config)
    group = CLUSTERERS.get(config.by, k_means)
    state = derive_seed(seed, "clustering") % 2**32
    assignment = choose_clusters(signatures, config, lambda count: group(signatures, count, config, state))
    return Clustering(
        assignment,
        cosine(signatures - signatures.mean(0, keepdims=True)),
        cosine(centroids(signatures, assignment)),
        silhouette(signatures, assignment, metric_of(config)),
        F.softmax(evidence.answers, -1).mean(1).double().numpy(),
    )


@dataclass(frozen=True)
class Evidence:
    """What signatures are made of: the models, their logits on the probes (N, M, C), and subspaces."""

    models: Sequence[nn.Module]
    answers: Tensor
    subspaces: Sequence[Tensor]


def evidence_of(
    models: Sequence[nn.Module],
    channels: int,
    config: ClusteringConfig,
    seed: int,
    compute: Compute,
    subspaces: Sequence[Tensor] = (),
) -> Evidence:
    """Ask the models on the probes; the rest is as for `cluster_clients`."""
    probes = draw_probes(config, channels, seed)
    answers = torch.stack([predict_logits(model, probes, compute) for model in models]).cpu()
    return Evidence(models, answers, subspaces)


def output_signature(evidence: Evidence, config: ClusteringConfig) -> Signatures:
    """Return p_i: the predictions on all probes, flattened to M * C."""
    answers = evidence.answers
    outputs = F.softmax(answers, -1) if config.signature == "probabilities" else answers
    return outputs.flatten(1).double().numpy()


def bias_signature(evidence: Evidence, config: ClusteringConfig) -> Signatures:
    """Return the bias of the last layer, centred: a constant added to all classes changes nothing."""
    biases = torch.stack([last_layer(model).bias.detach().cpu().double() for model in evidence.models])
    return (biases - biases.mean(1, keepdim=True)).numpy()


def norm_signature(evidence: Evidence, config: ClusteringConfig) -> Signatures:
    """Return each client's estimated label distribution, of the norms of the last layer's rows."""
    return torch.stack([class_shares(model).cpu().double() for model in evidence.models]).numpy()


def parameter_signature(evidence: Evidence, config: ClusteringConfig) -> Signatures:
    """Return points that lie to each other, and to zero, as the vectors of all parameters do: (N, N).

    By K-means they are the paper's ablation after its reference [20] (Ghosh et al., *Robust federated
    learning in a heterogeneous environment*, arXiv:1906.06629, 2019), who cluster local models too, but by
    a K-means with robust means, as some of their clients lie; here the means are plain ones.

    All that is done with signatures depends on their inner products alone, which take the memory of one
    layer of all models; the vectors themselves, in float64, would take gigabytes at full width.
    """
    count = len(evidence.models)
    products = torch.zeros(count, count, dtype=torch.float64)
    for layer in zip(*(model.parameters() for model in evidence.models), strict=True):
        # On the CPU, as not every accelerator knows float64.
        rows = torch.stack([parameter.detach().reshape(-1).cpu() for parameter in layer]).double()
        products += rows @ rows.T
    values, vectors = torch.linalg.eigh(products)
    points: Signatures = (vectors * values.clamp_min(0.0).sqrt()).numpy()
    return points


def subspace_signature(evidence: Evidence, config: ClusteringConfig) -> Signatures:
    """Return each client's distances to all clients, by the principal angles of their data's subspaces."""
    if len(evidence.subspaces) != len(evidence.models):
        raise FedBiCrossError(
            "clustering.by = 'pacfl' needs the subspace that each client uploads besides its model, but "
            f"{len(evidence.subspaces)} of {len(evidence.models)} are there; run the first round again"
        )
    return proximity_matrix(evidence.subspaces)


def last_layer(model: nn.Module) -> nn.Linear:
    """Return the classifier."""
    assert isinstance(model.fc, nn.Linear)
    return model.fc


SIGNATURES: Mapping[str, Callable[[Evidence, ClusteringConfig], Signatures]] = {
    "outputs": output_signature,
    "classifier_bias": bias_signature,
    "classifier_norms": norm_signature,
    "parameters": parameter_signature,
    "hierarchical": parameter_signature,
    "pacfl": subspace_signature,
}


def k_means(signatures: Signatures, count: int, config: ClusteringConfig, state: int) -> NDArray[np.int64]:
    """Group by K-means; the best of ``n_init`` seeded starts."""
    model = KMeans(count, n_init=config.n_init, random_state=state).fit(signatures)
    return np.asarray(model.labels_, dtype=np.int64)


def agglomerate(
    signatures: Signatures, count: int, config: ClusteringConfig, state: int
) -> NDArray[np.int64]:
    """Group bottom-up with Ward's linkage, after Briggs et al., IJCNN 2020, the paper's reference [10].

    They cut the tree at a threshold of the distance, here it gives K clusters; and they compare the updates
    of a round, here the weights are compared. The two differ by the start alone, which leaves all distances
    as they are where clients share it (``client.initial_weights = "shared"``), and not otherwise.
    """
    model = AgglomerativeClustering(count, linkage="ward").fit(signatures)
    return np.asarray(model.labels_, dtype=np.int64)


def by_proximity(
    signatures: Signatures, count: int, config: ClusteringConfig, state: int
) -> NDArray[np.int64]:
    """Group bottom-up by average linkage of the distances that the signatures are (PACFL)."""
    model = AgglomerativeClustering(count, metric="precomputed", linkage="average").fit(signatures)
    return np.asarray(model.labels_, dtype=np.int64)


CLUSTERERS: Mapping[str, Callable[..., NDArray[np.int64]]] = {
    "hierarchical": agglomerate,
    "pacfl": by_proximity,
}


def choose_clusters(
    signatures: Signatures, config: ClusteringConfig, group: Callable[[int], NDArray[np.int64]]
) -> tuple[int, ...]:
    """Return the assignment for the configured K, or for the K with the best silhouette."""
    clients = len(signatures)
    if clients == 1:  # which is nothing to group, and refused by what groups bottom-up
        return (0,)
    if isinstance(config.clusters, int):
        return tidy(group(config.clusters), config.clusters)
    if clients == 2:
        return (0, 0)
    candidates = [tidy(group(count), count) for count in range(2, clients)]
    scores = [silhouette(signatures, assignment, metric_of(config)) for assignment in candidates]
    ranks = [-1.0 if score is None else score for score in scores]
    return candidates[ranks.index(max(ranks))]


def tidy(labels: NDArray[np.int64], count: int) -> tuple[int, ...]:
    """Return canonical clusters: none empty, numbered by their smallest member.

    K-means leaves clusters empty where signatures coincide; then the largest clusters give up their last
    members, which are as good a cluster as any.
    """
    groups = [list(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    while len(groups) < count:
        largest = max(groups, key=len)
        groups.append([largest.pop()])
    assignment = np.empty(len(labels), dtype=np.int64)
    for cluster, group in enumerate(sorted(groups, key=min)):
        assignment[group] = cluster
    return tuple(int(cluster) for cluster in assignment)


METRICS: Mapping[str, str] = {"pacfl": "precomputed"}
"""What the signatures are to scikit-learn's scores, where they are not points: distances of all pairs."""


def metric_of(config: ClusteringConfig) -> str:
    """Return how signatures are compared."""
    return METRICS.get(config.by, "euclidean")


def silhouette(signatures: Signatures, assignment: Sequence[int], metric: str = "euclidean") -> float | None:
    """Return the mean silhouette coefficient, None where it is not defined."""
    if not 1 < len(set(assignment)) < len(assignment):
        return None
    return float(silhouette_score(signatures, np.asarray(assignment), metric=metric))


def centroids(signatures: Signatures, assignment: Sequence[int]) -> Signatures:
    """Return the mean signature of each cluster, (K, d)."""
    owner = np.asarray(assignment)
    return np.stack([signatures[owner == cluster].mean(0) for cluster in range(owner.max() + 1)])


def cosine(vectors: Signatures) -> NDArray[np.float64]:
    """Return the cosine of all pairs of rows; a row of zeros is like itself alone."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = vectors / np.where(lengths > 0, lengths, 1.0)
    similarity: Signatures = np.clip(directions @ directions.T, -1.0, 1.0)
    np.fill_diagonal(similarity, 1.0)
    return similarity
