"""Makes one run of a comparison, and says what came of it."""

from __future__ import annotations

import io
import json
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fedbicross_flwr.compare.central import run_central
from fedbicross_flwr.compare.plan import PlannedRun
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import disk_is_full, write_bytes
from fedbicross_flwr.flower_names import is_flower
from fedbicross_flwr.progress import new_events, read_events
from fedbicross_flwr.progress_display import ProgressDisplay
from fedbicross_flwr.report.units import duration
from fedbicross_flwr.runs.folder import FAILED
from fedbicross_flwr.runs.opening import open_run
from fedbicross_flwr.simulate import FlowerRunError, run_it


@dataclass(frozen=True)
class Failure:
    """A run that came to nothing, and why, in one line."""

    run: PlannedRun
    error: str


@dataclass(frozen=True)
class Done:
    """A run that is over: how long it took, why it failed if it did, and what a user should know of it."""

    run: PlannedRun
    seconds: float
    failure: Failure | None
    notes: tuple[str, ...]

    def lines(self, left: str) -> str:
        """Return what is said of it behind its title; `left` is a phrase for what is left."""
        took = duration(self.seconds)
        first = f"failed after {took}: {self.failure.error}\n" if self.failure else f"{took}{left}\n"
        return "".join([first, *(f"    {note}\n" for note in self.notes)])


def timed_run(run: PlannedRun, flower: bool = False) -> Done:
    """Make one run and say what came of it; see `make_run`."""
    start = time.perf_counter()
    shown = Notes(run.folder / "progress.jsonl")
    failure = make_run(run, flower)
    return Done(run, time.perf_counter() - start, failure, tuple(shown.new()))


def make_run(run: PlannedRun, flower: bool) -> Failure | None:
    """Make one run; what goes wrong is written into its folder.

    Raises
    ------
    FedBiCrossError
        When the disk is full.
    """
    try:
        (run.folder / FAILED).unlink(missing_ok=True)
        start_run(run, flower)
    except Exception as error:
        if disk_is_full(error):
            raise FedBiCrossError(
                f"there is no space left for {run.folder}: free some, and the same command goes on"
            ) from error
        known = isinstance(error, FedBiCrossError | FlowerRunError)
        reason = " ".join((str(error) if known else f"{type(error).__name__}: {error}").split())
        return note_failure(run, reason, "" if known else traceback.format_exc())
    return None


def note_failure(run: PlannedRun, reason: str, trace: str = "") -> Failure:
    """Write into a run's folder why it failed."""
    content = {"error": reason, "traceback": trace} if trace else {"error": reason}
    write_bytes(run.folder / FAILED, json.dumps(content, indent=1).encode())
    return Failure(run, reason)


def start_run(run: PlannedRun, flower: bool) -> None:
    """Run to the end, by whatever the run is made with."""
    if run.central:
        run_central(run.config, run.folder)
        return
    flower = flower or is_flower(run.variant.name)
    if flower:
        # Flower's log goes into the folder, which must be this run's before anything else is there.
        open_run(run.config, run.folder)
    quiet = Console(file=io.StringIO())
    with ProgressDisplay(run.folder / "progress.jsonl", run.config.partition.clients, quiet) as display:
        run_it(run.config, run.folder, not flower, display)


class Notes:
    """What a run's log says that a user should know, such as that a client was left out."""

    def __init__(self, log: Path) -> None:
        self.events = read_events(log)
        self.new()

    def new(self) -> list[str]:
        """Return the notes since the last call."""
        return [event.text for event in new_events(self.events) if event.stage == "note"]
