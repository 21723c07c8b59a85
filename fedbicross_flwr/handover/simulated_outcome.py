"""What the method of a simulation learned, from the files that the run leaves behind.

A deployment keeps its outcome (`fedbicross_flwr.centre.kept_outcome`). A simulation keeps its parts: models,
clusters, synthetic images and uploads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from fedbicross_flwr.artifacts import read_tensors
from fedbicross_flwr.clustering import Clustering
from fedbicross_flwr.compute import cpu_threads
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.data.source import IMAGE_SIZE
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.inversion import Synthesis
from fedbicross_flwr.methods import ClientUpload, ServerOutcome, ServerTask
from fedbicross_flwr.methods.fedbicross import build_clusters, made_to_rehearse
from fedbicross_flwr.models import StateDict
from fedbicross_flwr.models.checks import model_problem
from fedbicross_flwr.report.json_node import Node
from fedbicross_flwr.runs.folder import RunFolder
from fedbicross_flwr.shipment import Replay


def simulated_outcome(folder: RunFolder, config: RunConfig, task: ServerTask) -> ServerOutcome:
    """Return models, clusters, and the synthetic images that are shipped.

    Parameters
    ----------
    folder : RunFolder
        Of a simulation whose method is done.
    config : RunConfig
        The run's.
    task : ServerTask
        What the images' answers are computed with.

    Raises
    ------
    FedBiCrossError
        When a file is missing or damaged.
    """
    models: list[StateDict] = []
    while (path := folder.model_path(len(models))).exists():
        models.append(read_tensors(path)[0])
    assignment = assignment_of(folder, config)
    if not assignment:
        raise FedBiCrossError(
            f"{folder.path}: no client has a cluster; the run's files are damaged: restore them"
        )
    if (highest := max(assignment.values())) >= len(models):
        raise FedBiCrossError(
            f"{path} is missing, or clustering.json beside models is damaged: it names cluster {highest}; "
            "restore the file"
        )
    make = REPLAYS.get(config.method) if config.personal.replay else None
    replay = make(folder, assignment, task) if make is not None else None
    return ServerOutcome(tuple(models), assignment, replay=replay)


def assignment_of(folder: RunFolder, config: RunConfig) -> dict[int, int]:
    """Return the clusters that the method found, by client; a global method has one for all."""
    path = folder.path / "clustering.json"
    if path.exists():
        node = Node.read(path)
        clients = [client.integer() for client in node["clients"].list()]
        clusters = [cluster.integer() for cluster in node["assignment"].list(len(clients))]
        return dict(zip(clients, clusters, strict=True))
    everyone = range(config.num_clients)
    sent = [client for client in everyone if folder.upload_path(client).exists()]
    # Many rounds of one of Flower's strategies keep no uploads.
    return dict.fromkeys(sent or everyone, 0)


def kept_uploads(folder: RunFolder, clients: Iterable[int], task: ServerTask) -> list[ClientUpload]:
    """Return uploads in the order of the clients' numbers.

    Raises
    ------
    FedBiCrossError
        When one is missing or damaged, or of another network than the run's.
    """
    found = []
    for client in sorted(clients):
        kept = folder.load_upload(client)
        if kept is None:
            path = folder.upload_path(client)
            raise FedBiCrossError(f"{path} is missing or damaged, and its answers are needed; restore it")
        if problem := model_problem(kept[0].state, task.spec):
            raise FedBiCrossError(f"{folder.upload_path(client)} is damaged: {problem}; restore it")
        found.append(kept[0])
    return found


def fedbicross_replay(folder: RunFolder, assignment: Mapping[int, int], task: ServerTask) -> Replay:
    """Return FedBiCross's images with the answers that its teachers gave.

    The answers are computed again, by the same function, and are the same on the same kind of device.
    """
    path = folder.path / "synthetic.safetensors"
    tensors, _ = read_tensors(path)
    syntheses = []
    for k in range(max(assignment.values()) + 1):
        images, labels = tensors.get(f"images.{k}"), tensors.get(f"labels.{k}")
        size = (task.spec.channels, IMAGE_SIZE, IMAGE_SIZE)
        if images is None or labels is None or images.shape != (labels.numel(), *size):
            raise FedBiCrossError(f"{path} has no images of cluster {k} with their labels; restore the file")
        syntheses.append(Synthesis({0: images}, labels, torch.empty(0)))
    uploads = kept_uploads(folder, assignment, task)
    # Of the clustering, only who belongs to whom is read.
    unread = np.empty((0, 0))
    clustering = Clustering(tuple(assignment[one.client] for one in uploads), unread, unread, None, unread)
    with cpu_threads(1):
        return made_to_rehearse(build_clusters(uploads, clustering, task), syntheses, task)


REPLAYS: Mapping[str, Callable[[RunFolder, Mapping[int, int], ServerTask], Replay]] = {
    "fedbicross": fedbicross_replay
}
"""Methods that ship synthetic images, by name."""
