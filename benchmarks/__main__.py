"""``python -m benchmarks``: speed and memory of the stages beside the plain reference."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.cell import whole_cell
from benchmarks.machine import about
from benchmarks.memory import SIDES, growth, peak_memory, readings, shapes, together
from benchmarks.paper_cell import GOAL, PARTS, seconds
from benchmarks.paper_cell import SIZES as PAPER_CELL
from benchmarks.sizes import Sizes
from benchmarks.stages import STAGES, Bench
from benchmarks.timing import Timing, matrix_product_peak, time_stage
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RuntimeConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import write_bytes
from fedbicross_flwr.runs.record import device_name

MEMORY_GOAL = 0.25
"""Share of the reference's peak that is aimed at."""
PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds, for two CPU cores.")] = False,
    only: Annotated[str, typer.Option(help="Stages with commas between them, such as inversion,cell.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write the figures as JSON.", metavar="FILE")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, or a PyTorch device.")] = "auto",
    sizes: Annotated[str, typer.Option(help="quick, paper, or auto: what suits the device.")] = "auto",
    precision: Annotated[str, typer.Option(help="Our arithmetic: auto, float32 or bfloat16.")] = "auto",
) -> None:
    """Time every stage beside the plain reference, in turn, on this machine."""
    runtime = RuntimeConfig(device=device, precision=precision)
    compute = Compute.of(runtime)
    measured = Sizes.named(sizes, compute.device.type)
    bench, console = Bench.here(measured, compute), Console(width=110)
    stages = {**STAGES, "cell": whole_cell}
    wanted = chosen(only, [*stages, *PARTS, "memory", "growth"])
    if not only:
        left_out = ["growth"] if quick else []  # minutes by itself
        left_out += PARTS if compute.device.type == "cpu" else []  # days
        wanted = [name for name in wanted if name not in left_out]
    peaks = {
        name: matrix_product_peak(compute, dtype, 1024 if compute.device.type == "cpu" else 8192)
        for name, dtype in PRECISIONS.items()
    }
    timings = []
    for name in stages:
        if name in wanted:
            console.print(f"timing {name} ...", highlight=False)
            timings.append(time_stage(stages[name], bench, 2 if quick else 7))
    console.print(timing_table(timings, peaks, compute))
    content = {
        **about(compute, measured),
        "peaks": peaks,
        "stages": [dataclasses.asdict(one) for one in timings],
    }
    for name in PARTS:
        if name in wanted:
            took = seconds(name, dataclasses.replace(bench, sizes=PAPER_CELL))
            content.setdefault("seconds", {})[name] = took
            console.print(f"{name} of a cell of the paper: {took:.1f} s; aim ≤ {GOAL:g} s", highlight=False)
    if "memory" in wanted:
        content["memory"] = {}
        for shape, one in shapes(measured).items():
            for reading in readings(compute.device.type):
                found = {side: peak_memory(side, one, reading, runtime) for side in SIDES}
                content["memory"].setdefault(shape, {})[reading] = found
                console.print(memory_line(f"{shape}, {reading}", found), highlight=False)
    if "growth" in wanted:
        shape, one = f"N = {measured.members}, K = 1", together(measured)
        content["memory_by_iterate"] = {side: growth(side, one, runtime) for side in SIDES}
        console.print(growth_line(shape, content["memory_by_iterate"]), highlight=False)
    if out:
        write_bytes(out, (json.dumps(content, indent=1) + "\n").encode())
        console.print(f"figures: {out}", highlight=False)


def chosen(only: str, names: list[str]) -> list[str]:
    """Return the stages that were asked for; all if none were."""
    words = [word.strip() for word in only.split(",") if word.strip()]
    if unknown := [word for word in words if word not in names]:
        raise FedBiCrossError(f"--only {unknown[0]!r} is no stage; there are {', '.join(names)}")
    return words or names


def timing_table(timings: list[Timing], peaks: dict[str, float], compute: Compute) -> Table:
    """Return the table of all stages."""
    title = f"{device_name(compute)}, {compute.precision}; the reference in float32"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for column in ("stage", "ours", "reference", "ratio", "rounds", "aim", "images/s", "of matrix peak"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for one in timings:
        share = one.flops / one.ours / peaks[compute.precision]
        table.add_row(
            one.name,
            f"{one.ours * 1e3:.1f} ms",
            f"{one.plain * 1e3:.1f} ms",
            f"{one.ratio:.2f}",
            f"{one.spread[0]:.2f}-{one.spread[1]:.2f}",
            "" if one.goal is None else f"≥ {one.goal:g}",
            f"{one.images:.0f}",
            f"{share:.0%}",
        )
    products = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in peaks.items())
    table.caption = f"matrix products here: {products}"
    return table


def memory_line(shape: str, found: dict[str, int]) -> str:
    """Return what the memory figures of one shape say, also as shares of the reference's."""
    told = ", ".join(
        f"{side} {size / 2**20:.0f} MiB ({size / found['reference']:.2f})" for side, size in found.items()
    )
    return f"peak memory of stages 1 and 2, {shape}: {told}; aim ≤ {MEMORY_GOAL:g}"


def growth_line(shape: str, found: dict[str, float]) -> str:
    """Return by how much the peak grows with each further iterate."""
    told = ", ".join(f"{side} {size / 2**20:.2f} MiB" for side, size in found.items())
    return f"growth of the peak by each further iterate, {shape}: {told}"


if __name__ == "__main__":
    try:
        typer.run(main)
    except FedBiCrossError as error:
        raise SystemExit(f"error: {error}") from error
