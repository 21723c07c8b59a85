"""What a run ships to one of its clients, read back from the run's folder after the method is done."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedbicross_flwr.artifacts import digest, network_of, no_model, read_tensors
from fedbicross_flwr.centre.kept_outcome import OUTCOME, REPLAY, load_outcome
from fedbicross_flwr.centre.late_site import nearest_cluster
from fedbicross_flwr.centre.roster import ROSTER, Roster, read_roster
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.files import expanded
from fedbicross_flwr.handover.simulated_outcome import kept_uploads, simulated_outcome
from fedbicross_flwr.methods import ServerOutcome, ServerTask
from fedbicross_flwr.models import ModelSpec
from fedbicross_flwr.progress import Silent
from fedbicross_flwr.runs.folder import IDENTITY, RunFolder, read_config
from fedbicross_flwr.shipment import Shipment


@dataclass(frozen=True)
class KeptRun:
    """A run's folder, of which nothing that is there is changed.

    Parameters
    ----------
    folder : RunFolder
        Of a simulation or a deployment.
    config : RunConfig
        As the run resolved it.
    """

    folder: RunFolder
    config: RunConfig

    @classmethod
    def open(cls, path: Path) -> KeptRun:
        """Open a run's folder.

        Raises
        ------
        FedBiCrossError
            When it is none.
        """
        path = expanded(path)
        check_run_folder(path)
        return cls(RunFolder(path), read_config(path))

    @property
    def path(self) -> Path:
        """Return the folder."""
        return self.folder.path

    @cached_property
    def roster(self) -> Roster | None:
        """Return the roster of a deployment; a simulation has none."""
        path = self.path / ROSTER
        return read_roster(path) if path.exists() else None

    @cached_property
    def names(self) -> dict[str, int]:
        """Return every client's number by its name; a simulated client is called by its number."""
        if self.roster is not None:
            return {entry.site: entry.client for entry in self.roster.sites}
        return {f"client-{client:02d}": client for client in range(self.config.num_clients)}

    def client_of(self, site: str) -> int:
        """Return the number of a site, by its name.

        Raises
        ------
        FedBiCrossError
            When the run has no site of that name.
        """
        if self.roster is None:
            raise FedBiCrossError(
                f"{self.path} is a simulation, whose clients have no names; give --client N instead of --site"
            )
        if site not in self.names:
            known = ", ".join(self.names)
            raise FedBiCrossError(
                f"{self.path} has no site {site!r}{near_names(site, self.names)}; there are {known}"
            )
        return self.names[site]

    def name_of(self, client: int) -> str:
        """Return the name of a site, or that of a simulated client.

        Raises
        ------
        FedBiCrossError
            When there are fewer clients.
        """
        if client not in self.names.values():
            raise FedBiCrossError(f"{self.path} has no client {client}; there are 0 to {len(self.names) - 1}")
        return next(name for name, number in self.names.items() if number == client)

    @cached_property
    def outcome(self) -> ServerOutcome:
        """Return what the method learned.

        Raises
        ------
        FedBiCrossError
            When it is not done, or a file of its outcome is damaged or missing.
        """
        if not (self.path / "models" / "cluster-0.safetensors").exists():
            raise FedBiCrossError(
                f"{self.path} has no cluster models yet; wait until its method is done: "
                f"fedbicross status {self.path}"
            )
        if self.roster is None:
            return simulated_outcome(self.folder, self.config, self.task)
        kept = load_outcome(self.folder)
        if kept is None:
            raise FedBiCrossError(
                f"{self.path}: the outcome of its method is not all there ({OUTCOME}, {REPLAY}, models/); "
                "wait until the method is done, or start the run again, which mends it"
            )
        return kept[0]

    def cluster_of(self, client: int) -> int:
        """Return the cluster whose model a client is sent.

        A site that the method did not see, as it was late or held back, joins the nearest, as it would if it
        connected.

        Raises
        ------
        FedBiCrossError
            When the client sent no model that was taken.
        """
        name, assignment = self.name_of(client), self.outcome.assignment
        if client in assignment:
            return assignment[client]
        own = self.folder.load_upload(client)
        if own is None:
            known = ", ".join(self.name_of(one) for one in sorted(assignment))
            raise FedBiCrossError(
                f"{self.path} has no cluster for {name}: no model of it was taken; there is one for {known}"
            )
        entry = self.roster.sites[client] if self.roster is not None else None
        if entry is not None and entry.cluster is not None:
            return entry.cluster
        uploads = {one.client: one for one in kept_uploads(self.folder, assignment, self.task)}
        return nearest_cluster(own[0].state, assignment, uploads, self.task)

    @cached_property
    def network(self) -> tuple[ModelSpec, tuple[str, ...]]:
        """Return the network and the names of its classes.

        Raises
        ------
        FedBiCrossError
            When the first cluster model is damaged.
        """
        path = self.path / "models" / "cluster-0.safetensors"
        _, facts = read_tensors(path)
        try:
            return network_of(facts)
        except ValueError as error:
            raise no_model(path, error) from error

    @property
    def task(self) -> ServerTask:
        """Return what is computed with: the run's own device and arithmetic."""
        return ServerTask(self.network[0], self.config, Compute.of(self.config.runtime), Silent())

    def shipment(self, client: int) -> Shipment:
        """Return what a client is sent in round 2.

        Raises
        ------
        FedBiCrossError
            See `cluster_of` and `outcome`.
        """
        return Shipment(self.outcome.models[self.cluster_of(client)], self.outcome.replay)

    def upload_facts(self, client: int) -> dict[str, str]:
        """Return how many images a client trained on and the digest of what it sent; none if it sent none."""
        kept = self.folder.load_upload(client)
        if kept is None:
            return {}
        return {"samples": str(kept[0].num_samples), "upload": digest(kept[0].state)}


def check_run_folder(path: Path) -> None:
    """Refuse a folder that no run wrote.

    Raises
    ------
    FedBiCrossError
        When there is no folder, or no run's identity in it.
    """
    if not (path / IDENTITY).is_file():
        found = f"there is no {IDENTITY} in it" if path.is_dir() else "there is no such folder"
        raise FedBiCrossError(f"{path} is not a run folder ({found}); name one, such as runs/<id>")
