"""The lines of a comparison: which row of which run's results stands under which title, seed by seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fedbicross_flwr.compare.collect import CLUSTER_COUNT, CellRuns, Run
from fedbicross_flwr.compare.variants import ASKED_FOR, CENTRAL, VARIANTS, Variant
from fedbicross_flwr.compare.wall_time import wall_seconds
from fedbicross_flwr.flower_names import strategy_of
from fedbicross_flwr.report.record import ResultRow, RunRecord, Score
from fedbicross_flwr.report.units import count
from fedbicross_flwr.rows import ROWS

SHIPPED, PERSONAL = "shipped", "personal"
"""The model as the client gets it, and what the client makes of it on its own data."""

CONTROL, CEILING = "control", "ceiling"
CONTROLS = ("local-only", "same-budget")
ENSEMBLE = "ensemble"
ONE_SHOT_GROUPS = frozenset({"one-shot", "ablation", "clustering"})
CEILING_GROUPS = frozenset({"reference"})
MANY_ROUNDS = "flower"
BELOW = CEILING_GROUPS | {MANY_ROUNDS}
"""Groups that stand below the one-shot methods, and do not compete with them."""

ONE_SHOT_ROUNDS = 2
"""The upload, and the model that comes back."""

NOT_THE_SERVERS = frozenset({"upload round", "personalisation round", "evaluation", "total"})
"""Times in ``run.json`` that are not the server's own work."""


@dataclass(frozen=True)
class SeedScores:
    """One row of one run: scores by protocol and client, and what it costs.

    Parameters
    ----------
    scores : mapping of str to mapping of int to Score
        By protocol and client.
    bytes_up, bytes_down : int
        Bytes that each client sends and receives.
    server_seconds, wall_seconds : float, optional
        Time of the server's own stages; time of the run as it would have been alone, where that is known.
    rounds : int, optional
        Rounds of messages with the clients; None where there is no federation, or it is not known.
    """

    scores: Mapping[str, Mapping[int, Score]]
    bytes_up: int
    bytes_down: int
    server_seconds: float | None
    rounds: int | None = None
    wall_seconds: float | None = None


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
        """Whether it is a one-shot method. Controls, ceilings and strategies of many rounds are none.

        Of several K none is chosen here: the best by these test images would be a choice on test data.
        """
        return self.group in ONE_SHOT_GROUPS and bool(self.seeds)

    @property
    def scored(self) -> frozenset[tuple[int, int | None]]:
        """Return its seeds and their scored clients: means over others do not compare with its own."""
        clients = {
            (seed, client)
            for seed, row in self.seeds.items()
            for scores in row.scores.values()
            for client in scores
        }
        return frozenset({*clients, *((seed, None) for seed in self.seeds)})

    @property
    def remark(self) -> str:
        """What a reader must know of a line that is no one-shot method: a ceiling, or how many rounds."""
        if self.group == CEILING or self.group in CEILING_GROUPS:
            return CEILING
        if self.group != MANY_ROUNDS:
            return ""
        # The last model is sent to the clients in a round of its own.
        taken = {row.rounds for row in self.seeds.values()}
        rounds = taken.pop() if len(taken) == 1 else None
        return "many rounds" if rounds is None else count(rounds - 1, "round")

    @property
    def state(self) -> str:
        """What to show of a line without results: ``not run``, or the states of its runs."""
        return "" if self.seeds else ", ".join(sorted(set(self.missing.values()))) or "not run"


