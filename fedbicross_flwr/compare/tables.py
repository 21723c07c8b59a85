"""The comparison of one cell: every method over all seeds, which is best, and whether that may be chance.

Only the data is made here; `fedbicross_flwr.compare.render` turns it into text, which
`fedbicross_flwr.compare.pages` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from fedbicross_flwr.compare.checks import fairness_notes
from fedbicross_flwr.compare.collect import CellName, CellRuns
from fedbicross_flwr.compare.image_quality import ImageQuality, image_quality
from fedbicross_flwr.compare.lines import CONTROL, Line, SeedScores, lines_of
from fedbicross_flwr.compare.paired import PairedTest, paired_tests
from fedbicross_flwr.compare.variants import CENTRAL
from fedbicross_flwr.report.seeds_table import Spread
from fedbicross_flwr.report.table import METRICS, summarise

Read = Callable[[SeedScores], float | None]
Key = TypeVar("Key")
KNOWN = {metric.key: metric for metric in METRICS}


@dataclass(frozen=True)
class Column:
    """One column: its key in CSV, its title, its unit, which way is better (0: neither), and its value.

    Units are percent (of fractions), bytes, seconds and count.
    """

    key: str
    title: str
    unit: str
    better: int
    read: Read


def _mean(protocol: str, metric: str) -> Read:
    return lambda row: summarise(row.scores.get(protocol, {}), KNOWN[metric]).mean


def _worst(protocol: str, metric: str) -> Read:
    return lambda row: summarise(row.scores.get(protocol, {}), KNOWN[metric]).worst


def mean_of_both(row: SeedScores) -> float | None:
    """Return the mean of the global and the local accuracy; None unless the run has both protocols."""
    one, two = _mean("global", "accuracy")(row), _mean("local", "accuracy")(row)
    return None if one is None or two is None else (one + two) / 2


COLUMNS = (
    Column("global_accuracy", "Global accuracy", "percent", 1, _mean("global", "accuracy")),
    Column(
        "global_balanced_accuracy", "Global balanced acc.", "percent", 1, _mean("global", "balanced_accuracy")
    ),
    Column("global_auc", "Global AUC", "percent", 1, _mean("global", "auc")),
    Column("global_ece", "Global ECE", "percent", -1, _mean("global", "ece")),
    Column("local_accuracy", "Local accuracy", "percent", 1, _mean("local", "accuracy")),
    Column(
        "local_balanced_accuracy", "Local balanced acc.", "percent", 1, _mean("local", "balanced_accuracy")
    ),
    Column("mean_accuracy", "Mean of both accuracies", "percent", 1, mean_of_both),
    Column("local_worst", "Local accuracy, worst client", "percent", 1, _worst("local", "accuracy")),
    Column("rounds", "Rounds", "count", 0, lambda row: row.rounds),
    Column("bytes_sent", "Sent", "bytes", 0, lambda row: row.bytes_up),
    Column("bytes_received", "Received", "bytes", 0, lambda row: row.bytes_down),
    Column("server_seconds", "Server seconds", "seconds", 0, lambda row: row.server_seconds),
    Column("wall_seconds", "Wall seconds", "seconds", 0, lambda row: row.wall_seconds),
)
BY_KEY: Mapping[str, Column] = {column.key: column for column in COLUMNS}


@dataclass(frozen=True)
class ComparisonRow:
    """One line with its values; `values[column key]` is None where a seed has no such value."""

    line: Line
    values: Mapping[str, Spread | None]


@dataclass(frozen=True)
class ComparisonTable:
    """One cell; `seeds` are those of which any run is finished, `images` judges what methods synthesised."""

    cell: CellName
    seeds: tuple[int, ...]
    rows: tuple[ComparisonRow, ...]
    tests: tuple[PairedTest, ...]
    notes: tuple[str, ...]
    images: tuple[ImageQuality, ...] = ()

    def best(self, column: Column) -> frozenset[tuple[str, str]]:
        """Return (variant, role) of the best one-shot rows of a column.

        See `best_of` for the rule.
        """
        rows = {(row.line.variant, row.line.role): (row.line, row.values[column.key]) for row in self.rows}
        return best_of(rows, column.better)

    def controls_ahead(self, column: Column) -> frozenset[tuple[str, str]]:
        """Return the controls, which share nothing, that are better than the best one-shot row as shown.

        Where that row lacks seeds or clients that a control has, their means do not compare.
        """
        best = self.best(column)
        leaders = [row for row in self.rows if (row.line.variant, row.line.role) in best]

        def ahead(row: ComparisonRow, leader: ComparisonRow) -> bool:
            mine, other = (_rank(one.values[column.key], column.better) for one in (row, leader))
            same_runs = row.line.scored == leader.line.scored
            return same_runs and mine is not None and other is not None and mine > other

        return frozenset(
            (row.line.variant, row.line.role)
            for row in self.rows
            if row.line.group == CONTROL and any(ahead(row, leader) for leader in leaders)
        )


def best_of(rows: Mapping[Key, tuple[Line, Spread | None]], better: int = 1) -> frozenset[Key]:
    """Return the keys of the best one-shot rows.

    Rows compare as shown, with one decimal, and share the mark where that is equal. Controls, ceilings and
    strategies of many rounds are no one-shot methods, of several K none is chosen, and a row with fewer seeds
    or clients than others would win or lose by those; none of these competes. One row alone is no
    competition, nor are rows of different seeds or clients.

    Parameters
    ----------
    rows : mapping of key to (Line, Spread or None)
        The rows of one column, with their values: fractions.
    better : {1, -1, 0}
        Whether more or less is better; with 0 there is no best.
    """
    most = max((len(line.scored) for line, _ in rows.values() if line.competes), default=0)
    shown = {
        key: rank
        for key, (line, value) in rows.items()
        if line.competes and len(line.scored) == most and (rank := _rank(value, better)) is not None
    }
    if len(shown) < 2 or len({rows[key][0].scored for key in shown}) > 1:
        return frozenset()
    best = max(shown.values())
    return frozenset(key for key, rank in shown.items() if rank == best)


def comparison_table(cell: CellRuns) -> ComparisonTable:
    """Summarise all runs of a cell: mean over clients, then mean and sample deviation over seeds."""
    lines = lines_of(cell)
    rows = tuple(
        ComparisonRow(line, {column.key: spread(line, column.read) for column in COLUMNS}) for line in lines
    )
    tests, notes = paired_tests(lines), _notes(cell, lines)
    return ComparisonTable(cell.cell, cell.seeds, rows, tests, notes, image_quality(cell))


def spread(line: Line, read: Read) -> Spread | None:
    """Return mean and sample standard deviation (n - 1) over a line's seeds.

    None when there is no seed, or one of them has no such value: the mean of the others would not compare.
    """
    found = [read(row) for row in line.seeds.values()]
    values = [value for value in found if value is not None]
    if not values or len(values) < len(found):
        return None
    return Spread.of(values)


def _rank(value: Spread | None, better: int) -> float | None:
    """Return a value as it is shown, signed so that more is better."""
    return None if value is None or not better else better * round(100 * value.mean, 1)


def _notes(cell: CellRuns, lines: tuple[Line, ...]) -> tuple[str, ...]:
    notes = [*fairness_notes(cell), *(run.complaint for run in cell.runs if run.record is None)]
    notes += left_out_notes(cell)
    absent = [line.title for line in lines if line.state == "not run"]
    if absent:
        notes.append(f"Not run: {'; '.join(absent)}.")
    return tuple(notes)


def left_out_notes(cell: CellRuns) -> tuple[str, ...]:
    """Return one sentence for each seed and clients that runs are without."""
    notes: list[str] = []
    left_out: dict[tuple[int, str], list[str]] = {}
    central = {run.seed for run in cell.runs if run.record is not None and run.variant.name == CENTRAL}
    for run in cell.runs:
        if run.record is not None and run.record.failed:
            clients = " and ".join(f"client {one.client} ({one.reason})" for one in run.record.failed)
            left_out.setdefault((run.seed, clients), []).append(run.variant.name)
    for (seed, clients), variants in left_out.items():
        also = "; the central model's figures count it all the same" if seed in central else ""
        notes.append(f"Seed {seed} is without {clients} in {', '.join(variants)}{also}.")
    return tuple(notes)
