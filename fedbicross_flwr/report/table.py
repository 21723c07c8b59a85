"""The results table: every method under every protocol, and which figures are the best of their column.

Only the data is made here; `fedbicross_flwr.report.render` turns it into text, Markdown and CSV.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.report.record import ResultRow, Results, RunRecord, Score
from fedbicross_flwr.report.units import count, listing, percent

CEILING = "ceiling"
MEAN, WORST = "mean", "worst client"


@dataclass(frozen=True)
class Metric:
    """One column group: its key in `Score`, its title, and which way is better."""

    key: str
    title: str
    higher_is_better: bool = True


METRICS = (
    Metric("accuracy", "Accuracy"),
    Metric("balanced_accuracy", "Balanced acc."),
    Metric("auc", "AUC"),
    Metric("ece", "ECE", higher_is_better=False),
)

PROTOCOL_TITLES = {
    "global": "Global test: each client’s model on the whole test set",
    "local": "Local test: each client’s model on test images mixed like its own",
}


@dataclass(frozen=True)
class Value:
    """One metric of one method over the clients that have it (fractions); None when no client has it."""

    mean: float | None
    worst: float | None
    worst_client: int | None
    clients: int

    def statistic(self, name: str) -> float | None:
        """Return the mean or the worst client's value, by column name."""
        return self.mean if name == MEAN else self.worst


@dataclass(frozen=True)
class TableRow:
    """One method; `values[protocol, metric key]`, and the bytes of model payload per client."""

    name: str
    kind: str
    note: str
    bytes_up: int
    bytes_down: int
    values: Mapping[tuple[str, str], Value]


@dataclass(frozen=True)
class ResultsTable:
    """All rows in the order of the run, with notes a reader of the numbers must know."""

    protocols: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...]

    def best(self, protocol: str, metric: Metric, statistic: str) -> frozenset[str]:
        """Return the names of the best rows of a column.

        Rows compare as shown (percent with one decimal), so all that show the best figure are best. A
        ceiling, which no client could be given, does not compete. One row alone is not a competition.
        """
        shown = {
            row.name: float(percent(value))
            for row in self.rows
            if row.kind != CEILING
            and (value := row.values[protocol, metric.key].statistic(statistic)) is not None
        }
        if len(shown) < 2:
            return frozenset()
        best = max(shown.values()) if metric.higher_is_better else min(shown.values())
        return frozenset(name for name, value in shown.items() if value == best)


def results_table(run: RunRecord) -> ResultsTable:
    """Gather the run's results.

    Raises
    ------
    FedBiCrossError
        When the run has no results.
    """
    if run.results is None:
        raise FedBiCrossError(
            f"{run.folder} has no metrics.json, so there are no results to show; let the run finish first"
        )
    results = run.results
    return ResultsTable(results.protocols, tuple(_row(row) for row in results.rows), _notes(run, results))


def _row(row: ResultRow) -> TableRow:
    values = {
        (protocol, metric.key): summarise(scores, metric)
        for protocol, scores in row.scores.items()
        for metric in METRICS
    }
    return TableRow(row.name, row.kind, row.note, row.bytes_up, row.bytes_down, values)


def summarise(scores: Mapping[int, Score], metric: Metric) -> Value:
    """Return the unweighted mean over clients and the worst client of one metric.

    A client whose metric is undefined (an AUC with one class) is left out. Of equals, the client with the
    smallest id is named worst.
    """
    found = {client: getattr(score, metric.key) for client, score in sorted(scores.items())}
    found = {client: value for client, value in found.items() if value is not None}
    if not found:
        return Value(None, None, None, 0)
    worst = min(found, key=lambda client: found[client] if metric.higher_is_better else -found[client])
    return Value(fmean(found.values()), found[worst], worst, len(found))


def _notes(run: RunRecord, results: Results) -> tuple[str, ...]:
    notes = [f"Mean over {count(_most_clients(results), 'client')}; every client counts the same."]
    if run.failed:
        ids = listing([str(client.client) for client in run.failed])
        notes.append(f"Left out, since they failed: client{'s' if len(run.failed) > 1 else ''} {ids}.")
    most = _most_clients(results)
    for protocol in results.protocols:
        scored = max(len(row.scores[protocol]) for row in results.rows)
        if scored < most:
            notes.append(
                f"Under the {protocol} protocol means are over {count(scored, 'client')}: the others have no "
                "such test image."
            )
        covered = {frozenset(row.scores[protocol]) for row in results.rows}
        if len(covered) > 1:
            notes.append(
                f"Under the {protocol} protocol the rows do not all cover the same clients, "
                "so their means do not compare directly."
            )
        undefined = {
            client for row in results.rows for client, s in row.scores[protocol].items() if s.auc is None
        }
        if undefined:
            notes.append(
                f"AUC under the {protocol} protocol leaves out {count(len(undefined), 'client')} "
                "whose test images do not allow one."
            )
    return tuple(notes)


def _most_clients(results: Results) -> int:
    return max((len(scores) for row in results.rows for scores in row.scores.values()), default=0)


def shown(row: TableRow, protocol: str, metric: Metric, statistic: str) -> str:
    """Return a cell's text, unmarked: a percentage with one decimal."""
    return percent(row.values[protocol, metric.key].statistic(statistic))
