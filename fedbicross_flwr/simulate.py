"""What ``fedbicross simulate`` does: check everything first, run, show the table."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from rich.console import Console

from fedbicross_flwr.config import RunConfig, with_absolute_paths
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import expanded, shown
from fedbicross_flwr.in_process import run_in_process
from fedbicross_flwr.launch import find_app, fit_resources, simulate
from fedbicross_flwr.progress_display import ProgressDisplay
from fedbicross_flwr.report import load_run, render_terminal, results_table
from fedbicross_flwr.runs.folder import free_run_id
from fedbicross_flwr.runs.opening import sole_use
from fedbicross_flwr.server import Server


class FlowerRunError(Exception):
    """A run under Flower that failed, by no known mistake of the user."""


def simulate_run(config: RunConfig, out: Path | None, in_process: bool, console: Console) -> None:
    """Run one configuration to its report, under Flower or in this process.

    Data, partition and folder are checked here, before Flower starts, so that a mistake costs seconds.

    Raises
    ------
    FedBiCrossError
        When something cannot be used, or the run fails for a reason that the user can mend.
    SystemExit
        With status 1 when the run fails for another reason.
    """
    chosen = out or (Path(config.out) if config.out else None)
    folder = expanded(chosen or Path("runs") / free_run_id(Path("runs"))).resolve()
    config = dataclasses.replace(with_absolute_paths(config), out=str(folder))
    with sole_use(folder):  # the run itself takes the lock anew, in its own process
        server = Server.open(config, folder, "in-process" if in_process else "flower")
    if server.folder.finished:
        console.print(f"{folder} is finished; nothing was run", markup=False, soft_wrap=True)
    else:
        describe(server, console)
        clients = server.data.partition.num_clients
        waiting = clients - len(server.uploads)
        try:
            with ProgressDisplay(folder / "progress.jsonl", clients, console, waiting) as display:
                run_it(config, folder, in_process, display)
        except FlowerRunError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
    console.print(f"\n{folder.name}", style="bold", markup=False, highlight=False)
    render_terminal(results_table(load_run(folder)), console)
    print(f"\nreport: {folder / 'report.html'}")


def describe(server: Server, console: Console) -> None:
    """Say what is about to run."""
    info, config = server.data.source.info, server.config
    sizes = sorted(len(rows) for rows in server.data.partition.train)
    console.print(
        f"{shown(info.name)}: {info.num_classes} classes, {len(sizes)} clients with {sizes[0]} to "
        f"{sizes[-1]} training images (alpha = {config.partition.alpha:g}), seed {config.seed}\n"
        f"run folder: {shown(str(server.folder.path))}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if server.uploads:
        console.print(f"{len(server.uploads)} upload(s) of an interrupted run are at hand", markup=False)


def run_it(config: RunConfig, folder: Path, in_process: bool, display: ProgressDisplay) -> None:
    """Run under Flower, or here.

    Raises
    ------
    FedBiCrossError
        When the run fails for a reason that the user can mend.
    FlowerRunError
        When it fails under Flower for another reason.
    """
    if in_process:
        run_in_process(config, folder, display.poll)
        return
    log = folder / "flower.log"
    with log.open("a", encoding="utf-8") as file:
        status = simulate(
            find_app(),
            config.flat(),
            fit_resources(config.partition.clients, config.runtime.client_threads),
            on_line=lambda line: print(line, file=file, flush=True),
            poll=display.poll,
        )
    display.poll()
    if status.status == "completed":
        return
    if display.error:
        raise FedBiCrossError(display.error)
    raise FlowerRunError(f"the run {status.status}: {status.details}; Flower's log is {log}")
