"""Peak memory of stages 1 and 2, each side in a process of its own.

What a process occupies is more than it has in use: the C library keeps freed tensors of up to 32 MB for later
ones, which may not fit. So both are measured.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.cell import grouped, plain_stages, serve_in_turn, turns, uploads_in_turn
from benchmarks.sizes import Sizes
from benchmarks.stages import AT_ONCE, Bench
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RuntimeConfig
from fedbicross_flwr.methods import ServerTask
from fedbicross_flwr.progress import Silent
from fedbicross_flwr.settings import Scalar

OURS: Mapping[str, Mapping[str, Scalar]] = {
    "ours": {},
    "ours, least": {
        "inversion__teachers": "in_turn",
        "inversion__images_at_once": AT_ONCE,
        "cross_cluster__activations": "recomputed",
        "runtime__server_threads": 1,
    },
}
"""Our sides with their settings: as a run does by itself, and with as little memory as it can."""
SIDES = (*OURS, "reference")
IN_USE = "in use"
READINGS: Mapping[str, Mapping[str, str]] = {"occupied": {}, IN_USE: {"MALLOC_MMAP_THRESHOLD_": "65536"}}
"""What is read, and the environment that does it: glibc then gives back all but small tensors when freed."""

ITERATIONS, MORE_ITERATIONS = 2, 34
"""T: each step needs as much as any other, so that only the kept iterates grow; more T show by how much."""


def shapes(sizes: Sizes) -> dict[str, Sizes]:
    """Return what is measured: the cell, and one cluster of all members."""
    cell = dataclasses.replace(sizes, iterations=ITERATIONS)
    return {f"N = {one.clients}, K = {one.clusters}": one for one in (cell, together(cell))}


def together(sizes: Sizes) -> Sizes:
    """Return one cluster of all members, with few iterates."""
    return dataclasses.replace(sizes, clients=sizes.members, clusters=1, iterations=ITERATIONS)


def readings(device: str) -> list[str]:
    """Return what is read on a type of device: of an accelerator PyTorch says what is in use alone."""
    return [*READINGS] if device == "cpu" else [IN_USE]


def peak_memory(side: str, sizes: Sizes, reading: str, runtime: RuntimeConfig) -> int:
    """Return the bytes that stages 1 and 2 add at their peak, as a process of its own finds them.

    Parameters
    ----------
    side : str
        A name in `SIDES`.
    reading : str
        A name in `READINGS`.
    runtime : RuntimeConfig
        Device and arithmetic.
    """
    words = [side, json.dumps(dataclasses.asdict(sizes)), json.dumps(dataclasses.asdict(runtime))]
    command = [sys.executable, "-m", "benchmarks.memory", *words]
    environment = {**os.environ, **READINGS[reading]}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(done.stdout.splitlines()[-1])


def growth(side: str, sizes: Sizes, runtime: RuntimeConfig) -> float:
    """Return the bytes by which a side's peak grows with each iterate beyond those of `sizes`."""
    longer = dataclasses.replace(sizes, iterations=MORE_ITERATIONS)
    peaks = [peak_memory(side, one, IN_USE, runtime) for one in (sizes, longer)]
    return (peaks[1] - peaks[0]) / (longer.iterations - sizes.iterations)


def begin(compute: Compute) -> int:
    """Return the bytes that are occupied before the work: of this process, the most so far."""
    if compute.device.type == "cuda":
        # What is given to a side may have cost more on the way, which is no stage's.
        torch.cuda.reset_peak_memory_stats(compute.device)
        return torch.cuda.memory_allocated(compute.device)
    return occupied(compute)


def occupied(compute: Compute) -> int:
    """Return the most bytes that were ever occupied: of the accelerator since `begin`, or of this process."""
    if compute.device.type == "cuda":
        return torch.cuda.max_memory_allocated(compute.device)
    status = Path("/proc/self/status")
    if status.exists():
        # A process inherits `ru_maxrss` from the one that started it; this mark is its own.
        mark = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(mark.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def measure(side: str, sizes: Sizes, runtime: RuntimeConfig) -> int:
    """Run stages 1 and 2 here; return the bytes that they added."""
    bench = Bench.here(sizes, Compute.of(runtime))
    # What each side is given is there before: models, and uploads of them.
    models = bench.models(sizes.clients)
    uploads = uploads_in_turn(models, sizes)
    # The libraries load on first use; what they take is no stage's.
    warm = bench.ensemble(models[:1])
    bench.compute.logits(
        warm.members[0], bench.compute.images(bench.noise(2)).requires_grad_()
    ).sum().backward()
    before = begin(bench.compute)
    if side == "reference":
        plain_stages(bench, grouped(models, turns(sizes.clients, sizes.clusters)))
    else:
        config = sizes.config(**OURS[side])
        serve_in_turn(uploads, ServerTask(sizes.spec, config, bench.compute, Silent()))
    return occupied(bench.compute) - before


if __name__ == "__main__":
    side, sizes, runtime = sys.argv[1], *map(json.loads, sys.argv[2:])
    print(measure(side, Sizes(**sizes), RuntimeConfig(**runtime)))
