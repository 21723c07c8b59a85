"""How long work says how far it is: a callback that methods and trainings report to.

Nothing here prints. `EventLog` appends events to a file that other processes may append to as well, and
`read_events` follows such a file; the command line draws what it reads.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from fedbicross_flwr.files import is_text
from fedbicross_flwr.settings import LARGEST

TRAINING: Final = "training"
"""The stage of round 1, which each client reports its own part of."""
ROUNDS: Final = "rounds"
"""The rounds of one of Flower's strategies, which the server counts while the clients train."""
LATEST: Final = 250_000_000_000
"""In seconds since the epoch; a date ends a little later, with the year 9999."""


class Progress(Protocol):
    """Receives how far a stage is."""

    def advance(self, stage: str, done: int, total: int, *, client: int | None = None) -> None:
        """Note that `done` of `total` steps of `stage` are finished (at `client`, if it is one's work)."""

    def note(self, text: str) -> None:
        """Note a fact that the user should see at once."""


class Silent:
    """Progress that nobody watches."""

    def advance(self, stage: str, done: int, total: int, *, client: int | None = None) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Event:
    """One line of an event log; `time` is in seconds since the epoch."""

    time: float
    stage: str
    done: int
    total: int
    client: int | None = None
    text: str = ""


class EventLog:
    """Appends events to a file as lines of JSON, a stage at most every `interval` seconds.

    A line is one short ``write`` in append mode, so several processes can share the file.
    """

    def __init__(self, path: Path, interval: float = 0.5) -> None:
        self.path = path
        self.interval = interval
        self._last: dict[tuple[str, int | None], float] = {}

    def advance(self, stage: str, done: int, total: int, *, client: int | None = None) -> None:
        """Append the step, unless the same stage was noted just now and is not finished."""
        now = time.time()
        if done < total and now - self._last.get((stage, client), 0.0) < self.interval:
            return
        self._last[stage, client] = now
        self._append(Event(now, stage, done, total, client))

    def note(self, text: str) -> None:
        """Append a note."""
        self._append(Event(time.time(), "note", 1, 1, None, text))

    def fail(self, text: str) -> None:
        """Append why the run ended early."""
        self._append(Event(time.time(), "error", 1, 1, None, text))

    def _append(self, event: Event) -> None:
        # Progress is worth no failed run: on a full disk a reader just sees nothing.
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(event)) + "\n")


def read_events(path: Path) -> Iterator[Event | None]:
    """Follow an event log: yield its events, and None whenever there is no new one yet."""
    position = 0
    while True:
        if not path.exists():
            yield None
            continue
        with path.open("rb") as file:
            file.seek(position)
            block = file.read()
        complete = block[: block.rfind(b"\n") + 1]
        position += len(complete)
        for line in complete.splitlines():
            if (event := event_of(line)) is not None:
                yield event
        yield None


def event_of(line: bytes) -> Event | None:
    """Return the event in a line of a log, or None for a line that holds none.

    A writer that was killed half-way may have spoilt it: progress is worth no failed run.
    """
    try:
        event = Event(**json.loads(line))
        counts = (event.done, event.total, 0 if event.client is None else event.client)
        fits = 0 <= event.time <= LATEST and all(abs(count) <= LARGEST for count in counts)
        return event if fits and all(is_text(text) for text in (event.stage, event.text)) else None
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def new_events(events: Iterator[Event | None]) -> list[Event]:
    """Return what `read_events` has to tell by now."""
    return list(iter(partial(next, events), None))
