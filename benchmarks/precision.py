"""What bfloat16 does to the accuracy of whole runs: ``python -m benchmarks.precision``.

The same small federation is run in both arithmetics with several seeds, in process. Its accuracies are worth
nothing by themselves; their differences say how far bfloat16 is from float32, beside how far seeds are apart.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.machine import about_machine
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RunConfig, RuntimeConfig
from fedbicross_flwr.files import write_bytes
from fedbicross_flwr.in_process import run_in_process
from fedbicross_flwr.report import load_run
from fedbicross_flwr.settings import Scalar

SETTINGS: Mapping[str, Scalar] = {
    "data.phantom_train": 1500,
    "data.phantom_test": 1000,
    "inversion.iterations": 40,
    "inversion.batch_size": 48,
    "teacher.noise_window": 24,
    "cross_cluster.sweeps": 2,
}
"""A third of `configs/demo.toml`'s images and steps; the rest are the defaults."""

PRECISIONS = ("bfloat16", "float32")
Accuracies = dict[str, float]
"""Mean accuracy over clients, by ``row, protocol``."""


def accuracies(seed: int, precision: str, folder: Path) -> Accuracies:
    """Run the federation once; return the accuracy of every row under both protocols."""
    config = RunConfig.from_flat({**SETTINGS, "seed": seed, "runtime.precision": precision})
    run_in_process(config, folder)
    results = load_run(folder).results
    assert results is not None
    return {
        f"{row.name}, {protocol}": fmean(score.accuracy for score in scores.values())
        for row in results.rows
        for protocol, scores in row.scores.items()
    }


def distances(runs: Mapping[str, Sequence[Accuracies]]) -> dict[str, dict[str, float]]:
    """Return for every row how far bfloat16 is from float32, and how far the seeds of float32 are apart.

    Returns
    -------
    dict
        By row: ``mean`` and ``largest`` (in size) of the differences seed by seed, and ``deviation``, the
        sample standard deviation of float32 over seeds, all as fractions.
    """
    found = {}
    for row in runs["float32"][0]:
        pairs = [
            (one[row], other[row]) for one, other in zip(*(runs[name] for name in PRECISIONS), strict=True)
        ]
        gaps = [rough - exact for rough, exact in pairs]
        found[row] = {
            "mean": fmean(gaps),
            "largest": max(gaps, key=abs),
            "deviation": stdev(exact for _, exact in pairs) if len(pairs) > 1 else 0.0,
        }
    return found


def main(
    seeds: Annotated[int, typer.Option(help="How many seeds: 0, 1, ...", min=1)] = 3,
    out: Annotated[Path | None, typer.Option(help="Write the figures as JSON.", metavar="FILE")] = None,
) -> None:
    """Run a small federation in bfloat16 and in float32, and print how far their accuracies are apart."""
    console, runs = Console(width=110), {name: list[Accuracies]() for name in PRECISIONS}
    with tempfile.TemporaryDirectory() as place:
        for seed in range(seeds):
            for name in PRECISIONS:
                console.print(f"seed {seed}, {name} ...", highlight=False)
                runs[name].append(accuracies(seed, name, Path(place) / f"{name}-{seed}"))
    found = distances(runs)
    for row, gap in found.items():
        mean, largest, deviation = (100 * gap[name] for name in ("mean", "largest", "deviation"))
        apart = f", seeds ±{deviation:.2f}" if seeds > 1 else ""
        console.print(f"{mean:+6.2f} (largest {largest:+.2f}{apart})  {row}", highlight=False)
    if out:
        content: dict[str, Any] = {
            **about_machine(Compute.of(RuntimeConfig())),
            "settings": dict(SETTINGS),
            "runs": runs,
            "distances": found,
        }
        write_bytes(out, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    typer.run(main)
