"""The roster of a deployment: which site has done what, in a file that is whole at any moment.

``roster.json`` in the run's folder is written anew at every change, so that ``fedbicross status`` can read it
while the run lasts, and a server that was killed knows whom it still waits for.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import write_bytes

ROSTER: Final = "roster.json"
STAGES: Final = ("uploads", "method", "shipping", "finished", "failed")
STATES: Final = ("expected", "asked", "uploaded", "refused", "held back", "shipped", "done", "missing")


@dataclass
class SiteEntry:
    """What is known of one site.

    `cluster` is there once it has one; `late` says that its upload came after the method had begun, `held`
    that the method was to do without it; `flags` say in which way its upload is unlike the others';
    `uploaded` and `done` are times.
    """

    site: str
    client: int
    state: str = "expected"
    late: bool = False
    held: bool = False
    cluster: int | None = None
    reason: str = ""
    flags: list[str] = field(default_factory=list)
    uploaded: str | None = None
    done: str | None = None


@dataclass
class Roster:
    """All sites, and how far the run is; times are ISO 8601 in UTC.

    Parameters
    ----------
    path : Path
        The file.
    sites : list of SiteEntry
        In the order of the clients' numbers.
    stage : str
        One of `STAGES`.
    opened, closed, shipping : str or None
        When the window for uploads was opened and closed, and that for personal models opened.
    upload_window, personal_window : float
        Seconds.
    connected : int
        Nodes that are connected and have not answered yet: one says which site it is when it answers.
    reason : str
        Why the run failed.
    """

    path: Path
    sites: list[SiteEntry]
    stage: str = "uploads"
    opened: str | None = None
    closed: str | None = None
    shipping: str | None = None
    upload_window: float = 0.0
    personal_window: float = 0.0
    connected: int = 0
    reason: str = ""

    @classmethod
    def open(cls, folder: Path, config: RunConfig) -> Roster:
        """Take up the roster of a run's folder, or begin one.

        Raises
        ------
        FedBiCrossError
            When the file is damaged, or of other sites.
        """
        deployment, path = config.deployment, folder / ROSTER
        names = deployment.site_names
        roster = cls(path, [SiteEntry(name, client) for client, name in enumerate(names)])
        if path.exists():
            roster = read_roster(path)
            if tuple(entry.site for entry in roster.sites) != names:
                raise FedBiCrossError(f"{path} is of other sites; choose another folder with out")
        roster.upload_window = deployment.upload_window
        roster.personal_window = deployment.personal_window
        return roster

    def write(self) -> None:
        """Write the file."""
        content: dict[str, Any] = {
            "stage": self.stage,
            "opened": self.opened,
            "closed": self.closed,
            "shipping": self.shipping,
            "upload_window": self.upload_window,
            "personal_window": self.personal_window,
            "connected": self.connected,
            "reason": self.reason,
            "sites": [asdict(entry) for entry in self.sites],
        }
        write_bytes(self.path, (json.dumps(content, indent=1) + "\n").encode())

    def enter(self, stage: str, reason: str = "") -> None:
        """Go on to a stage."""
        self.stage, self.reason = stage, reason
        self.write()

    def change(self, client: int, **changes: Any) -> None:
        """Change what is known of a site."""
        entry = self.sites[client]
        for name, value in changes.items():
            assert hasattr(entry, name), name
            setattr(entry, name, value)
        self.write()

    def count(self, connected: int) -> None:
        """Note how many nodes are at work, if that has changed."""
        if connected != self.connected:
            self.connected = connected
            self.write()


def read_roster(path: Path) -> Roster:
    """Read a roster.

    Raises
    ------
    FedBiCrossError
        When there is none, or it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sites = [SiteEntry(**entry) for entry in content.pop("sites")]
        roster = Roster(path, sites, **content)
        numbers = [entry.client for entry in sites]
        if (
            numbers != list(range(len(sites)))
            or roster.stage not in STAGES
            or any(entry.state not in STATES for entry in sites)
        ):
            raise ValueError("numbers, stage or states are unknown")
        return roster
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FedBiCrossError(
            f"{path} cannot be read ({error}); remove it, and the run takes up what else is in its folder"
        ) from error


def now() -> str:
    """Return the time as the roster has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def seconds_since(time: str) -> float:
    """Return how long ago a time of the roster was."""
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()


def seconds_left(window: float, opened: str) -> float:
    """Return the seconds that are left of a window that was opened at a time of the roster.

    Never more than `window`: by a clock that was ahead then and has been set back, it lies in the future.
    """
    return min(window - seconds_since(opened), window)


def seconds_between(first: str | None, last: str | None) -> float:
    """Return the seconds between two times of the roster; 0 where one is missing."""
    if first is None or last is None:
        return 0.0
    return max((datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds(), 0.0)
