"""The ServerApp: opens the run's folder, drives the rounds, writes the report."""

from __future__ import annotations

from logging import ERROR, INFO
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from fedbicross_flwr.centre.server import SiteServer
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import expanded
from fedbicross_flwr.flower_names import is_flower
from fedbicross_flwr.runs.folder import free_run_id
from fedbicross_flwr.runs.opening import sole_use
from fedbicross_flwr.server import Server
from server_app.baselines import run_rounds
from server_app.deployment import Deployment
from server_app.strategy import OneShot

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Make one run: a simulation, or with ``deployment.sites`` a deployment."""
    try:
        config = RunConfig.from_flat(context.run_config)
        path = run_path(config)
        with sole_use(path):
            drive = deploy if config.is_deployment else simulate
            drive(config, path, grid)
    except FedBiCrossError as error:
        log(ERROR, "error: %s", error)
        raise


def simulate(config: RunConfig, path: Path, grid: Grid) -> None:
    """Make a simulation, or go on with one."""
    server = Server.open(config, path, "flower")
    drive = many_rounds if is_flower(config.method) else one_shot
    try:
        report = server.finish(drive(server, grid))
    except FedBiCrossError as error:
        server.progress.fail(str(error))
        raise
    log(INFO, "report: %s", report)


def deploy(config: RunConfig, path: Path, grid: Grid) -> None:
    """Begin a deployment, or go on with one; sites that have their models are not asked again."""
    server = SiteServer.open_sites(config, path)
    if server.finished:
        log(INFO, "%s is finished, and every site has its model; nothing was run", path)
        return
    log(INFO, "run folder: %s", path)
    try:
        report = Deployment(server, grid).run()
    except FedBiCrossError as error:
        server.roster.enter("failed", str(error))
        server.progress.fail(str(error))
        raise
    log(INFO, "report: %s", report)


def one_shot(server: Server, grid: Grid) -> dict[str, float]:
    """Run a one-shot method; return the seconds of its two rounds."""
    strategy = OneShot(server)
    strategy.start(grid, ArrayRecord(), num_rounds=2, timeout=server.config.runtime.reply_timeout)
    return strategy.seconds


def many_rounds(server: Server, grid: Grid) -> dict[str, float]:
    """Run one of Flower's own strategies; return the seconds of its parts."""
    return run_rounds(OneShot(server), grid)


def run_path(config: RunConfig) -> Path:
    """Return the run's folder: the configured one, or a new one under ``runs/`` where Flower runs."""
    if config.out:
        return expanded(Path(config.out)).resolve()
    parent = Path("runs").resolve()
    return parent / free_run_id(parent)
