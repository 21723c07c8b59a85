"""Makes the runs of a comparison one after another; what is finished is kept, a failure stops no other."""

from __future__ import annotations

from collections.abc import Sequence

from fedbicross_flwr.compare.pace import Pace, Say, say_at_once, total_seconds
from fedbicross_flwr.compare.plan import PlannedRun
from fedbicross_flwr.compare.single_run import Failure, timed_run
from fedbicross_flwr.runs.folder import RunFolder


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