def lines_of(cell: CellRuns) -> tuple[Line, ...]:
    """Return the lines of a cell: controls, one-shot methods with their variants, ceilings, many rounds.

    A known variant that was not run stands there with one line and no seeds; Flower's own strategies stand
    there only when they were run.
    """
    expected = {variant.name: variant for variant in VARIANTS.values() if variant.group not in ASKED_FOR}
    present = {variant.name: variant for variant in cell.variants}
    named = {**present, **expected}
    order = [name for name in VARIANTS if name in named]
    order += [variant.name for variant in cell.variants if variant.name not in VARIANTS]
    variants = [named[name] for name in order]
    methods = [variant for variant in variants if variant.group not in BELOW]
    others = [variant for variant in variants if variant.group in BELOW]
    wall = wall_seconds(cell)
    return (
        *(_common(cell, key, CONTROL) for key in CONTROLS),
        *(line for variant in methods for line in _own(cell, variant, wall)),
        _common(cell, ENSEMBLE, CEILING),
        *(line for variant in others for line in _own(cell, variant, wall)),
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


def server_seconds(run: Run, record: RunRecord) -> float | None:
    """Return the time of the server's own stages; training at clients and the evaluation do not count.

    None for a central model that was there already: its folder does not say how long it took.
    """
    if run.variant.name == CENTRAL and run.log is not None and not run.log.trained:
        return None
    return sum(seconds for stage, seconds in record.seconds.items() if stage not in NOT_THE_SERVERS)


def _common(cell: CellRuns, key: str, group: str) -> Line:
    """Return a line that every run has: of each seed, that of the first run that has it of most clients."""
    rounds = 0 if group == CONTROL else ONE_SHOT_ROUNDS
    seeds: dict[int, SeedScores] = {}
    for run, record in cell.records():
        row = record.results.row(ROWS[key].name) if record.results else None
        if row is None:
            continue
        known = seeds.get(run.seed)
        if known is None or _scored(row.scores) > _scored(known.scores):
            seeds[run.seed] = SeedScores(row.scores, row.bytes_up, row.bytes_down, None, rounds)
    return Line(key, group, ROWS[key].name, group, dict(sorted(seeds.items())))


def _scored(scores: Mapping[str, Mapping[int, Score]]) -> int:
    """Return how many scores of clients there are, under all protocols."""
    return sum(len(clients) for clients in scores.values())


def _own(cell: CellRuns, variant: Variant, wall: Mapping[tuple[str, int], float]) -> tuple[Line, ...]:
    found: dict[str, dict[int, SeedScores]] = {SHIPPED: {}, PERSONAL: {}}
    names: list[str] = []
    for run, record in cell.records(variant.name):
        rows = own_rows(run, record)
        names = max(names, [row.name for row in rows], key=len)
        for role, row in zip(found, rows, strict=False):
            found[role][run.seed] = SeedScores(
                *(row.scores, row.bytes_up, row.bytes_down, server_seconds(run, record), _rounds(run)),
                wall.get((variant.name, run.seed)),
            )
    missing = {run.seed: run.state for run in cell.of(variant.name) if run.record is None}
    lines = tuple(
        Line(variant.name, role, title, variant.group, found[role], missing)
        for role, title in zip(found, _titles(_title(variant), names), strict=False)
        if found[role] and not (role == SHIPPED and variant.differs_in_stage_3_alone)
    )
    return lines or (Line(variant.name, PERSONAL, _title(variant), variant.group, {}, missing),)


def _rounds(run: Run) -> int | None:
    """Return a run's rounds with its clients: R and one for the last model, or those of one shot.

    A central model has none, as there is no federation.
    """
    if run.rounds is not None:
        return run.rounds + 1
    known = run.variant.group in ONE_SHOT_GROUPS or run.variant.group == CLUSTER_COUNT
    return ONE_SHOT_ROUNDS if known else None


def _title(variant: Variant) -> str:
    """Return a variant's title; how many rounds a strategy took is said beside it (`Line.remark`)."""
    return strategy_of(variant.name) if variant.group == MANY_ROUNDS else variant.title


def _titles(title: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the titles of a variant's rows from the names that its method gives them, shipped first.

    A method is named for its model as shipped (``DENSE``, and ``DENSE, fine-tuned``), or for its end
    (``FedBiCross``, and ``FedBiCross without personal distillation``). The variant's title stands for that.
    """
    if len(names) < 2:
        return (title,)
    shipped, personal = names[:2]
    if not shipped.startswith(personal):
        return title, personal.replace(shipped, title)
    comma = "," if "," in title else ""
    return f"{title}{comma}{shipped.removeprefix(personal)}", title
