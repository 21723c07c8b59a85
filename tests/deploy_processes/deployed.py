"""A small federation of real processes for the tests here, and the simulation that its numbers must equal."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from federation import Federation, Machine, descendants, federation
from split_data import deal_unequally, write_sites

from fedbicross_flwr.artifacts import digest, read_tensors
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.data.partition import Partition
from fedbicross_flwr.data.source import ImageSource
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.federated_data import open_data
from fedbicross_flwr.in_process import run_in_process
from fedbicross_flwr.launch.app_folder import run_config_toml
from fedbicross_flwr.runs.folder import RunFolder
from fedbicross_flwr.settings import Scalar

SITES = ("north", "east", "south")
SETTINGS: Mapping[str, Scalar] = {
    "model.width": 4,
    "client.epochs": 6,
    "client.batch_size": 16,
    "clustering.num_probes": 32,
    "clustering.n_init": 2,
    "teacher.noise_window": 8,
    "inversion.iterations": 40,
    "inversion.batch_size": 24,
    "cross_cluster.sweeps": 2,
    "personal.epochs": 4,
    "runtime.device": "cpu",
}
"""Small, but every stage lasts long enough to be interrupted."""
PHANTOM: Mapping[str, Scalar] = {"data.phantom_train": 420, "data.phantom_test": 120, "partition.clients": 3}
#: Seconds for anything that takes processes to start, on cores that are shared with other work.
PATIENCE = 600.0

Digests = dict[str, str]
Scores = dict[str, dict[str, dict[str, float]]]


@cache
def images() -> tuple[ImageSource, Partition]:
    """Return the federation's images and who has which: unequal in number and in mix."""
    source = open_data(RunConfig.from_flat({**PHANTOM}))
    return source, deal_unequally(source, len(SITES))


@cache
def simulated() -> tuple[Digests, list[Scores]]:
    """Run the same split and settings in one process; return digests of all models, and scores by client."""
    source, partition = images()
    config = RunConfig.from_flat({**SETTINGS, **PHANTOM})
    folder = Path(tempfile.mkdtemp(prefix="fbx-simulated-")) / "run"
    RunFolder.open(folder, config, source.fingerprint())
    partition.save(folder / "partition.json")
    run_in_process(config, folder)
    stores = [folder / "sites" / f"client-{client:02d}" for client in range(len(SITES))]
    found = digests(folder, dict(zip(SITES, stores, strict=True)))
    scores = [json.loads((store / "scores.json").read_text())["scores"] for store in stores]
    return found, scores


def digests(run: Path, stores: Mapping[str, Path]) -> Digests:
    """Return digests of a run's uploads and cluster models, and of the sites' models."""
    files = {
        str(path.relative_to(run)): path
        for pattern in ("uploads/*.safetensors", "models/*.safetensors")
        for path in run.glob(pattern)
    }
    for name, store in stores.items():
        files |= {f"{name}/{kind}": store / f"{kind}.safetensors" for kind in ("local", "personal")}
    return {name: digest(read_tensors(path)[0]) for name, path in files.items()}


