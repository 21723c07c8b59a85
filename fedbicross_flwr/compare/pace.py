"""What a comparison says while it runs: what was finished before, and how long the rest will take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from fedbicross_flwr.compare.plan import PlannedRun
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.report.json_node import Node
from fedbicross_flwr.report.units import duration
from fedbicross_flwr.runs.folder import RunFolder

Say = Callable[[str], None]
"""Takes a piece of text for the terminal, line ends included."""


def say_at_once(text: str) -> None:
    """Print a piece of text as it is."""
    print(text, end="", flush=True)


def skip_finished(runs: Sequence[PlannedRun], pace: Pace, say: Say) -> list[PlannedRun]:
    """Tell of the runs that were finished before, and return the others."""
    others, over = [], 0
    for run in runs:
        if RunFolder(run.folder).finished:
            over += 1
            pace.note(run.variant.name, total_seconds(run.folder))
            say(f"{over}/{len(runs)} {run.title} ... finished before\n")
        else:
            others.append(run)
    return others


def total_seconds(folder: Path) -> float | None:
    """Return how long a finished run took, if it says so."""
    try:
        return Node.read(folder / "run.json")["seconds"]["total"].number(low=0)
    except FedBiCrossError:
        return None


@dataclass
class Pace:
    """Estimates what is left from what was done: a variant takes what it took before.

    Parameters
    ----------
    waiting : list of str
        Variants of the runs that are still to be made.
    """

    waiting: list[str]
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def note(self, variant: str, seconds: float | None) -> None:
        """Note that a run of a variant is over; None when its time says nothing."""
        self.waiting.remove(variant)
        if seconds is not None:
            self.seconds.setdefault(variant, []).append(seconds)

    def left(self, jobs: int = 1) -> str:
        """Return a phrase for what is left with so many runs at once; empty when nothing is, or is known."""
        known = [second for several in self.seconds.values() for second in several]
        if not self.waiting or not known:
            return ""
        total = sum(fmean(self.seconds.get(variant, known)) for variant in self.waiting)
        return f", about {duration(total / min(jobs, len(self.waiting)))} left"
