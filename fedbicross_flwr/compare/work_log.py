"""What a run's own log says of the clients' work in it: who trained, who made a personal model, how long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedbicross_flwr.progress import TRAINING, Event, new_events, read_events

LOG = "progress.jsonl"
PERSONAL = frozenset({"personalisation", "fine-tuning"})
NO_WORK = frozenset({"note", "error"})


@dataclass(frozen=True)
class WorkLog:
    """The clients' work in one run folder, whatever process did it.

    Parameters
    ----------
    trained, personal : frozenset of int
        Clients that were trained to the end here, and that made a personal model here: what was taken from
        a shared cache leaves no trace. The centre of a central model is client -1.
    seconds : float
        From the first piece of work to the last, by the clock on the wall.
    """

    trained: frozenset[int]
    personal: frozenset[int]
    seconds: float


def read_work_log(folder: Path) -> WorkLog | None:
    """Return what a run folder's log says, or None when it has none."""
    if not (folder / LOG).is_file():
        return None
    events = work_events(folder)
    done = [event for event in events if event.done == event.total and event.client is not None]
    times = [event.time for event in events]
    return WorkLog(
        trained=frozenset(one.client for one in done if one.client is not None and one.stage == TRAINING),
        personal=frozenset(one.client for one in done if one.client is not None and one.stage in PERSONAL),
        seconds=max(times) - min(times) if times else 0.0,
    )


def work_events(folder: Path) -> list[Event]:
    """Return the events of a run folder's log that tell of work."""
    return [event for event in new_events(read_events(folder / LOG)) if event.stage not in NO_WORK]
