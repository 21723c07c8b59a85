"""Makes a comparison: everything is checked first, then all runs are made, then the table is written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fedbicross_flwr.compare.at_once import check_jobs, make_at_once, usual_jobs
from fedbicross_flwr.compare.in_turn import make_runs
from fedbicross_flwr.compare.pace import say_at_once
from fedbicross_flwr.compare.pages import write_comparison
from fedbicross_flwr.compare.plan import PlannedRun
from fedbicross_flwr.federated_data import check_federation, deal, open_data, refuse_sites
from fedbicross_flwr.flower_names import is_flower
from fedbicross_flwr.methods import method_named
from fedbicross_flwr.methods.flower_rounds import check_rounds
from fedbicross_flwr.runs.folder import (
    FAILED,
    LOCK,
    check_folder,
    check_no_run,
    drop_shared_stages,
    make_writable,
)
from fedbicross_flwr.runs.opening import sole_comparison
from fedbicross_flwr.runs.trackers import check_tracker


def compare_all(runs: Sequence[PlannedRun], flower: bool, out: Path, jobs: int | None = None) -> int:
    """Check everything, make all runs, up to `jobs` at once, write the table; return the exit status.

    Without `jobs` it is `usual_jobs`.

    Raises
    ------
    FedBiCrossError
        For a mistake in any run, before the first one starts; or when the disk is full.
    """
    jobs = jobs or usual_jobs(runs, flower)
    check_jobs(runs, flower, jobs)
    check_runs(runs, out)
    with sole_comparison(out):
        failures = make_runs(runs, flower) if jobs == 1 else make_at_once(runs, jobs, say_at_once)
        for failure in failures:
            print(f"failed: {failure.run.title}: {failure.error}", file=sys.stderr)
        if not failures:
            for run in runs:
                drop_shared_stages(run.config)
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
        refuse_sites(run.config)
        if is_flower(run.variant.name):
            check_rounds(run.config, "flower")
        elif not run.central:
            method_named(run.config.method)
        check_tracker(run.config.runtime)
    check_no_run(out)
    make_writable(out)
    fingerprints: dict[tuple[str, int], str] = {}
    for run in runs:
        key = (run.cell, run.config.seed)
        if key not in fingerprints:
            fingerprints[key] = check_data(run)
        if any(entry.name not in {FAILED, LOCK} for entry in entries_of(run.folder)):
            check_folder(run.folder, run.config, fingerprints[key])


def check_data(run: PlannedRun) -> str:
    """Open and deal a run's data; return its fingerprint."""
    source = open_data(run.config)
    deal(source, run.config)
    check_federation(run.config, source.info)
    return source.fingerprint()


def entries_of(folder: Path) -> list[Path]:
    """Return what lies in a folder that may be absent."""
    return sorted(folder.iterdir()) if folder.is_dir() else []
