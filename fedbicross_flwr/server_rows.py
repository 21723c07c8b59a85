"""Rows of the results that the server scores: models that no client holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedbicross_flwr.ensemble import Ensemble, ensemble_scores
from fedbicross_flwr.evaluation import Probabilities, score
from fedbicross_flwr.federated_data import FederatedData
from fedbicross_flwr.labelled_images import predict_logits
from fedbicross_flwr.methods import ClientUpload, ServerTask, StageResult
from fedbicross_flwr.methods.fedavg import fedavg
from fedbicross_flwr.runs.record import ClientRecord

EVALUATION = "evaluation"
"""What the seconds of these rows count as."""


def server_scores(
    uploads: Sequence[ClientUpload], clients: Sequence[ClientRecord], data: FederatedData, task: ServerTask
) -> None:
    """Add the rows FedAvg-1 and the ensemble of all uploads to the clients' records.

    Both answer the whole test split once, and once for all runs that share these uploads; a client's
    ``local`` score reads its part of the answers. The ensemble is the mean of logits (Section III-A1).

    Parameters
    ----------
    uploads : sequence of ClientUpload
        All that were accepted, by client.
    clients : sequence of ClientRecord
        Those whose record gets the rows.
    data : FederatedData
        Gives the test split, and the part of it that is each client's.
    task : ServerTask
        Configuration and device; the answers are one of its stages.
    """
    labels = data.source.labels("test")

    def compute() -> StageResult:
        tests = data.test_images().to(task.compute)
        average = task.load(fedavg(uploads, task).models[0])
        ensemble = Ensemble([task.load(upload.state) for upload in uploads], "logits")
        return StageResult(
            {
                "fedavg": predict_logits(average, tests.images, task.compute).cpu(),
                "ensemble": ensemble_scores(ensemble, tests.images, task.compute).cpu(),
            }
        )

    shaped_by = task.shaped_by(uploads, ("fedavg",), "server rows", data.source.fingerprint())
    answers = task.stages.run("server-rows", EVALUATION, compute, shaped_by).tensors
    for row, logits in sorted(answers.items()):
        add_row(row, labels, logits.softmax(1).double().numpy(), clients, data)


def add_row(
    row: str,
    labels: NDArray[np.int64],
    probabilities: Probabilities,
    clients: Sequence[ClientRecord],
    data: FederatedData,
) -> None:
    """Score one set of answers for every client, under both protocols."""
    everywhere = score(labels, probabilities)
    for client in clients:
        own = data.partition.test[client.client]
        client.scores[row] = {"global": everywhere}
        if len(own):
            client.scores[row]["local"] = score(labels[own], probabilities[own])
