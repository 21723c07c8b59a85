"""The server of a deployment while it collects uploads: a window in time, through which sites come and go.

`fedbicross_flwr.centre.server` goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedbicross_flwr.centre.registry import SiteRegistry
from fedbicross_flwr.centre.roster import Roster, SiteEntry, now, seconds_left
from fedbicross_flwr.centre.upload_flags import find_flags
from fedbicross_flwr.compute import cpu_threads
from fedbicross_flwr.config_readers import FEDBICROSS
from fedbicross_flwr.data.source import IMAGE_SIZE
from fedbicross_flwr.errors import FedBiCrossError, harmless
from fedbicross_flwr.methods import ClientUpload
from fedbicross_flwr.models import StateDict, build_model
from fedbicross_flwr.pacfl import subspace_bytes
from fedbicross_flwr.runs.record import ClientRecord
from fedbicross_flwr.server import Server
from fedbicross_flwr.uploads import payload_bytes


@dataclass
class SiteUploads(Server):
    """The uploads of one deployment: which came, which came in time, and which the method works on.

    Parameters
    ----------
    roster : Roster
        Who has done what.
    registry : SiteRegistry
        Which node is which site's.
    """

    roster: Roster = field(kw_only=True)
    registry: SiteRegistry = field(kw_only=True)

    @property
    def federation_names(self) -> tuple[str, ...]:
        """Return the sites' names in the order of their numbers."""
        return self.config.deployment.site_names

    @property
    def upload_bytes(self) -> int:
        """Return the bytes of all arrays that a site is to send."""
        config = self.config
        rank = config.clustering.pacfl_rank if config.needs_subspaces else 0
        with torch.device("meta"):
            model = build_model(self.spec, seed=0).state_dict()
        return payload_bytes(model) + subspace_bytes(
            self.spec.num_classes, self.spec.channels * IMAGE_SIZE**2, rank
        )

    def site(self, client: int) -> SiteEntry:
        """Return a site's entry of the roster."""
        return self.roster.sites[client]

    @property
    def needed(self) -> int:
        """Return with how many uploads the method can begin."""
        clusters = self.config.clustering.clusters if self.config.method == FEDBICROSS else 1
        least = self.config.deployment.min_sites
        return max(least, clusters) if isinstance(clusters, int) else least

    @property
    def enough(self) -> bool:
        """Return whether the method could begin."""
        return len(self.in_time()) >= self.needed

    def open_uploads(self) -> float:
        """Begin or go on with the window for uploads; return the seconds that are left of it.

        A window that ended with too few uploads is opened anew; those that were to be held back do not count.
        """
        roster, usable = self.roster, self.in_time()
        if self.config.deployment.hold_back:
            usable = [one for one in usable if not self.site(one.client).flags]
        if roster.opened is None or (self.uploads_left() <= 0 and len(usable) < self.needed):
            roster.opened = now()
        roster.enter("uploads")
        return self.uploads_left()

    def uploads_left(self) -> float:
        """Return the seconds that are left of the window for uploads."""
        assert self.roster.opened is not None
        return seconds_left(self.roster.upload_window, self.roster.opened)

    def accept(
        self,
        client: int,
        num_samples: int,
        state: StateDict,
        said: Mapping[str, float],
        subspace: Tensor | None = None,
    ) -> None:
        """Check an upload, keep it, and take it; the first one of a site stands."""
        if client in self.uploads:
            return
        super().accept(client, num_samples, state, said, subspace)
        if client in self.uploads:
            late = self.roster.closed is not None
            self.roster.change(client, state="uploaded", uploaded=now(), late=late, reason="")

    def refuse(self, client: int, reason: str) -> None:
        """Go on without a site, for now, and say why."""
        reason = harmless(reason)
        self.clients.setdefault(client, ClientRecord(client)).reason = reason
        self.roster.change(client, state="refused", reason=reason)
        self.progress.note(f"site {self.site(client).site} is left out: {reason}")

    def is_answered(self, client: int) -> bool:
        """Return whether nothing is to be waited for: the site has uploaded, or cannot take part."""
        return client in self.uploads or self.site(client).state == "refused"

    def in_time(self) -> list[ClientUpload]:
        """Return the uploads that came before the method began."""
        return [self.uploads[client] for client in sorted(self.uploads) if not self.site(client).late]

    def method_uploads(self) -> list[ClientUpload]:
        """Return the uploads that came in time and are not held back."""
        return [one for one in self.in_time() if not self.site(one.client).held]

    def close_uploads(self) -> None:
        """End the window for uploads: point out the outlying ones, and hold them back if that is configured.

        Raises
        ------
        FedBiCrossError
            When fewer uploads than needed are there, or are left.
        """
        if not self.enough:
            raise self.too_few(len(self.in_time()))
        with cpu_threads(1):
            flags = find_flags(self.in_time(), self.task)
        for client in (upload.client for upload in self.in_time()):
            # An earlier window's flags do not stand: among other uploads, one may no longer be outlying.
            self.roster.change(client, flags=flags.get(client, []))
        for client, texts in flags.items():
            self.progress.note(f"the upload of site {self.site(client).site} is outlying: {'; '.join(texts)}")
        if self.config.deployment.hold_back:
            self.hold_back(flags)
        self.roster.closed = now()
        self.roster.enter("method")

    def too_few(self, found: int) -> FedBiCrossError:
        """Return that the method cannot begin."""
        least = self.config.deployment.min_sites
        by_clusters = self.needed > least
        wanted = f"clustering.clusters = {self.needed}" if by_clusters else f"deployment.min_sites = {least}"
        said = f"{found} upload(s) when the window closed, but {wanted} needs {self.needed}"
        absent = [entry for entry in self.roster.sites if entry.client not in self.uploads]
        if not absent:
            lower = "" if by_clusters else "lower deployment.min_sites, or "
            return FedBiCrossError(
                f"{said}: every site has uploaded, and outlying uploads are held back; {lower}start a run "
                "with another out and deployment.hold_back = false"
            )
        missing = "; ".join(f"{one.site}: {one.reason or 'it did not answer'}" for one in absent)
        return FedBiCrossError(
            f"{said}; run the same command again to open another window (missing: {missing})"
        )

    def hold_back(self, flags: Mapping[int, list[str]]) -> None:
        """Leave flagged uploads out of the method."""
        if len(self.method_uploads()) - len(flags) < self.needed:
            raise self.too_few(len(self.method_uploads()) - len(flags))
        for client in flags:
            reason = "; ".join(self.site(client).flags)
            self.roster.change(client, state="held back", held=True, reason=reason)
            self.progress.note(f"the upload of site {self.site(client).site} is held back")
