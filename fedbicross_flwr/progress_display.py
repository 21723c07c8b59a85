"""Shows how far a run is: bars with the time left, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedbicross_flwr.progress import ROUNDS, TRAINING, Event, new_events, read_events

PLAIN_SECONDS = 10.0
"""Without a terminal, a stage is reported at most this often, and when it is finished."""


class ProgressDisplay:
    """Follows the event log of a run.

    Parameters
    ----------
    path : Path
        The log; what it holds when the display is made belongs to an earlier call and is not shown.
    clients : int
        Clients of the run: a stage of the clients is finished when all of them are, or the server goes on
        without the others.
    waiting : int, optional
        Those whose upload is not there yet; all, if it is not said.
    console : Console
        Where to draw.
    """

    def __init__(self, path: Path, clients: int, console: Console, waiting: int | None = None) -> None:
        self.console = console
        self.clients = clients
        self.waiting = clients if waiting is None else waiting
        self.error = ""
        self.stages: dict[str, Stage] = {}
        self.events: Iterator[Event | None] = read_events(path)
        new_events(self.events)
        self.bars = Progress(
            TextColumn("{task.description:34}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> ProgressDisplay:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.poll()
        self.bars.stop()

    def poll(self) -> None:
        """Show what is new."""
        for event in new_events(self.events):
            self.show(event)

    def show(self, event: Event) -> None:
        """Show one event."""
        if event.stage == "error":
            self.error = event.text
        elif event.stage == "note":
            self.console.print(event.text, style="yellow", markup=False, highlight=False)
        else:
            stage = self.stages.get(event.stage) or self.begin(event)
            stage.update(event)
            self.draw(stage)

    def draw(self, stage: Stage) -> None:
        """Show how far a stage is."""
        if self.console.is_terminal:
            self.bars.update(stage.task, completed=stage.fraction)
        elif (line := stage.line()) is not None:
            self.console.print(line, markup=False, highlight=False)

    def begin(self, event: Event) -> Stage:
        """Begin to show a stage; when the server begins one, those of the clients are over.

        The rounds of one of Flower's strategies end none: the clients train in all of them.
        """
        parties = 1 if event.client is None else self.waiting if event.stage == TRAINING else self.clients
        for other in self.stages.values():
            if event.client is None and event.stage != ROUNDS and not other.over and None not in other.shares:
                other.over = True
                self.draw(other)
        stage = Stage(event.stage, parties, event.time, self.bars.add_task(event.stage, total=1.0))
        self.stages[event.stage] = stage
        return stage


class Stage:
    """How far one stage is, over all parties that work on it."""

    def __init__(self, name: str, parties: int, started: float, task: TaskID) -> None:
        self.name = name
        self.parties = parties
        self.started = started
        self.task = task
        self.shares: dict[int | None, float] = {}
        self.over = False
        self._said = started
        self._told = False

    @property
    def fraction(self) -> float:
        """Return the finished share, 0..1."""
        return 1.0 if self.over else min(sum(self.shares.values()) / max(self.parties, 1), 1.0)

    def update(self, event: Event) -> None:
        """Take an event in."""
        self.shares[event.client] = event.done / event.total
        self.over = self.over or self.fraction >= 1.0 - 1e-9

    def line(self) -> str | None:
        """Return a plain line, if it is time for one."""
        now = time.time()
        if self._told or (not self.over and now - self._said < PLAIN_SECONDS):
            return None
        self._said, self._told = now, self.over
        spent = now - self.started
        if self.over:
            return f"{self.name}: done in {spent:.0f} s"
        left = spent / max(self.fraction, 1e-6) - spent
        return f"{self.name}: {self.fraction:.0%}, about {left:.0f} s left"
