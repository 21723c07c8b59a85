"""How long each run of a cell would have taken by itself, from what the runs say of their time.

Runs of a comparison share the clients' uploads, stages of the server and personal models, so that the time
on a run's own clock says little. Where what is missing cannot be told, there is no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fedbicross_flwr.compare.collect import CellRuns, Run
from fedbicross_flwr.compare.variants import CENTRAL
from fedbicross_flwr.compare.work_log import WorkLog
from fedbicross_flwr.config import RunConfig, asks_for_subspaces
from fedbicross_flwr.config_readers import UPLOAD_SECTIONS
from fedbicross_flwr.flower_names import is_flower
from fedbicross_flwr.report.record import RunRecord
from fedbicross_flwr.settings import walk

UPLOAD_ROUND: Final = "upload round"
TOTAL: Final = "total"
SLACK: Final = 1.0
"""Seconds by which the log's clock and the run's may differ."""


def wall_seconds(cell: CellRuns) -> Mapping[tuple[str, int], float]:
    """Return the wall time of each run as it would have been alone, by variant and seed.

    A run that trained its own uploads took its ``total``; one that found them in the cache would have taken
    the ``upload round`` of the run that trained them besides. Stages of the server that were shared count as
    in that other run, as in the server's seconds: no two kinds of them run side by side. The control rows
    count where they were measured, which is in the run that trained.

    Returns
    -------
    mapping of (str, int) to float
        A run is absent that was interrupted, that took a personal model from another run, whose log is
        gone, or whose uploads were made by no run of this cell with the same settings, code and machine.
    """
    found = {}
    for run, record in cell.records():
        own = _own_seconds(run, record)
        missing = _upload_seconds(cell, run, record)
        if own is not None and missing is not None:
            found[run.variant.name, run.seed] = own + missing
    return found


def _own_seconds(run: Run, record: RunRecord) -> float | None:
    """Return how long a run took, shared stages included; None when it is not all there."""
    log = _whole_log(run, record)
    if log is None:
        return None
    adapts = run.variant.name != CENTRAL and record.config.get("personal.epochs") != 0
    if adapts and not _clients(record) <= log.personal:
        return None
    parts = sum(seconds for stage, seconds in record.seconds.items() if stage != TOTAL)
    return max(record.seconds[TOTAL], parts)


def _upload_seconds(cell: CellRuns, run: Run, record: RunRecord) -> float | None:
    """Return the time of the upload round that is not in a run's own: 0 when it trained by itself."""
    if run.log is None:
        return None
    if run.variant.name == CENTRAL:
        return 0.0 if run.log.trained else None
    if _clients(record) <= run.log.trained:
        return 0.0
    if run.log.trained or _many_rounds(run):
        return None
    for other, produced in cell.records():
        if other.seed == run.seed and _made_uploads(other, produced) and _alike(record, produced):
            trained = other.log.trained if other.log else frozenset()
            return produced.seconds.get(UPLOAD_ROUND) if _clients(record) <= trained else None
    return None


def _whole_log(run: Run, record: RunRecord) -> WorkLog | None:
    """Return a run's log, or None when it was interrupted: then its total is that of its last part alone."""
    total = record.seconds.get(TOTAL)
    return run.log if run.log and total is not None and run.log.seconds <= total + SLACK else None


def _made_uploads(run: Run, record: RunRecord) -> bool:
    """Return whether a run's upload round is what training alone takes: no rounds, no subspaces besides."""
    method = str(run.variant.overrides.get("method", run.variant.name))
    subspaces = asks_for_subspaces(method, record.config.get("clustering.by"))
    if run.variant.name == CENTRAL or _many_rounds(run) or subspaces:
        return False
    log = _whole_log(run, record)
    return log is not None and _clients(record) <= log.trained


def _alike(one: RunRecord, other: RunRecord) -> bool:
    """Return whether two runs have the same uploads, made by the same code on the same machine."""
    keys = {
        key
        for key, declared, _ in walk(RunConfig())
        if declared.metadata["shapes_result"] and key.split(".")[0] in UPLOAD_SECTIONS
    }
    return (
        all(one.setting(key) == other.setting(key) for key in keys)
        and one.hardware == other.hardware
        and one.runner == other.runner
        and one.versions.get("code") == other.versions.get("code")
    )


def _many_rounds(run: Run) -> bool:
    return is_flower(run.variant.name)


def _clients(record: RunRecord) -> frozenset[int]:
    return frozenset(client.client for client in record.clients if client.ok)
