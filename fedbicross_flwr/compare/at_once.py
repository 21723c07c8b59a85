"""Makes the runs of a comparison several at once, each as a task of Ray: ``fedbicross compare --jobs N``.

Ray is on every machine that Flower's simulation is on, and gives each task an accelerator of its own. The
numbers are those of the runs one after another.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedbicross_flwr.compare.pace import Pace, Say, skip_finished
from fedbicross_flwr.compare.plan import PlannedRun
from fedbicross_flwr.compare.single_run import Done, Failure, note_failure, timed_run
from fedbicross_flwr.compute import Compute, server_threads
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.flower_names import is_flower
from fedbicross_flwr.ray_tasks import first_line, own_ray
from fedbicross_flwr.runs.code_version import shared_folder

OBJECT_STORE_BYTES = 100 * 2**20
"""Ray's least but a little: tasks take a configuration and give back a few words."""

USUAL_JOBS = 2
"""Most of a run is one student's training on one core, and a laptop has the memory of two runs."""

Submit = Callable[[PlannedRun], Any]
Wait = Callable[[Sequence[Any]], tuple[Any, Done | str]]
"""Waits for one of several tasks; returns it and what came of it, or why its process ended early."""


def usual_jobs(runs: Sequence[PlannedRun], flower: bool) -> int:
    """Return how many runs are made at once if nobody says: two on a CPU's cores, where that can be.

    An accelerator is one run's, and under Flower the clients of one run have all cores.
    """
    if flower or len(runs) < USUAL_JOBS or any(is_flower(run.variant.name) for run in runs):
        return 1
    runtime = runs[0].config.runtime
    on_cpu = Compute.of(runtime).device.type == "cpu"
    return USUAL_JOBS if on_cpu and server_threads(runtime) >= USUAL_JOBS else 1


def check_jobs(runs: Sequence[PlannedRun], flower: bool, jobs: int) -> None:
    """Find out before the first run whether several can be made at once.

    Raises
    ------
    FedBiCrossError
        When they are to be made under Flower, or on one certain accelerator.
    """
    if jobs == 1:
        return
    if flower:
        raise FedBiCrossError(
            f"--jobs {jobs} and --flower exclude each other: under Flower the clients of a run work side "
            "by side; leave one out"
        )
    for run in runs:
        if is_flower(run.variant.name):
            raise FedBiCrossError(
                f"{run.variant.name} runs under Flower, which takes all cores for one run; give it a call "
                f"without --jobs {jobs}, with the same --out"
            )
        device = run.config.runtime.device
        if device.partition(":")[2] not in ("", "0"):
            raise FedBiCrossError(
                f"runtime.device = {device!r} names one accelerator, and --jobs {jobs} gives each run one of "
                "its own; set auto, or the device without a number"
            )


def make_at_once(runs: Sequence[PlannedRun], jobs: int, say: Say) -> list[Failure]:
    """Make all runs that are not finished, up to `jobs` at once; one line each when it is over.

    Parameters
    ----------
    runs : sequence of PlannedRun
        See `prerequisites` for what waits for what.
    jobs : int
        Runs at once. Each has as many of the CPU's cores, and an accelerator to itself where there is one:
        fewer accelerators than jobs make the other runs wait.
    say : callable
        Where the lines go.

    Returns
    -------
    list of Failure
        In the order of `runs`; see `fedbicross_flwr.compare.in_turn.make_runs`.

    Raises
    ------
    FedBiCrossError
        When the disk is full; the runs that are being made end then, and go on next time.
    """
    pace = Pace([run.variant.name for run in runs])
    open_runs = skip_finished(runs, pace, say)
    if not open_runs:
        return []
    # Ray starts a process for each job, whatever there is to do.
    jobs = min(jobs, len(open_runs))
    before, open_runs = prerequisites(runs if has_models(runs) else open_runs), apart(open_runs)
    teller = Teller(len(runs), len(runs) - len(open_runs), pace, jobs, say)
    with tasks_of_ray(open_runs[0], jobs) as (submit, wait):
        found = follow(open_runs, before, submit, wait, teller)
    return [found[run.folder] for run in runs if run.folder in found]


