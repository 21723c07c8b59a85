"""How far a run is, read from its folder alone: who has sent a model, which stage runs, what is left.

Nothing is asked of the run itself, so this works on one that runs, stands still, failed or is finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fedbicross_flwr.centre.roster import ROSTER, read_roster
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.config_readers import CENTRAL
from fedbicross_flwr.flower_names import is_flower
from fedbicross_flwr.handover.kept_shipment import check_run_folder
from fedbicross_flwr.progress import TRAINING, Event, new_events, read_events
from fedbicross_flwr.report.run_folder import failure_of
from fedbicross_flwr.report.units import count
from fedbicross_flwr.runs.folder import FAILED, RunFolder, read_config
from fedbicross_flwr.status.parties import Party, clients_of, moment, sites_of, window_end, with_handovers

ENDED: Final = ("finished", "failed")

STAGES: Final[Mapping[str, str]] = {
    "uploads": "round 1: models are trained and sent",
    "rounds": "rounds of Flower's own strategy",
    "method": "the server's method",
    "shipping": "round 2: cluster models are fetched and made personal",
    "central": "the central model is trained on pooled images",
    "report": "scores and report",
    "finished": "finished",
    "failed": "failed",
}
"""What runs, by the name of a stage, in their order; a central model has no clients and begins at its own."""


@dataclass(frozen=True)
class Step:
    """How far one piece of work is, 0..1: of the server, or the mean of the clients that are at it."""

    name: str
    share: float


@dataclass(frozen=True)
class RunStatus:
    """All that there is to tell.

    Parameters
    ----------
    path : Path
        The run's folder.
    stage : str
        A name in `STAGES`.
    reason : str
        Why the run failed.
    parties : tuple of Party
        In the order of their numbers.
    steps : tuple of Step
        In the order in which they began.
    notes : tuple of str
        What the run noted on the way, such as why a client is left out.
    last : datetime or None
        When the run last noted anything.
    closes : datetime or None
        In a deployment that waits for sites: until when.
    connected : int
        In a deployment: nodes that are at work and have not answered yet.
    deployment : bool
        Whether the parties are sites.
    """

    path: Path
    stage: str
    reason: str
    parties: tuple[Party, ...]
    steps: tuple[Step, ...]
    notes: tuple[str, ...]
    last: datetime | None
    closes: datetime | None = None
    connected: int = 0
    deployment: bool = False

    @property
    def ended(self) -> bool:
        """Return whether nothing runs any more."""
        return self.stage in ENDED

    def left(self) -> list[str]:
        """Return what is still to do, in its order."""
        order = list(STAGES)
        # A run that failed begins again with its uploads, and finds what it has.
        now = 0 if self.stage == "failed" else order.index(self.stage)
        todo = [name for name in order[now:] if name not in ENDED]
        if self.stage == "finished" and self.deployment:  # whoever is missing can still come
            todo = ["uploads", "shipping"]
        return [line for name in todo for line in self.to_do(name)]

    def to_do(self, stage: str) -> list[str]:
        """Return what is left of one stage."""
        unsent = [party.name for party in self.parties if party.is_awaited and not party.sent]
        undone = [party.name for party in self.parties if party.is_awaited]
        said = {
            "uploads": [f"{count(len(unsent), 'model')} from {', '.join(unsent)}"] if unsent else [],
            "method": ["the method"] if self.parties else [],
            "shipping": [f"{count(len(undone), 'personal model')} at {', '.join(undone)}"] if undone else [],
            "report": ["scores and report"],
        }
        return said.get(stage, [])


def read_status(path: Path) -> RunStatus:
    """Read how far a run is.

    Parameters
    ----------
    path : Path
        The run's folder.

    Raises
    ------
    FedBiCrossError
        When it is no run's folder, or a file in it is damaged.
    """
    check_run_folder(path)
    config = read_config(path)
    # The log is followed until there is nothing new.
    events = new_events(read_events(path / "progress.jsonl"))
    last = datetime.fromtimestamp(events[-1].time, UTC) if events else None
    notes = tuple(event.text for event in events if event.stage == "note")
    steps = tuple(steps_of(events))
    if (path / ROSTER).exists():
        roster = read_roster(path / ROSTER)
        changed = moment((path / ROSTER).stat().st_mtime)
        return RunStatus(
            path,
            roster.stage,
            roster.reason,
            with_handovers(sites_of(roster), path),
            steps,
            notes,
            max(filter(None, (last, changed))),
            window_end(roster),
            roster.connected,
            deployment=True,
        )
    parties = clients_of(RunFolder(path), config)
    stage, reason = stage_of(path, config, events, parties)
    return RunStatus(path, stage, reason, with_handovers(parties, path), steps, notes, last)


def stage_of(
    path: Path, config: RunConfig, events: Sequence[Event], parties: Sequence[Party]
) -> tuple[str, str]:
    """Return the stage of a simulation, and why it failed if it did."""
    if RunFolder(path).finished:
        return "finished", ""
    if events and events[-1].stage == "error":
        return "failed", events[-1].text
    if (reason := failure_of(path)) is not None and not is_outlived(path / FAILED, events):
        return "failed", reason
    if config.method == CENTRAL:
        return "central", ""
    last = next((event for event in reversed(events) if event.stage != "note"), None)
    at_server = last is not None and last.client is None
    # What a run under other software left is there still while it is made anew.
    anew = last is not None and (last.stage == TRAINING or (at_server and last.done < last.total))
    if not anew and (path / "models" / "cluster-0.safetensors").exists():
        return ("report" if all(party.state == "done" for party in parties) else "shipping"), ""
    if is_flower(config.method):
        return "rounds", ""
    sent = all(party.sent for party in parties)
    return ("method" if at_server or sent else "uploads"), ""


def is_outlived(failure: Path, events: Sequence[Event]) -> bool:
    """Return whether a run went on after its failure was noted, as one does that another process makes."""
    return bool(events) and events[-1].time > failure.stat().st_mtime


def steps_of(events: Iterable[Event]) -> Iterable[Step]:
    """Yield how far each piece of work is, by the last that was noted of it."""
    shares: dict[str, dict[int | None, float]] = {}
    for event in events:
        if event.stage not in ("note", "error"):
            shares.setdefault(event.stage, {})[event.client] = event.done / max(event.total, 1)
    for name, parts in shares.items():
        yield Step(name, sum(parts.values()) / len(parts))
