"""Small deployments: three sites that hold what the simulation's clients are dealt."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from sites_grid import RUN_ID, SiteNode, SitesGrid, identify, node_for
from small_runs import TINY

from fedbicross_flwr import server
from fedbicross_flwr.artifacts import digest, read_tensors
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.federated_data import deal, open_data
from fedbicross_flwr.in_process import run_in_process
from server_app import app as app_module
from server_app.deployment import Deployment

NAMES = ("north", "south", "west")


def class_names() -> tuple[str, ...]:
    return open_data(RunConfig.from_flat(TINY)).info.class_names


def deployed(out: Path, **changes: Any) -> RunConfig:
    """The settings of the deployment; ``deployment__min_sites=3`` stands for ``deployment.min_sites``."""
    flat = {
        **TINY,
        "deployment.sites": ", ".join(NAMES),
        "deployment.class_names": ", ".join(class_names()),
        "deployment.upload_window": 60.0,
        "deployment.personal_window": 60.0,
        "out": str(out),
        # With sites, nothing of these is read.
        "partition.clients": 5,
        "data.name": "bloodmnist",
    }
    return RunConfig.from_flat(flat | {key.replace("__", "."): value for key, value in changes.items()})


@cache
def _room() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="fedbicross-sites-")


@cache
def simulated() -> Path:
    """The folder of the simulation with the same split, run in process; tests only read it."""
    folder = Path(_room().name) / "simulation"
    with pytest.MonkeyPatch.context() as patch:
        no_report(patch)
        run_in_process(RunConfig.from_flat(TINY), folder)
    return folder


def no_report(patch: pytest.MonkeyPatch) -> None:
    """Leave an empty page instead of the report, whose figures take longer than all else."""

    def write_page(folder: Path) -> Path:
        (folder / "report.html").write_text("no report")
        return folder / "report.html"

    patch.setattr(server, "write_report", write_page)


def make_sites(folder: Path, names: tuple[str, ...] = NAMES) -> list[SiteNode]:
    """Write each client's share of the simulation as a site's own file; return the sites' nodes."""
    config = RunConfig.from_flat(TINY)
    source = open_data(config)
    partition = deal(source, config)
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        np.savez(
            folder / name / "images.npz",
            train_images=source.images("train", partition.train[index]),
            train_labels=source.labels("train")[partition.train[index]],
            test_images=source.images("test", partition.test[index]),
            test_labels=source.labels("test")[partition.test[index]],
            class_names=np.array(source.info.class_names),
        )
    return [node_for(index, folder, name) for index, name in enumerate(names)]


def deploy(
    config: RunConfig,
    nodes: list[SiteNode],
    script: Callable[[int], None] | None = None,
    report: bool = False,
    patience: float = 600.0,
) -> SitesGrid:
    """Run the ServerApp with these nodes."""
    identify()
    grid = SitesGrid(config, nodes, script)
    with pytest.MonkeyPatch.context() as patch:
        # Sites train while their answers are pulled here: one after the other, however long it takes.
        patch.setattr(
            app_module, "Deployment", lambda run, grid: Deployment(run, grid, poll=0.01, patience=patience)
        )
        if not report:
            no_report(patch)
        app_module.app(grid, Context(RUN_ID, 1, {}, RecordDict(), dict(config.flat())))
    return grid


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def roster(folder: Path) -> dict[str, dict[str, Any]]:
    """The sites of a run's roster, by name."""
    return {entry["site"]: entry for entry in read_json(folder / "roster.json")["sites"]}


def states(folder: Path) -> dict[str, str]:
    return {name: entry["state"] for name, entry in roster(folder).items()}


def cluster_models(folder: Path) -> list[str]:
    return [digest(read_tensors(path)[0]) for path in sorted(folder.glob("models/cluster-*.safetensors"))]


def personal_models(sites: Path, names: tuple[str, ...] = NAMES) -> dict[str, str]:
    return {name: digest(read_tensors(sites / name / "store" / "personal.safetensors")[0]) for name in names}


def outcome(folder: Path, sites: Path) -> dict[str, Any]:
    """What a deployment comes to, bit for bit."""
    return {
        "clusters": cluster_models(folder),
        "personal": personal_models(sites),
        "metrics": (folder / "metrics.json").read_text(),
    }


@cache
def reference() -> tuple[Path, Path]:
    """Folder and sites of one undisturbed deployment; tests only read them."""
    folder, sites = Path(_room().name) / "deployment", Path(_room().name) / "sites"
    deploy(deployed(folder), make_sites(sites))
    return folder, sites


def without(config: RunConfig, **changes: Any) -> RunConfig:
    """The same settings with some of the section ``deployment`` changed."""
    return dataclasses.replace(config, deployment=dataclasses.replace(config.deployment, **changes))
