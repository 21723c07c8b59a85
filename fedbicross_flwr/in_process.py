"""A whole run in this process, without Flower and Ray: for notebooks, tests, and a machine with a GPU.

Client after client, then the server, then client after client. The numbers are those of the same run
under Flower.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fedbicross_flwr.client import first_round, second_round
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.server import Server
from fedbicross_flwr.site_store import SiteStore
from fedbicross_flwr.training import ClientTask


def run_in_process(config: RunConfig, folder: Path, after_client: Callable[[], None] = lambda: None) -> Path:
    """Run both rounds and the server's stages; return the path of the report.

    Parameters
    ----------
    config : RunConfig
        The configuration; ``config.out`` is not read.
    folder : Path
        The run's folder. Called again with the same folder and configuration, an interrupted run goes on.
    after_client : callable
        Called after each client's work.

    Raises
    ------
    FedBiCrossError
        When the data or the folder cannot be used, or no client comes through.
    """
    server = Server.open(config, folder, "in-process")
    start = time.perf_counter()
    for client in range(server.data.partition.num_clients):
        if client not in server.uploads:
            upload(server, client)
            after_client()
    middle = time.perf_counter()
    outcome = server.run_method()
    shipped = time.perf_counter()
    for client in sorted(outcome.assignment):
        personal(server, client)
        after_client()
    end = time.perf_counter()
    return server.finish({"upload round": middle - start, "personalisation round": end - shipped})


def upload(server: Server, client: int) -> None:
    """Do one client's first round."""
    try:
        model = first_round(server.data.client(client), client_task(server, client), store(server, client))
    except FedBiCrossError as error:
        server.refuse(client, str(error))
        return
    said = {"validation_accuracy": model.best_validation_accuracy}
    server.accept(client, len(server.data.partition.train[client]), model.state, said)


def personal(server: Server, client: int) -> None:
    """Do one client's second round."""
    try:
        images = server.data.client(client)
        scores = second_round(
            images, server.cluster_model(client), client_task(server, client), store(server, client)
        )
    except FedBiCrossError as error:
        server.refuse(client, str(error))
        return
    server.record(client, scores)


def client_task(server: Server, client: int) -> ClientTask:
    """Return the client's task."""
    return ClientTask(client, server.spec, server.config, server.compute, server.progress)


def store(server: Server, client: int) -> SiteStore:
    """Return the directory that stands for the client's own."""
    return SiteStore.of(server.config, server.folder.site(client), server.data.source.info.class_names)
