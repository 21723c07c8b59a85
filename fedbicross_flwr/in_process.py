"""A whole run in this process, without Flower and Ray: for notebooks, tests, and a machine with a GPU.

The clients, then the server, then the clients again; clients work side by side on the CPU's cores. The
numbers are those of the same run under Flower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from fedbicross_flwr.client import first_round, second_round, subspace_of
from fedbicross_flwr.compute import server_threads
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import disk_is_full
from fedbicross_flwr.parallel import Check, side_by_side
from fedbicross_flwr.progress import Progress
from fedbicross_flwr.runs.opening import sole_use
from fedbicross_flwr.server import Server
from fedbicross_flwr.site.store import RowScores, SiteStore
from fedbicross_flwr.training import ClientTask, LocalModel

Result = TypeVar("Result")


def run_in_process(config: RunConfig, folder: Path, after_client: Callable[[], None] = lambda: None) -> Path:
    """Run both rounds and the server's stages; return the path of the report.

    Parameters
    ----------
    config : RunConfig
        The configuration; ``config.out`` is not read.
    folder : Path
        The run's folder. Called again with the same folder and configuration, an interrupted run goes on.
    after_client : callable
        Called after each client's work, in the calling thread and in the order of the clients' numbers.

    Raises
    ------
    FedBiCrossError
        When the data or the folder cannot be used, another run works there, the disk is full, or no client
        comes through.
    """
    with sole_use(folder):
        return run_alone(config, folder, after_client)


def run_alone(config: RunConfig, folder: Path, after_client: Callable[[], None]) -> Path:
    """Run in a folder that nobody else works in."""
    server = Server.open(config, folder, "in-process")
    try:
        return all_rounds(server, after_client)
    except FedBiCrossError as error:
        server.progress.fail(str(error))
        raise


def all_rounds(server: Server, after_client: Callable[[], None]) -> Path:
    """Do what is left of a run."""
    start = time.perf_counter()
    waiting = [one for one in range(server.data.partition.num_clients) if one not in server.uploads]

    def accept(client: int, sent: tuple[LocalModel, Tensor | None]) -> None:
        model, subspace = sent
        said = {"validation_accuracy": model.best_validation_accuracy}
        server.accept(client, len(server.data.partition.train[client]), model.state, said, subspace)

    all_clients(server, waiting, upload, accept, after_client)
    middle = time.perf_counter()
    outcome = server.run_method()
    shipped = time.perf_counter()
    all_clients(server, sorted(outcome.assignment), personal, server.record, after_client)
    end = time.perf_counter()
    return server.finish({"upload round": middle - start, "personalisation round": end - shipped})


def all_clients(
    server: Server,
    clients: Sequence[int],
    work: Callable[[Server, int, Check], Result],
    take: Callable[[int, Result], None],
    after_client: Callable[[], None],
) -> None:
    """Do a round's work of some clients side by side; take what comes of it in the order of their numbers.

    A client that cannot do its work is left out, with the reason. That is not so when the disk is full: it
    is the disk of all, and would leave out one client after another.
    """

    def attempt(client: int, check: Check) -> tuple[int, Result | FedBiCrossError]:
        try:
            return client, work(server, client, check)
        except FedBiCrossError as error:
            if disk_is_full(error):
                raise
            return client, error

    def hand_over(answer: tuple[int, Result | FedBiCrossError]) -> None:
        client, result = answer
        if isinstance(result, FedBiCrossError):
            server.refuse(client, str(result))
        else:
            take(client, result)
        after_client()

    side_by_side(attempt, clients, workers(server), hand_over)


def workers(server: Server) -> int:
    """Return how many clients compute at once: one an accelerator, or as many as the CPU has cores for."""
    runtime = server.config.runtime
    if server.compute.device.type != "cpu":
        return 1
    return max(server_threads(runtime) // runtime.client_threads, 1)


def upload(server: Server, client: int, check: Check) -> tuple[LocalModel, Tensor | None]:
    """Do one client's first round."""
    images, task = server.data.client(client), client_task(server, client, check)
    return first_round(images, task, store(server, client)), subspace_of(images, task)


def personal(server: Server, client: int, check: Check) -> RowScores:
    """Do one client's second round."""
    images, shipped = server.data.client(client), server.shipment(client)
    return second_round(images, shipped, client_task(server, client, check), store(server, client))


def client_task(server: Server, client: int, check: Check) -> ClientTask:
    """Return the client's task, which ends early when the round is given up."""
    progress = Watched(server.progress, check)
    return ClientTask(client, server.spec, server.config, server.compute, progress)


def store(server: Server, client: int) -> SiteStore:
    """Return the directory that stands for the client's own."""
    return SiteStore.of(server.config, server.folder.site(client), server.data.source.info.class_names)


@dataclass(frozen=True)
class Watched:
    """Progress that asks at each step whether to go on."""

    progress: Progress
    check: Check

    def advance(self, stage: str, done: int, total: int, *, client: int | None = None) -> None:
        """Note a step, unless the work was given up."""
        self.check()
        self.progress.advance(stage, done, total, client=client)

    def note(self, text: str) -> None:
        """Note a fact."""
        self.progress.note(text)
