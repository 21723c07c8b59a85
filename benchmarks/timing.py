"""Times two ways of doing the same, in turn, so that a ratio holds when the machine's speed drifts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.stages import Bench, Piece, Stage
from fedbicross_flwr.compute import Compute, cpu_threads
from fedbicross_flwr.parallel import side_by_side


@dataclass(frozen=True)
class Timing:
    """What was measured of a stage.

    Parameters
    ----------
    ours, plain : float
        Seconds of one step on the whole machine, the median of the rounds.
    ratio : float
        How many times as fast ours is: the median of the rounds' own ratios.
    spread : tuple of float
        The lowest and the highest ratio of a round.
    images : float
        Images a second, ours.
    flops : float
        Floating-point operations of one step, ours: matrix products and convolutions.
    goal : float or None
        The ratio that is aimed at on such a device.
    """

    name: str
    ours: float
    plain: float
    ratio: float
    spread: tuple[float, float]
    images: float
    flops: float
    goal: float | None = None


def time_stage(make: Callable[[Bench], Stage], bench: Bench, rounds: int) -> Timing:
    """Time a stage's two sides in turn, as a rule after one round that does not count."""
    stage, compute, workers = make(bench), bench.compute, bench.workers
    at_once = 1 if stage.alone else workers
    ours = [stage.ours(index) for index in range(at_once)]
    plain = [stage.plain(index) for index in range(at_once if stage.alike else 1)]
    # What counts the operations sees those of its own thread only.
    flops = count_flops(make(dataclasses.replace(bench, workers=1)).ours(0))
    pairs = []
    for _ in range(rounds + stage.warm_up):
        first = seconds_of(ours, compute, workers) / (at_once * stage.steps)
        second = seconds_of(plain, compute, workers) / (len(plain) * stage.steps)
        pairs.append((first, second))
    counted = pairs[-rounds:]
    ratios = [second / first for first, second in counted]
    seconds = median(first for first, _ in counted)
    return Timing(
        stage.name,
        seconds,
        median(second for _, second in counted),
        median(ratios),
        (min(ratios), max(ratios)),
        stage.images / seconds,
        flops / stage.steps,
        stage.goals.get(compute.device.type),
    )


def seconds_of(pieces: list[Piece], compute: Compute, workers: int) -> float:
    """Return how long the pieces take: several at once on a thread each, a single one as it likes."""
    synchronise(compute)
    start = time.perf_counter()
    if len(pieces) == 1:
        pieces[0]()
    else:
        side_by_side(lambda piece, check: piece(), pieces, workers)
    synchronise(compute)
    return time.perf_counter() - start


def synchronise(compute: Compute) -> None:
    """Wait until the device has done what it was given."""
    if compute.device.type != "cpu":
        torch.accelerator.synchronize()


def count_flops(piece: Piece) -> float:
    """Return the operations of a piece's matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter, cpu_threads(torch.get_num_threads()):
        piece()
    return float(counter.get_total_flops())


def matrix_product_peak(compute: Compute, dtype: torch.dtype, size: int, rounds: int = 7) -> float:
    """Return the best measured rate of a large matrix product on all cores, in operations a second."""
    first, second = (torch.randn(size, size, device=compute.device).to(dtype) for _ in range(2))
    times = []
    for _ in range(rounds):
        synchronise(compute)
        start = time.perf_counter()
        first @ second
        synchronise(compute)
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(times)
