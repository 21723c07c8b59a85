"""How long a cell of the paper's own size takes, in seconds: round 1 of all clients, and the server's stages.

Nothing is beside it: the plain reference would take hours. For an accelerator; a CPU would take days.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from benchmarks.cell import serve_in_turn, uploads_in_turn
from benchmarks.sizes import PAPER
from benchmarks.stages import Bench
from benchmarks.timing import seconds_of
from fedbicross_flwr.methods import ServerTask
from fedbicross_flwr.parallel import Check, side_by_side
from fedbicross_flwr.progress import Silent
from fedbicross_flwr.training import train_client

SIZES = dataclasses.replace(PAPER, iterations=500, epochs=100)
"""As many images as BloodMNIST has for training at five clients, 100 epochs; K = 3, T = 500, B = 256."""
GOAL = 60.0
"""Seconds that are aimed at for each of the two, on a data-centre GPU."""


def round_one(bench: Bench) -> None:
    """Train every client on images of its own, as a run in one process does."""
    datas = [bench.data(bench.sizes.client_images, client) for client in range(bench.sizes.clients)]

    def train(client: int, check: Check) -> None:
        train_client(datas[client], bench.task(client))

    side_by_side(train, range(len(datas)), bench.workers)


def server_stages(bench: Bench) -> None:
    """Cluster, invert and optimise, given one upload of each client; nothing is kept in a run's folder."""
    sizes = bench.sizes
    uploads = uploads_in_turn(bench.models(sizes.clients), sizes)
    config = sizes.config(runtime__server_threads=bench.workers)
    serve_in_turn(uploads, ServerTask(sizes.spec, config, bench.compute, Silent()))


PARTS: Mapping[str, Callable[[Bench], None]] = {"round": round_one, "server": server_stages}
"""What can be timed, by its name on the command line."""


def seconds(name: str, bench: Bench) -> float:
    """Return how long a part takes, the first use of the device included."""
    return seconds_of([lambda: PARTS[name](bench)], bench.compute, 1)