def apart(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return the runs of each cell and seed with those of one group apart.

    They are the likeliest to share stages, and a run can take a stage from one that is over, not from one
    that is at it.
    """
    turns: Counter[tuple[int, str, str]] = Counter()
    order = dict[tuple[int, str], int]()
    keys: dict[Path, tuple[int, int]] = {}
    for run in runs:
        seed, group = run.config.seed, (run.config.seed, run.cell, run.variant.group)
        keys[run.folder] = order.setdefault((seed, run.cell), len(order)), turns[group]
        turns[group] += 1
    return sorted(runs, key=lambda run: keys[run.folder])


def has_models(runs: Sequence[PlannedRun]) -> bool:
    """Return whether finished runs may have left models that others use again.

    They have not where their cache was removed, or belongs to other code.
    """
    folder = shared_folder(runs[0].config)
    return folder is not None and folder.is_dir()


def prerequisites(runs: Sequence[PlannedRun]) -> dict[Path, Path | None]:
    """Return the run, by its folder, that is over before a run begins.

    The first run of a cell and seed trains the clients' models that the others of it use again. The central
    model is the same for all cells of a data set and seed: these runs go one after another.
    """
    before: dict[Path, Path | None] = {}
    first: dict[tuple[str, int], Path] = {}
    central: dict[tuple[Any, int], Path] = {}
    for run in runs:
        seed = run.config.seed
        if run.central:
            before[run.folder] = central.get((run.config.data, seed))
            central[run.config.data, seed] = run.folder
        else:
            leader = first.setdefault((run.cell, seed), run.folder)
            before[run.folder] = None if leader == run.folder else leader
    return before


def follow(
    runs: Sequence[PlannedRun],
    before: Mapping[Path, Path | None],
    submit: Submit,
    wait: Wait,
    teller: Teller,
) -> dict[Path, Failure]:
    """Submit each run when what it waits for is over, however that ended, and tell of each as it ends."""
    waiting, working = list(runs), dict[Any, PlannedRun]()
    # What is not to be made was finished before.
    over: set[Path | None] = {None, *before} - {run.folder for run in runs}
    failures: dict[Path, Failure] = {}
    while waiting or working:
        for run in [run for run in waiting if before[run.folder] in over]:
            working[submit(run)] = run
            waiting.remove(run)
        task, result = wait(list(working))
        run = working.pop(task)
        over.add(run.folder)
        done = result if isinstance(result, Done) else Done(run, 0.0, note_failure(run, result), ())
        if done.failure:
            failures[run.folder] = done.failure
        teller.tell(done)
    return failures


class Teller:
    """Says of each run that it is over: how many are, how long it took, and what is left."""

    def __init__(self, total: int, over: int, pace: Pace, jobs: int, say: Say) -> None:
        self.total, self.over, self.pace, self.jobs, self.say = total, over, pace, jobs, say

    def tell(self, done: Done) -> None:
        """Say what came of a run, in one piece."""
        self.over += 1
        self.pace.note(done.run.variant.name, None if done.failure else done.seconds)
        lines = done.lines(self.pace.left(self.jobs))
        self.say(f"{self.over}/{self.total} {done.run.title} ... {lines}")


def share_of(run: PlannedRun, jobs: int) -> PlannedRun:
    """Return a run that takes its share of the CPU's cores, which does not shape its result.

    It is a task of Ray, and starts none.
    """
    cores = max(server_threads(run.config.runtime) // jobs, 1)
    runtime = dataclasses.replace(run.config.runtime, server_threads=cores, server_tasks=1)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, runtime=runtime))


@contextmanager
def tasks_of_ray(sample: PlannedRun, jobs: int) -> Iterator[tuple[Submit, Wait]]:
    """Start a Ray of one's own; on leaving, for whatever reason, all its processes end.

    Parameters
    ----------
    sample : PlannedRun
        Any of the runs; all are computed on the same kind of device.
    jobs : int
        Tasks at once.

    Raises
    ------
    FedBiCrossError
        When Ray does not start.
    """
    with own_ray(jobs, object_store_memory=OBJECT_STORE_BYTES):
        # Not above: it takes seconds, and is for `--jobs` alone.
        import ray
        from ray.exceptions import RayError, RayTaskError

        found = int(ray.cluster_resources().get("GPU", 0))
        gpus = 1 if found and Compute.of(sample.config.runtime).device.type != "cpu" else 0
        # Not again after its process was killed: what killed it may have been its hunger for memory.
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(timed_run)

        def submit(run: PlannedRun) -> Any:
            return task.remote(share_of(run, jobs))

        def wait(working: Sequence[Any]) -> tuple[Any, Done | str]:
            (first, *_), _ = ray.wait(list(working), num_returns=1)
            try:
                return first, ray.get(first)
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:
                return first, f"its process ended early ({type(error).__name__}): {first_line(error)}"

        yield submit, wait
