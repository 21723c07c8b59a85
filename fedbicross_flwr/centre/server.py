"""The server's part of a deployment: a `Server` that waits for sites over days and loses nothing on the way.

All that matters is in the run's folder the moment it is known: each upload, the roster, the method's stages
and outcome, each site's scores. Opened again, in whatever state it was left, it goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedbicross_flwr.centre.kept_outcome import load_outcome, save_outcome
from fedbicross_flwr.centre.late_site import nearest_cluster
from fedbicross_flwr.centre.registry import SiteRegistry
from fedbicross_flwr.centre.roster import Roster, SiteEntry, now, seconds_between, seconds_left
from fedbicross_flwr.centre.uploads import SiteUploads
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError, MachineError
from fedbicross_flwr.federated_data import SiteFederation, check_federation
from fedbicross_flwr.flower_names import is_flower
from fedbicross_flwr.methods import ServerOutcome, method_named
from fedbicross_flwr.runs.folder import RunFolder
from fedbicross_flwr.runs.record import ClientRecord
from fedbicross_flwr.runs.trackers import check_tracker
from fedbicross_flwr.shipment import Shipment
from fedbicross_flwr.site.store import RowScores, read_scores, write_scores

DATA = "the sites' own"
"""Stands in ``identity.json`` where a simulation has its data's fingerprint."""


def check_settings(config: RunConfig) -> None:
    """Find what a deployment cannot be run with, before it takes a folder.

    Raises
    ------
    FedBiCrossError
        When the method is unknown or takes many rounds, the network, device or tracker is not there, or no
        site could have as many classes as it must.
    """
    method_named(config.method)
    if is_flower(config.method):
        raise FedBiCrossError(
            f"method = {config.method!r} takes many rounds, and sites upload once; choose a one-shot method"
        )
    check_tracker(config.runtime)
    check_federation(config, SiteFederation.of(config).info)


