"""Who takes part in a run, and how far each is: sites by the roster, simulated clients by their files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedbicross_flwr.centre.roster import Roster
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.config_readers import CENTRAL
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.handover.notes import HANDOVERS, read_handovers
from fedbicross_flwr.handover.simulated_outcome import assignment_of
from fedbicross_flwr.runs.folder import RunFolder


@dataclass(frozen=True)
class Party:
    """One site, or one simulated client; times are in UTC.

    `state` is one of `fedbicross_flwr.centre.roster.STATES`, in a simulation ``expected``, ``uploaded`` or
    ``done``; `handed_over` is when its cluster model was last written to a signed file.
    """

    name: str
    state: str
    late: bool = False
    cluster: int | None = None
    remark: str = ""
    uploaded: datetime | None = None
    done: datetime | None = None
    handed_over: datetime | None = None

    @property
    def sent(self) -> bool:
        """Return whether its model is at the server."""
        return self.uploaded is not None

    @property
    def is_awaited(self) -> bool:
        """Return whether it has no personal model yet and may still get one."""
        return self.state not in ("done", "refused")


def sites_of(roster: Roster) -> tuple[Party, ...]:
    """Return the sites of a deployment."""
    return tuple(
        Party(
            entry.site,
            entry.state,
            entry.late,
            entry.cluster,
            "; ".join(dict.fromkeys(filter(None, [entry.reason, *entry.flags]))),
            told(roster.path, entry.uploaded),
            told(roster.path, entry.done),
        )
        for entry in roster.sites
    )


def clients_of(folder: RunFolder, config: RunConfig) -> tuple[Party, ...]:
    """Return the clients of a simulation; a central model has none."""
    if config.method == CENTRAL:
        return ()
    clusters = assignment_of(folder, config) if (folder.path / "clustering.json").exists() else {}
    parties = []
    for client in range(config.num_clients):
        sent, done = written(folder.upload_path(client)), written(folder.site(client) / "scores.json")
        state = "done" if done else "uploaded" if sent else "expected"
        name = f"client-{client:02d}"
        parties.append(Party(name, state, cluster=clusters.get(client), uploaded=sent, done=done))
    return tuple(parties)


def window_end(roster: Roster) -> datetime | None:
    """Return until when a deployment waits for its sites, if it does."""
    windows = {
        "uploads": (roster.opened, roster.upload_window),
        "shipping": (roster.shipping, roster.personal_window),
    }
    begun, seconds = windows.get(roster.stage, (None, 0.0))
    opened = told(roster.path, begun)
    try:
        return opened + timedelta(seconds=seconds) if opened else None
    except OverflowError:  # beyond the last year that a date has: it waits for ever
        return None
    except (TypeError, ValueError) as error:
        raise FedBiCrossError(f"{roster.path} is damaged: {seconds!r} is no window of time") from error


def with_handovers(parties: tuple[Party, ...], run: Path) -> tuple[Party, ...]:
    """Return the parties with what is noted of hand-overs in the run's folder.

    Raises
    ------
    FedBiCrossError
        When a note is damaged.
    """
    times = {client: note.written for client, note in read_handovers(run).items()}
    return tuple(
        replace(party, handed_over=told(run / HANDOVERS, times.get(client)))
        for client, party in enumerate(parties)
    )


def told(path: Path, time: str | None) -> datetime | None:
    """Return a time that a file tells.

    Raises
    ------
    FedBiCrossError
        When it is none.
    """
    if time is None:
        return None
    try:
        said = datetime.fromisoformat(time)
        return (said if said.tzinfo else said.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise FedBiCrossError(f"{path} is damaged: {time!r} is no time") from error


def written(path: Path) -> datetime | None:
    """Return when a file was written, if it is there."""
    try:
        return moment(path.stat().st_mtime)
    except OSError:
        return None


def moment(seconds: float) -> datetime:
    """Return a time that is told in seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC)
