"""A site whose upload the method did not see: it came late, or was held back.

Nothing is learned anew for it. It joins the cluster whose models are most like its own, by the signature that
made the clusters (``clustering.by``) and K-means' own rule for a new point, and gets that cluster's model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedbicross_flwr.clustering import SIGNATURES, centroids, evidence_of
from fedbicross_flwr.compute import cpu_threads
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.methods import ClientUpload, ServerTask
from fedbicross_flwr.models import StateDict


def nearest_cluster(
    state: StateDict,
    assignment: Mapping[int, int],
    uploads: Mapping[int, ClientUpload],
    task: ServerTask,
) -> int:
    """Return the cluster whose mean signature is nearest.

    Parameters
    ----------
    state : StateDict
        The site's own model.
    assignment : mapping of int to int
        Clusters of the clients that the method saw.
    uploads : mapping of int to ClientUpload
        Their uploads, by client.

    Raises
    ------
    FedBiCrossError
        When one of these was lost: among the others, the site might join another cluster.
    """
    clusters = sorted(set(assignment.values()))
    if len(clusters) == 1:
        return clusters[0]
    config = task.config.clustering
    seen = sorted(assignment)
    if lost := [client for client in seen if client not in uploads]:
        raise FedBiCrossError(
            f"its cluster cannot be told while the upload of client {lost[0]} is lost; have that client "
            "connect, which uploads it again, and then this one"
        )
    models = [task.load(one) for one in (*(uploads[client].state for client in seen), state)]
    with cpu_threads(1):
        evidence = evidence_of(models, task.spec.channels, config, task.config.seed, task.compute)
        *members, own = SIGNATURES[config.by](evidence, config)
    numbers = [clusters.index(assignment[client]) for client in seen]
    distances = np.linalg.norm(centroids(np.stack(members), numbers) - own, axis=1)
    return clusters[int(distances.argmin())]
