"""Makes the runs of a comparison: what is finished is kept, a failure stops no other.

One after another here, and several at once in `fedbicross_flwr.compare.at_once`.
"""

from __future__ import annotations

import io
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from rich.console import Console

from fedbicross_flwr.compare.central import run_central
from fedbicross_flwr.compare.plan import PlannedRun
from fedbicross_flwr.compare.variants import FLOWER
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.federated_data import deal, open_data
from fedbicross_flwr.files import disk_is_full, write_bytes
from fedbicross_flwr.methods import method_named
from fedbicross_flwr.methods.flower_rounds import check_rounds
from fedbicross_flwr.models import ModelSpec, build_model
from fedbicross_flwr.progress import new_events, read_events
from fedbicross_flwr.progress_display import ProgressDisplay
from fedbicross_flwr.report.units import duration
from fedbicross_flwr.runs.folder import RunFolder, check_folder, drop_shared_stages, make_writable
from fedbicross_flwr.runs.opening import open_run, sole_comparison
from fedbicross_flwr.runs.trackers import check_tracker
from fedbicross_flwr.simulate import FlowerRunError, run_it

FAILED = "failed.json"

Say = Callable[[str], None]
"""Takes a piece of text for the terminal, line ends included."""


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


def say_at_once(text: str) -> None:
    """Print a piece of text as it is."""
    print(text, end="", flush=True)


def compare_all(runs: Sequence[PlannedRun], flower: bool, out: Path, jobs: int = 1) -> int:
    """Check everything, make all runs, up to `jobs` at once, write the table; return the exit status.

    Raises
    ------
    FedBiCrossError
        For a mistake in any run, before the first one starts; or when the disk is full.
    """
    # Here, as the table is needed in the end only, and as the other module takes from this one.
    from fedbicross_flwr.compare.at_once import check_jobs, make_at_once
    from fedbicross_flwr.compare.tables import write_comparison

    check_jobs(runs, flower, jobs)
    check_runs(runs, out)
    with sole_comparison(out):
        failures = make_runs(runs, flower) if jobs == 1 else make_at_once(runs, jobs, say_at_once)
        for failure in failures:
            print(f"failed: {failure.run.title}: {failure.error}", file=sys.stderr)
        if not failures:
            for run in runs:
                drop_shared_stages(run.config)
        if len(failures) < len(runs):
            print(f"\ntable: {write_comparison(out)}")
    return 1 if failures else 0


def check_runs(runs: Sequence[PlannedRun], out: Path) -> None:
    """Find every mistake before the first run starts: methods, tracker, data, partitions, device, folders.

    Raises
    ------
    FedBiCrossError
        For the first mistake.
    """
    for run in runs:
        if run.variant.name.startswith(FLOWER):
            check_rounds(run.config, "flower")
        elif not run.central:
            method_named(run.config.method)
        check_tracker(run.config.runtime)
    make_writable(out)
    fingerprints: dict[tuple[str, int], str] = {}
    for run in runs:
        key = (run.cell, run.config.seed)
        if key not in fingerprints:
            fingerprints[key] = check_data(run)
        if any(entry.name != FAILED for entry in entries_of(run.folder)):
            check_folder(run.folder, run.config, fingerprints[key])


def check_data(run: PlannedRun) -> str:
    """Open and deal a run's data; return its fingerprint."""
    source = open_data(run.config)
    deal(source, run.config)
    Compute.of(run.config.runtime)
    build_model(ModelSpec.of(run.config, source.info.num_classes, source.info.channels), 0)
    return source.fingerprint()


def entries_of(folder: Path) -> list[Path]:
    """Return what lies in a folder that may be absent."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def make_runs(runs: Sequence[PlannedRun], flower: bool = False, say: Say = say_at_once) -> list[Failure]:
    """Make all runs that are not finished; one line each, with what is left.

    Parameters
    ----------
    runs : sequence of PlannedRun
        In the order in which they are made.
    flower : bool, default False
        Under Flower instead of in this process; the numbers are the same. The central model, which is no
        federation, is trained here either way.
    say : callable
        Where the lines go.

    Returns
    -------
    list of Failure
        Runs that failed; each has its reason in its folder's ``failed.json`` and is tried again next time.

    Raises
    ------
    FedBiCrossError
        When the disk is full, which no later run would survive.
    """
    pace = Pace([run.variant.name for run in runs])
    failures: list[Failure] = []
    for number, run in enumerate(runs, start=1):
        say(f"{number}/{len(runs)} {run.title} ... ")
        if RunFolder(run.folder).finished:
            pace.note(run.variant.name, total_seconds(run.folder))
            say("finished before\n")
            continue
        done = timed_run(run, flower)
        pace.note(run.variant.name, None if done.failure else done.seconds)
        if done.failure:
            failures.append(done.failure)
        say(done.lines(pace.left()))
    return failures


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
    flower = flower or run.variant.name.startswith(FLOWER)
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


def total_seconds(folder: Path) -> float | None:
    """Return how long a finished run took, if it says so."""
    try:
        return float(json.loads((folder / "run.json").read_text(encoding="utf-8"))["seconds"]["total"])
    except (OSError, ValueError, KeyError, TypeError):
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
