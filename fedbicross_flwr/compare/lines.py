"""The lines of a comparison: which row of which run's results stands under which title, seed by seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fedbicross_flwr.compare.collect import CellRuns, Run
from fedbicross_flwr.compare.variants import ASKED_FOR, VARIANTS, Variant
from fedbicross_flwr.report.record import ResultRow, RunRecord, Score
from fedbicross_flwr.rows import ROWS

SHIPPED, PERSONAL = "shipped", "personal"
"""The model as the client gets it, and what the client makes of it on its own data."""

CONTROL, CEILING = "control", "ceiling"
CONTROLS = ("local-only", "same-budget")
ENSEMBLE = "ensemble"
ONE_SHOT_GROUPS = frozenset({"one-shot", "ablation", "clustering"})
CEILING_GROUPS = frozenset({"reference", "flower"})

NOT_THE_SERVERS = frozenset({"upload round", "personalisation round", "evaluation", "total"})
"""Times in ``run.json`` that are not the server's own work."""


@dataclass(frozen=True)
class SeedScores:
    """One row of one run: scores by protocol and client, bytes per client, the server's seconds."""

    scores: Mapping[str, Mapping[int, Score]]
    bytes_up: int
    bytes_down: int
    server_seconds: float | None


@dataclass(frozen=True)
class Line:
    """One line of the table, over all seeds.

    Parameters
    ----------
    variant : str
        Name of the variant, or ``local-only``, ``same-budget`` or ``ensemble``, which every run has.
    role : {"shipped", "personal", "control", "ceiling"}
        Which of the variant's rows.
    title, group : str
        As printed; the variant's group, or ``control`` or ``ceiling``.
    seeds : mapping of int to SeedScores
        By seed; empty when no run is finished.
    missing : mapping of int to str
        State of the other runs of the variant, by seed: failed, not finished, unreadable.
    """

    variant: str
    role: str
    title: str
    group: str
    seeds: Mapping[int, SeedScores]
    missing: Mapping[int, str] = field(default_factory=dict)

    @property
    def competes(self) -> bool:
        """Whether it is a one-shot method. Controls and ceilings are none; of several K, none is chosen here.

        The best K of several, by these test images, would be a choice on test data.
        """
        return self.group in ONE_SHOT_GROUPS and bool(self.seeds)

    @property
    def state(self) -> str:
        """What to show of a line without results: ``not run``, or the states of its runs."""
        return "" if self.seeds else ", ".join(sorted(set(self.missing.values()))) or "not run"


def lines_of(cell: CellRuns) -> tuple[Line, ...]:
    """Return the lines of a cell: controls, one-shot methods with their variants, ceilings.

    A known variant that was not run stands there with one line and no seeds; Flower's own strategies stand
    there only when they were run.
    """
    expected = {variant.name: variant for variant in VARIANTS.values() if variant.group not in ASKED_FOR}
    present = {variant.name: variant for variant in cell.variants}
    named = {**present, **expected}
    order = [name for name in VARIANTS if name in named]
    order += [variant.name for variant in cell.variants if variant.name not in VARIANTS]
    variants = [named[name] for name in order]
    methods = [variant for variant in variants if variant.group not in CEILING_GROUPS]
    above = [variant for variant in variants if variant.group in CEILING_GROUPS]
    return (
        *(_common(cell, key, CONTROL) for key in CONTROLS),
        *(line for variant in methods for line in _own(cell, variant)),
        _common(cell, ENSEMBLE, CEILING),
        *(line for variant in above for line in _own(cell, variant)),
    )


def line_of(lines: Iterable[Line], variant: str, role: str) -> Line | None:
    """Return one line, or None when it is absent or has no results."""
    return next((one for one in lines if (one.variant, one.role) == (variant, role) and one.seeds), None)


def final_line(lines: Iterable[Line], variant: str) -> Line | None:
    """Return what a variant ends with: its personal line if there is one, else any; None without results."""
    own = [line for line in lines if line.variant == variant and line.seeds]
    return own[-1] if own else None


def own_rows(run: Run, record: RunRecord) -> list[ResultRow]:
    """Return the rows that a run adds to those that every run has, shipped first."""
    method = str(run.variant.overrides.get("method", ""))
    common = {row.name for key, row in ROWS.items() if key != method}
    return [row for row in record.results.rows if row.name not in common] if record.results else []


def server_seconds(record: RunRecord) -> float:
    """Return the time of the server's own stages; training at clients and the evaluation do not count."""
    return sum(seconds for stage, seconds in record.seconds.items() if stage not in NOT_THE_SERVERS)


def _common(cell: CellRuns, key: str, group: str) -> Line:
    """Return a line that every run has: of each seed, the first run that has it."""
    seeds: dict[int, SeedScores] = {}
    for run, record in cell.records():
        row = record.results.row(ROWS[key].name) if record.results else None
        if row is not None:
            seeds.setdefault(run.seed, _scores(row, None))
    return Line(key, group, ROWS[key].name, group, dict(sorted(seeds.items())))


def _own(cell: CellRuns, variant: Variant) -> tuple[Line, ...]:
    found: dict[str, dict[int, SeedScores]] = {SHIPPED: {}, PERSONAL: {}}
    names: dict[str, str] = {}
    for run, record in cell.records(variant.name):
        for role, row in zip(found, own_rows(run, record), strict=False):
            found[role][run.seed] = _scores(row, server_seconds(record))
            names.setdefault(role, row.name)
    missing = {run.seed: run.state for run in cell.of(variant.name) if run.record is None}
    # The name of a row of Flower's strategies says how many rounds it took.
    titles = names if variant.group == "flower" else _titles(variant, both=bool(found[PERSONAL]))
    lines = tuple(
        Line(variant.name, role, title, variant.group, found[role], missing)
        for role, title in titles.items()
        if found[role]
    )
    return lines or (Line(variant.name, PERSONAL, variant.title, variant.group, {}, missing),)


def _titles(variant: Variant, both: bool) -> dict[str, str]:
    """Return the titles of a variant's rows; FedBiCross is named for its end, the others for their model."""
    if not both:
        return {SHIPPED: variant.title}
    if variant.overrides.get("method") != "fedbicross":
        return {SHIPPED: variant.title, PERSONAL: f"{variant.title}, fine-tuned"}
    comma = "," if "," in variant.title else ""
    return {SHIPPED: f"{variant.title}{comma} without personal distillation", PERSONAL: variant.title}


def _scores(row: ResultRow, seconds: float | None) -> SeedScores:
    return SeedScores(row.scores, row.bytes_up, row.bytes_down, seconds)
