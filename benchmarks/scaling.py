"""What each stage costs as clients, clusters and images grow, measured at small width and fitted.

``python -m benchmarks.scaling`` runs the clients' stages for several numbers n of their images, and the
server's for several N and K, on one thread, three times in turn, and fits the medians by the terms that the
algorithm has: a client passes over its images, a model is inverted once, it answers once for every cluster's
images, and each of K targets replays each of K sources.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from scipy.optimize import nnls

from benchmarks.machine import about
from benchmarks.sizes import Sizes
from benchmarks.stages import Bench, Stage
from benchmarks.timing import seconds_of, synchronise
from fedbicross_flwr.compute import Compute, cpu_threads
from fedbicross_flwr.config import RuntimeConfig
from fedbicross_flwr.files import write_bytes
from fedbicross_flwr.methods import METHODS, ClientUpload, ServerTask, StageResult
from fedbicross_flwr.models import state_of
from fedbicross_flwr.progress import Silent

POINTS = ((5, 1), (5, 2), (5, 4), (10, 2), (10, 4), (20, 2), (20, 4), (20, 8), (50, 4), (50, 16), (100, 4))
"""(N, K)"""

BATCHES = (1, 2, 4, 8, 16)
"""A client's images n, in batches of `Sizes.batch`."""

CLIENT_STAGES: Mapping[str, Callable[[Bench], Stage]] = {
    "client training": Bench.client_training,
    "personal distillation": Bench.personal_distillation,
}

TERMS: Mapping[str, tuple[str, Callable[..., list[float]]]] = {
    "client training": ("a + b n", lambda n: [1.0, n]),
    "personal distillation": ("a + b n", lambda n: [1.0, n]),
    "clustering": ("a + b N", lambda n, k: [1.0, n]),
    "synthesis": ("a K + b N", lambda n, k: [k, n]),
    "teacher answers": ("a K + b N K", lambda n, k: [k, n * k]),
    "cross-cluster optimisation": ("a K + b K^2", lambda n, k: [k, k * k]),
}
"""By stage: the formula, and its terms in n, or in N and K. Work is counted, whatever runs side by side."""


@dataclass
class Work:
    """Stages that note the seconds of each kind, side by side or not."""

    device: Compute
    seconds: dict[str, float] = field(default_factory=dict)

    def run(
        self, name: str, kind: str, compute: Callable[[], StageResult], shaped_by: str = ""
    ) -> StageResult:
        """Compute the stage and note its time."""
        start = time.perf_counter()
        result = compute()
        synchronise(self.device)
        self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - start
        return result


def measure(sizes: Sizes, compute: Compute) -> dict[str, float]:
    """Return the seconds of each kind of stage at these sizes."""
    bench, work = Bench.here(sizes, compute), Work(compute)
    states = [state_of(model) for model in bench.models(sizes.clients)]
    uploads = [ClientUpload(client, 1, state) for client, state in enumerate(states)]
    config = sizes.config(teacher__scope="federation", runtime__server_threads=1, clustering__by="outputs")
    METHODS["fedbicross"].serve(uploads, ServerTask(sizes.spec, config, compute, Silent(), work))
    return work.seconds


def measure_client(sizes: Sizes, compute: Compute) -> dict[str, float]:
    """Return the seconds of a client's stages with ``sizes.steps`` batches of images, one epoch each."""
    bench = Bench.here(sizes, compute)
    return {name: seconds_of([stage(bench).ours(0)], compute, 1) for name, stage in CLIENT_STAGES.items()}


def in_turn(
    measure: Callable[[Sizes], dict[str, float]], sizes: Sequence[Sizes], repeats: int
) -> list[dict[str, float]]:
    """Return the median seconds at each of several sizes.

    They are met in turn, so that a slow minute of the machine meets each once at most.
    """
    passes = [[measure(one) for one in sizes] for _ in range(repeats)]
    return [medians(of_point) for of_point in zip(*passes, strict=True)]


def medians(passes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median seconds of each kind of stage."""
    return {kind: statistics.median(one[kind] for one in passes) for kind in passes[0]}


def fit(points: Sequence[tuple[int, ...]], seconds: Sequence[float], stage: str) -> dict[str, Any]:
    """Return the coefficients of a stage's terms, and how far they are off at the worst point.

    Least squares of relative errors, so that small federations count like large ones; no term is negative, as
    each is work.
    """
    terms = np.array([TERMS[stage][1](*point) for point in points])
    relative = terms / np.array(seconds)[:, None]
    coefficients, _ = nnls(relative, np.ones(len(points)))
    error = float(np.abs(relative @ coefficients - 1.0).max())
    return {"formula": TERMS[stage][0], "coefficients": coefficients.tolist(), "largest_error": error}


def fit_all(
    points: Sequence[tuple[int, ...]], measured: Sequence[Mapping[str, float]]
) -> dict[str, dict[str, Any]]:
    """Return the `fit` of every stage that was measured at these points."""
    return {stage: fit(points, [one[stage] for one in measured], stage) for stage in measured[0]}


def say(console: Console, point: str, seconds: Mapping[str, float]) -> None:
    """Print what was measured at a point."""
    shown = ", ".join(f"{kind} {value:.2f} s" for kind, value in seconds.items())
    console.print(f"{point}: {shown}", highlight=False, soft_wrap=True)


def main(
    out: Annotated[Path | None, typer.Option(help="Write the figures as JSON.", metavar="FILE")] = None,
    repeats: Annotated[int, typer.Option(help="How often each point is measured.", min=1)] = 3,
) -> None:
    """Measure and fit the cost of all stages in a client's images n, clients N and clusters K."""
    compute, console = Compute.of(RuntimeConfig()), Console(width=110)
    base = Sizes(width=4, images=32, iterations=4)
    dealt = [dataclasses.replace(base, steps=count, epochs=1) for count in BATCHES]
    sizes = [dataclasses.replace(base, clients=n, clusters=k) for n, k in POINTS]
    with cpu_threads(1):
        machine = about(compute, base)
        # The libraries load on first use; what that takes is no stage's.
        measure_client(dealt[0], compute)
        measure(sizes[0], compute)
        at_clients = in_turn(lambda one: measure_client(one, compute), dealt, repeats)
        at_server = in_turn(lambda one: measure(one, compute), sizes, repeats)
    images = [one.steps * one.batch for one in dealt]
    for count, seconds in zip(images, at_clients, strict=True):
        say(console, f"n = {count:4}", seconds)
    for (clients, clusters), seconds in zip(POINTS, at_server, strict=True):
        say(console, f"N = {clients:3}, K = {clusters:2}", seconds)
    fits = {**fit_all([(n,) for n in images], at_clients), **fit_all(POINTS, at_server)}
    for stage, found in fits.items():
        values = ", ".join(f"{value:.4f}" for value in found["coefficients"])
        line = f"{stage}: {found['formula']} with {values} (within {found['largest_error']:.0%} everywhere)"
        console.print(line, highlight=False, soft_wrap=True)
    if out:
        dealt_rows = [{"images": n, **one} for n, one in zip(images, at_clients, strict=True)]
        rows = [{"clients": n, "clusters": k, **one} for (n, k), one in zip(POINTS, at_server, strict=True)]
        content = {**machine, "repeats": repeats, "clients": dealt_rows, "points": rows, "fits": fits}
        write_bytes(out, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    typer.run(main)