@dataclass
class Deployed:
    """The federation, with what the tests ask of it again and again."""

    made: Federation

    @property
    def run(self) -> Path:
        """Return the folder of the run that `start` started."""
        return self.made.centre.folder / "runs" / "test"

    def site(self, name: str) -> Machine:
        """Return a site; its images and its key are made when it is new."""
        if name in self.made.sites:
            return self.made.sites[name]
        site = self.made.make_site(name)
        source, partition = images()
        # A further site has the images of the first: what it sends is judged by other things.
        share = SITES.index(name) if name in SITES else 0
        one = Partition((partition.train[share],), (partition.test[share],))
        write_sites(source, one, [site.folder / "data.npz"])
        return site

    def start_site(self, name: str, *arguments: str) -> Machine:
        """Start a site's SuperNode."""
        site = self.site(name)
        self.made.start_site(site, site.folder / "data.npz", *arguments)
        return site

    def store(self, name: str) -> Path:
        """Return a site's store."""
        return self.site(name).folder / "store"

    def start(self, sites: Sequence[str] = SITES, **more: Scalar) -> str:
        """Start the run, or go on with it; ``deployment__hold_back=True`` stands for deployment.hold_back."""
        settings: dict[str, Scalar] = {**SETTINGS}
        settings["deployment.sites"] = ",".join(sites)
        settings["deployment.class_names"] = ",".join(images()[0].info.class_names)
        settings["deployment.min_sites"] = len(SITES)
        settings |= {key.replace("__", "."): value for key, value in more.items()}
        config = self.made.centre.folder / "test.toml"
        config.write_text(run_config_toml(settings), encoding="utf-8")
        return self.made.start_run(config)

    def stop(self, run_id: str) -> None:
        """Stop a run, as the coordinating centre does; what was done is kept."""
        self.made.run("stop-run", self.made.centre.folder, run_id)

    def finish(self, run_id: str, seconds: float = PATIENCE) -> None:
        """Wait for the end of a run, which must be a good one."""
        try:
            status, details = self.made.wait_for_run(run_id, seconds)
        except FedBiCrossError as error:
            raise AssertionError(f"{error}\n{self.told()}") from error
        assert status == "finished:completed", f"{details}\n{self.told()}"

    def told(self) -> str:
        """Return the roster and the ends of all logs, for the message of a test that fails."""
        machines = [self.made.centre, *self.made.sites.values()]
        logs = [f"--- {one.name}\n{one.logged()[-1500:]}" for one in machines]
        return "\n".join([json.dumps(self.roster(), indent=1), *logs])

    def roster(self) -> dict[str, Any]:
        """Return the roster, or one without sites while there is none."""
        path = self.run / "roster.json"
        found: dict[str, Any] = (
            json.loads(path.read_text()) if path.exists() else {"stage": "none", "sites": []}
        )
        return found

    def entry(self, name: str) -> dict[str, Any]:
        """Return what the roster says of a site."""
        return next((entry for entry in self.roster()["sites"] if entry["site"] == name), {"state": "none"})

    def states(self) -> dict[str, str]:
        """Return the state of each site."""
        return {entry["site"]: entry["state"] for entry in self.roster()["sites"]}

    def digests(self, sites: Sequence[str] = SITES) -> Digests:
        """Return digests of the run's models and of some sites' own."""
        return digests(self.run, {name: self.store(name) for name in sites})

    def progress(self, name: str = "") -> str:
        """Return what a site, or the server, has noted of its progress."""
        path = (self.store(name) if name else self.run) / "progress.jsonl"
        return path.read_text() if path.exists() else ""

    def server_app(self) -> list[int]:
        """Return the process of the running ServerApp."""
        assert self.made.centre.process is not None
        return [pid for pid in descendants(self.made.centre.process.pid) if "flwr-serverapp" in command(pid)]


def command(pid: int) -> str:
    """Return a process's command line; nothing when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def until(condition: Callable[[], object], what: str | Callable[[], str], seconds: float = PATIENCE) -> None:
    """Wait for something; it must come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.02)


@contextlib.contextmanager
def deployed(
    folder: Path, sites: Sequence[str] = SITES, started: Sequence[str] = SITES
) -> Iterator[Deployed]:
    """Start a SuperLink with TLS and node authentication, register `sites`, and start SuperNodes."""
    with federation(folder) as made:
        made.make_centre()
        made.start_superlink()
        here = Deployed(made)
        for name in sites:
            made.register(here.site(name))
        for name in started:
            here.start_site(name)
        try:
            yield here
        except (AssertionError, FedBiCrossError) as error:
            logs = "\n".join(
                f"--- {one.name}\n{one.logged()[-1500:]}" for one in [made.centre, *made.sites.values()]
            )
            error.add_note(f"{json.dumps(here.roster(), indent=1)}\n{logs}")
            raise
