"""A small federation learned both ways, to its accuracy: ``python -m benchmarks.accuracy``.

Phantoms are dealt to clients as in a run. The software and the plain reference each train the clients, do
stages 1 and 2 by the paper's equations, and make the personal models; the reference is given the clusters
that the software found, and draws of its own. So the two may differ by chance, and in time.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated

import typer
from rich.console import Console
from torch import nn

from benchmarks.cell import plain_federation
from benchmarks.machine import about
from benchmarks.sizes import Sizes
from benchmarks.stages import Bench
from benchmarks.timing import synchronise
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RunConfig, RuntimeConfig
from fedbicross_flwr.distillation import personalise
from fedbicross_flwr.federated_data import FederatedData, deal, open_data
from fedbicross_flwr.files import write_bytes
from fedbicross_flwr.labelled_images import LabelledImages, accuracy
from fedbicross_flwr.methods import METHODS, ClientUpload, ServerTask
from fedbicross_flwr.models import load_state
from fedbicross_flwr.parallel import Check, side_by_side
from fedbicross_flwr.progress import Silent
from fedbicross_flwr.settings import Scalar
from fedbicross_flwr.shipment import Shipment
from fedbicross_flwr.training import ClientTask, train_client

SIZES = Sizes(images=64, clusters=2, clients=5, iterations=30, epochs=8)
DATA: dict[str, Scalar] = {"data.phantom_train": 2000, "data.phantom_test": 1000, "partition.alpha": 0.3}
ROWS = ("local-only", "cluster model", "personal model")
Models = tuple[Sequence[nn.Module], Sequence[nn.Module], Sequence[nn.Module]]
"""Of each client, in the order of `ROWS`."""


def federation(seed: int) -> FederatedData:
    """Return phantoms dealt to the clients."""
    config = RunConfig.from_flat({**DATA, "partition.clients": SIZES.clients, "seed": seed})
    source = open_data(config)
    return FederatedData(source, deal(source, config))


def ours(bench: Bench, datas: Sequence[LabelledImages], seed: int) -> tuple[Models, dict[int, int]]:
    """Learn the federation by the software; return the models, and each client's cluster."""
    config = replace(bench.sizes.config(runtime__server_threads=bench.workers), seed=seed)
    spec, compute = bench.sizes.spec, bench.compute

    def task(client: int) -> ClientTask:
        return ClientTask(client, spec, config, compute, Silent())

    def upload(client: int, check: Check) -> ClientUpload:
        return ClientUpload(client, len(datas[client]), train_client(datas[client], task(client)).state)

    uploads = side_by_side(upload, range(len(datas)), bench.workers)
    outcome = METHODS["fedbicross"].serve(uploads, ServerTask(spec, config, compute, Silent()))
    shipped = [outcome.models[outcome.assignment[one.client]] for one in uploads]

    def distil(client: int, check: Check) -> nn.Module:
        shipment = Shipment(shipped[client], outcome.replay)
        made = personalise(datas[client], shipment, uploads[client].state, task(client))
        return load_state(spec, made)

    personal = side_by_side(distil, range(len(datas)), bench.workers)
    sent = [load_state(spec, one.state) for one in uploads]
    return (sent, [load_state(spec, state) for state in shipped], personal), dict(outcome.assignment)


def scores(bench: Bench, models: Models, tests: LabelledImages) -> dict[str, float]:
    """Return the mean accuracy of the clients' models on all test images, in float32."""
    exact = Compute(bench.compute.device)
    part = tests.to(exact)
    return {
        row: fmean(accuracy(exact.place(copy.deepcopy(model)), part, exact) for model in found)
        for row, found in zip(ROWS, models, strict=True)
    }


def compare(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Learn one federation both ways; return accuracies and seconds by side."""
    data = federation(seed)
    datas = [data.client(client).train for client in range(data.num_clients)]
    synchronise(bench.compute)
    start = time.perf_counter()
    made, clusters = ours(bench, datas, seed)
    synchronise(bench.compute)
    middle = time.perf_counter()
    expected = plain_federation(bench, datas, clusters, seed)
    synchronise(bench.compute)
    end = time.perf_counter()
    tests = data.test_images()
    return {
        "ours": {**scores(bench, made, tests), "seconds": middle - start},
        "reference": {**scores(bench, expected, tests), "seconds": end - middle},
    }


def main(
    seeds: Annotated[int, typer.Option(help="How many seeds: 0, 1, ...", min=1)] = 3,
    out: Annotated[Path | None, typer.Option(help="Write the figures as JSON.", metavar="FILE")] = None,
) -> None:
    """Learn a small federation by the software and by the plain reference; print accuracy and time."""
    bench, console = Bench.here(SIZES, Compute.of(RuntimeConfig())), Console(width=110)
    runs = []
    for seed in range(seeds):
        runs.append(compare(bench, seed))
        for side, found in runs[-1].items():
            shown = ", ".join(f"{row} {100 * found[row]:.1f}" for row in ROWS)
            console.print(f"seed {seed}, {side}: {found['seconds']:.0f} s; {shown}", highlight=False)
    ratio = fmean(run["reference"]["seconds"] / run["ours"]["seconds"] for run in runs)
    for row in ROWS:
        gaps = [100 * (run["ours"][row] - run["reference"][row]) for run in runs]
        error = f" ± {stdev(gaps) / math.sqrt(len(gaps)):.1f} (standard error)" if len(gaps) > 1 else ""
        console.print(f"{row}: ours minus the reference {fmean(gaps):+.1f}{error} points", highlight=False)
    console.print(f"{ratio:.2f} times as fast", highlight=False)
    if out:
        content = {**about(bench.compute, SIZES), "data": DATA, "runs": runs}
        write_bytes(out, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    typer.run(main)
