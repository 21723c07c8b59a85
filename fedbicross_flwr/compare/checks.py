"""Whether the runs of a cell may be compared: settings, program, and the clients' models they start from."""

from __future__ import annotations

from fedbicross_flwr.compare.collect import CellRuns
from fedbicross_flwr.compare.lines import CEILING_GROUPS, CONTROLS
from fedbicross_flwr.compare.variants import VARIANTS
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.report.record import RunRecord
from fedbicross_flwr.report.units import listing
from fedbicross_flwr.rows import ROWS
from fedbicross_flwr.settings import walk

Accuracies = dict[tuple[str, int], float]
"""By protocol and client."""

SAME = 1e-9


def fairness_notes(cell: CellRuns) -> tuple[str, ...]:
    """Return one sentence for each way in which the one-shot runs of a cell do not compare."""
    return (*_settings(cell), *_versions(cell), *_uploads(cell))


def shaping_keys() -> frozenset[str]:
    """Return the settings that shape a result and that no variant is defined by."""
    shaping = {key for key, declared, _ in walk(RunConfig()) if declared.metadata["shapes_result"]}
    own = {key for variant in VARIANTS.values() for key in variant.overrides}
    return frozenset(key for key in shaping - own - {"seed"} if not key.startswith("runtime."))


def _settings(cell: CellRuns) -> list[str]:
    runs = [(run, record) for run, record in cell.records() if run.variant.group not in CEILING_GROUPS]
    if not runs:
        return []
    keys, notes = shaping_keys(), []
    first, expected = runs[0]
    for run, record in runs[1:]:
        keys_there = keys & record.config.keys() & expected.config.keys()
        different = sorted(key for key in keys_there if record.config[key] != expected.config[key])
        if different:
            shown = [f"{key} ({expected.config[key]} and {record.config[key]})" for key in different]
            notes.append(
                f"{first.variant.name} seed {first.seed} and {run.variant.name} seed {run.seed} "
                f"do not compare: they differ in {listing(shown)}."
            )
    return notes


def _versions(cell: CellRuns) -> list[str]:
    """Return where finished runs stand beside those of another version of the code."""
    first: dict[str, str] = {}
    for run, record in cell.records():
        if code := record.versions.get("code"):
            first.setdefault(code, f"{run.variant.name} seed {run.seed}")
    if len(first) < 2:
        return []
    shown = listing([f"{code} ({run}, ...)" for code, run in first.items()])
    return [f"The runs were made by different versions of this program: {shown}."]


def _uploads(cell: CellRuns) -> list[str]:
    """Return where the runs of one seed did not start from the same clients' models: local-only tells."""
    notes = []
    first: dict[int, tuple[str, Accuracies]] = {}
    for run, record in cell.records():
        found = _local_only(record)
        if not found or run.variant.group in CEILING_GROUPS:
            continue
        name, expected = first.setdefault(run.seed, (run.variant.name, found))
        apart = max((abs(found[key] - expected[key]) for key in found.keys() & expected), default=0)
        if found.keys() != expected.keys() or apart > SAME:
            notes.append(
                f"Seed {run.seed}: {name} and {run.variant.name} did not start from the same clients' models "
                f"(local-only differs by up to {100 * apart:.1f} points, or in its clients)."
            )
    return notes


def _local_only(record: RunRecord) -> Accuracies:
    row = record.results.row(ROWS[CONTROLS[0]].name) if record.results else None
    if row is None:
        return {}
    return {
        (protocol, client): score.accuracy
        for protocol, scores in row.scores.items()
        for client, score in scores.items()
    }
