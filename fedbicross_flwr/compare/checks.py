"""Whether the runs of a cell may be compared: settings, program, and the clients' models they start from."""

from __future__ import annotations

from typing import Final

from fedbicross_flwr.compare.collect import CellRuns, Run
from fedbicross_flwr.compare.lines import CONTROLS, MANY_ROUNDS
from fedbicross_flwr.compare.variants import Variant
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.config_readers import UPLOAD_SECTIONS
from fedbicross_flwr.config_readers import reads as method_reads
from fedbicross_flwr.report.record import RunRecord
from fedbicross_flwr.report.seeds_table import version_notes
from fedbicross_flwr.report.units import listing
from fedbicross_flwr.rows import ROWS
from fedbicross_flwr.settings import walk

Accuracies = dict[tuple[str, int], float]
"""By protocol and client."""

SAME = 1e-9

TRAINING: Final = UPLOAD_SECTIONS - {"runtime"}
"""Sections that everything with a client's recipe reads, on the same images and test images."""

FINE_TUNING: Final = frozenset({"personal.epochs", "personal.lr", "personal.schedule"})
"""What fine-tuning a global model reads of stage 3."""

INITIAL_WEIGHTS: Final = "client.initial_weights"
"""Every round of a strategy starts at the global model, whatever this says."""


def fairness_notes(cell: CellRuns) -> tuple[str, ...]:
    """Return one sentence for each way in which the runs of a cell do not compare."""
    named = ((f"{run.variant.name} seed {run.seed}", record) for run, record in cell.records())
    return (*_settings(cell), *_images(cell), *version_notes(named), *_uploads(cell))


def shaping_keys() -> frozenset[str]:
    """Return the settings that shape a result, but for what every comparison varies."""
    shaping = {key for key, declared, _ in walk(RunConfig()) if declared.metadata["shapes_result"]}
    return frozenset(key for key in shaping - {"seed", "method"} if not key.startswith("runtime."))


def reads(variant: Variant, key: str) -> bool:
    """Return whether a setting shapes what a variant's own rows say.

    A central model reads no more than a client's recipe and the images; a strategy of many rounds also its
    section and stage 3's budget. One-shot methods are held to what they read themselves.
    """
    if not method_reads(str(variant.overrides.get("method", variant.name)), key):
        return False
    if variant.group != MANY_ROUNDS:
        return True
    section = key.partition(".")[0]
    own = section == MANY_ROUNDS or (section in TRAINING and key != INITIAL_WEIGHTS)
    return own or key in FINE_TUNING


def _settings(cell: CellRuns) -> list[str]:
    """Return where a run differs from the first one that reads the same setting."""
    keys, notes = shaping_keys(), []
    first: dict[str, tuple[Run, RunRecord]] = {}
    for run, record in cell.records():
        different: dict[str, list[str]] = {}
        for key in sorted(keys):
            if key in run.variant.overrides or not reads(run.variant, key):
                continue
            other, former = first.setdefault(key, (run, record))
            expected, found = former.setting(key), record.setting(key)
            if found != expected:
                name = f"{other.variant.name} seed {other.seed}"
                both = f"{key} ({expected} and {found})"
                different.setdefault(name, []).append(both)
        notes += [
            f"{name} and {run.variant.name} seed {run.seed} do not compare: they differ in {listing(shown)}."
            for name, shown in different.items()
        ]
    return notes


def _images(cell: CellRuns) -> list[str]:
    """Return where the runs of one seed are of other images: a file may change and keep its name."""
    notes = []
    first: dict[int, tuple[Run, str]] = {}
    for run, record in cell.records():
        if found := record.dataset.fingerprint:
            other, expected = first.setdefault(run.seed, (run, found))
            if found != expected:
                both = f"{other.variant.name} and {run.variant.name}"
                notes.append(
                    f"Seed {run.seed}: {both} do not compare: their images are not the same "
                    f"(fingerprints {expected} and {found})."
                )
    return notes


def _uploads(cell: CellRuns) -> list[str]:
    """Return where the runs of one seed do not have the same clients' models: local-only tells.

    Strategies of many rounds do not start from these models, but they have the control too, and it is the
    same if their clients are. A central model has none.
    """
    notes = []
    first: dict[int, tuple[Run, RunRecord, Accuracies]] = {}
    for run, record in cell.records():
        found = _local_only(record)
        if not found:
            continue
        other, former, expected = first.setdefault(run.seed, (run, record, found))
        apart = max((abs(found[key] - expected[key]) for key in found.keys() & expected), default=0)
        if found.keys() == expected.keys() and apart <= SAME:
            continue
        many = run.variant.group == MANY_ROUNDS
        if many and record.setting(INITIAL_WEIGHTS) != former.setting(INITIAL_WEIGHTS):
            continue
        others = "did not start from the same clients' models"
        said = others if apart > SAME and not many else "do not have the same clients"
        notes.append(
            f"Seed {run.seed}: {other.variant.name} and {run.variant.name} {said} "
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