@dataclass
class SiteServer(SiteUploads):
    """One deployment, from its first upload to the last site that fetched its model."""

    @classmethod
    def open_sites(cls, config: RunConfig, path: Path) -> SiteServer:
        """Open or continue the run folder of a deployment.

        Raises
        ------
        FedBiCrossError
            See `check_settings`; or when the registry cannot be read or the folder not be used.
        """
        check_settings(config)
        registry = SiteRegistry.open(config.deployment)
        folder = RunFolder.open(path, config, DATA)
        roster = Roster.open(path, config)
        server = cls(config, folder, SiteFederation.of(config), "flower", roster=roster, registry=registry)
        server.take_up()
        return server

    def take_up(self) -> None:
        """Take up uploads, outcome and scores that are in the folder."""
        for entry in self.roster.sites:
            self.clients.setdefault(entry.client, ClientRecord(entry.client))
            if (upload := self.folder.load_upload(entry.client)) is not None:
                self.take(*upload)
            elif self.folder.upload_path(entry.client).exists():
                upload_of = f"the kept upload of site {entry.site}"
                self.progress.note(f"{upload_of} is damaged or of another version; it is asked for again")
        if (kept := load_outcome(self.folder)) is not None:
            self.outcome, spans = kept
            self.folder.spans.extend(spans)
        elif any(entry.uploaded and entry.client not in self.uploads for entry in self.roster.sites):
            # An upload was lost that the method needs: its site has it still.
            self.reopen()
        for entry in self.roster.sites:
            self.settle(entry)
        self.roster.connected = 0
        self.roster.write()

    def reopen(self) -> None:
        """Open both windows again: what comes of the uploads is learned anew, and nothing else stands.

        The former window for uploads may be over, and enough uploads be left: the lost one would be late.
        """
        self.roster.opened, self.roster.closed, self.roster.shipping = None, None, None
        for entry in self.roster.sites:
            entry.cluster, entry.late, entry.held = None, False, False
            self.scores_path(entry.client).unlink(missing_ok=True)

    def settle(self, entry: SiteEntry) -> None:
        """Bring a site's entry in line with the files: a killed server may have written one and not both."""
        client = entry.client
        if client not in self.uploads:
            entry.state, entry.reason = "expected", ""
            entry.uploaded, entry.cluster, entry.late, entry.held = None, None, False, False
            return
        if entry.uploaded is None:
            entry.uploaded, entry.late = now(), self.roster.closed is not None
        scores = read_scores(self.scores_path(client), self.config.fingerprint())
        if scores is not None and self.outcome is not None:
            self.clients[client].scores = scores
            self.clients[client].bytes_received = self.payload(client).num_bytes
            entry.state, entry.reason = "done", unscored(scores)
        elif entry.held:
            entry.state, entry.reason = "held back", "; ".join(entry.flags)
        else:
            entry.state, entry.reason = "uploaded", ""

    def scores_path(self, client: int) -> Path:
        """Return where a site's scores are kept."""
        return self.folder.path / "scores" / f"client-{client:02d}.json"

    # --- method

    def learn(self) -> None:
        """Run the method, unless its outcome is there.

        An outlying upload that makes the method diverge is held back, whatever is configured: the others must
        not be left without a model.

        Raises
        ------
        FedBiCrossError
            When the method fails, and no outlying upload can be the reason.
        """
        if self.outcome is not None:
            return
        try:
            self.run_method()
        except MachineError:
            raise
        except FedBiCrossError as error:
            used = {one.client for one in self.method_uploads()}
            flags = {one.client: one.flags for one in self.roster.sites if one.flags and one.client in used}
            if not flags or len(used) - len(flags) < self.needed:
                raise
            self.progress.note(f"the method failed ({error}); it is run again without outlying uploads")
            self.hold_back(flags)
            self.run_method()

    def take_outcome(self, outcome: ServerOutcome) -> ServerOutcome:
        """Take what the method has learned, and keep it for sites that come for it later."""
        super().take_outcome(outcome)
        save_outcome(self.folder, outcome)
        return outcome

    # --- personal models

    def open_shipping(self) -> float:
        """Begin or go on with the window in which sites fetch their models; return the seconds left of it.

        A window that has ended is opened anew: whoever runs the command again does so for who is missing.
        """
        assert self.outcome is not None
        for client, cluster in self.outcome.assignment.items():
            self.site(client).cluster = cluster
        if self.roster.shipping is None or self.shipping_left() <= 0:
            self.roster.shipping = now()
        self.roster.enter("shipping")
        return self.shipping_left()

    def shipping_left(self) -> float:
        """Return the seconds that are left of the window for personal models."""
        assert self.roster.shipping is not None
        return seconds_left(self.roster.personal_window, self.roster.shipping)

    def cluster_of(self, client: int) -> int:
        """Return the cluster of a site; one that the method did not see joins the nearest."""
        assert self.outcome is not None
        if client in self.outcome.assignment:
            return self.outcome.assignment[client]
        entry = self.site(client)
        if entry.cluster is None:
            cluster = nearest_cluster(
                self.uploads[client].state, self.outcome.assignment, self.uploads, self.task
            )
            self.roster.change(client, cluster=cluster)
            self.progress.note(f"site {entry.site}, which the method did not see, joins cluster {cluster}")
            return cluster
        return entry.cluster

    def payload(self, client: int) -> Shipment:
        """Return what a site is sent."""
        assert self.outcome is not None
        return Shipment(self.outcome.models[self.cluster_of(client)], self.outcome.replay)

    def shipment(self, client: int) -> Shipment:
        """Return what a site is sent, and note that it is on its way; sent again, it counts once."""
        shipped = self.payload(client)
        self.clients[client].bytes_received = shipped.num_bytes
        self.roster.change(client, state="shipped", reason="")
        return shipped

    def record(self, client: int, scores: RowScores) -> None:
        """Take a site's scores; with them it is done."""
        write_scores(self.scores_path(client), scores, self.config.fingerprint())
        self.clients[client].scores, self.clients[client].reason = scores, ""
        self.roster.change(client, state="done", done=now(), reason=unscored(scores))

    def was_shipped(self, client: int) -> bool:
        """Return whether a site has been sent its model, so that there can be scores."""
        return self.site(client).state in ("shipped", "done")

    def is_done(self, client: int) -> bool:
        """Return whether a site has its personal model."""
        return self.site(client).state == "done"

    def is_served(self, client: int) -> bool:
        """Return whether nothing is to be waited for: the site is done, or cannot take part."""
        return self.site(client).state in ("done", "refused")

    @property
    def finished(self) -> bool:
        """Return whether the run has its report and every site its model."""
        return self.folder.finished and all(self.is_done(entry.client) for entry in self.roster.sites)

    def finish(self, rounds: Mapping[str, float]) -> Path:
        """Note who is missing, and write metrics and report for the sites that are done.

        No site need be done: each can still be handed its model, or fetch it when the run is taken up again.
        """
        for entry in self.roster.sites:
            if entry.state not in ("done", "refused"):
                entry.state = "missing"
                entry.reason = "it did not answer while the window was open"
                self.progress.note(f"site {entry.site} is missing: {entry.reason}")
            self.clients[entry.client].reason = "" if entry.state == "done" else entry.reason
            self.clients[entry.client].flags = entry.flags
        done = [self.clients[entry.client] for entry in self.roster.sites if self.is_done(entry.client)]
        report = self.write_results(done, rounds)
        self.roster.enter("finished")
        return report

    def seconds(self) -> dict[str, float]:
        """Return the seconds of the two windows, as far as they lasted; what was waited for counts."""
        roster = self.roster
        return {
            "upload round": seconds_between(roster.opened, roster.closed),
            "personalisation round": seconds_between(roster.shipping, now()),
        }


def unscored(scores: RowScores) -> str:
    """Return why a site that is done has no scores; nothing where it has."""
    return "" if any(scores.values()) else "no test images"
