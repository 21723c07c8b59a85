"""A site whose upload the method did not see: it came late, or was held back.

Nothing is learned anew for it. It joins the cluster whose models answer artificial images most like its own
(Section III-A1's signature, and K-means' own rule for a new point), and gets that cluster's model.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbicross_flwr.clustering import draw_probes
from fedbicross_flwr.compute import cpu_threads
from fedbicross_flwr.methods import ClientUpload, ServerTask
from fedbicross_flwr.models import StateDict
from fedbicross_flwr.training import predict_logits


def nearest_cluster(
    state: StateDict,
    assignment: Mapping[int, int],
    uploads: Mapping[int, ClientUpload],
    task: ServerTask,
) -> int:
    """Return the cluster whose mean answers are nearest.

    Parameters
    ----------
    state : StateDict
        The site's own model.
    assignment : mapping of int to int
        Clusters of the clients that the method saw.
    uploads : mapping of int to ClientUpload
        Their uploads, by client.
    """
    clusters = sorted(set(assignment.values()))
    if len(clusters) == 1:
        return clusters[0]
    probes = draw_probes(task.config.clustering, task.spec.channels, task.config.seed)

    def answers(model: StateDict) -> Tensor:
        logits = predict_logits(task.load(model), probes, task.compute)
        return F.softmax(logits, -1).flatten().double().cpu()

    with cpu_threads(1):
        own = answers(state)
        distances = []
        for cluster in clusters:
            members = [client for client, number in assignment.items() if number == cluster]
            centre = torch.stack([answers(uploads[client].state) for client in sorted(members)]).mean(0)
            distances.append(float((own - centre).norm()))
    return clusters[distances.index(min(distances))]
