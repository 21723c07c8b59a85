"""Results over seeds: mean and sample standard deviation of runs that differ in nothing but the seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.config_readers import reads
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.report.record import RunRecord
from fedbicross_flwr.report.render import markdown_table
from fedbicross_flwr.report.table import CEILING, MEAN, METRICS, WORST, ResultsTable, results_table
from fedbicross_flwr.report.units import ABSENT, count, listing, percent
from fedbicross_flwr.settings import walk

COLUMNS = (
    ("Global accuracy", "global", "accuracy", MEAN),
    ("Global balanced acc.", "global", "balanced_accuracy", MEAN),
    ("Global AUC", "global", "auc", MEAN),
    ("Global ECE", "global", "ece", MEAN),
    ("Local accuracy", "local", "accuracy", MEAN),
    ("Local balanced acc.", "local", "balanced_accuracy", MEAN),
    ("Local accuracy, worst client", "local", "accuracy", WORST),
)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) over seeds; `deviation` is None for one seed."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return that of the values of all seeds, of which there must be one."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        """Return percent with one decimal: ``57.6 ± 1.2``."""
        mean = percent(self.mean)
        return mean if self.deviation is None else f"{mean} ± {percent(self.deviation)}"


@dataclass(frozen=True)
class SeedsRow:
    """One method; `values[column title]`, None where a run has no such value."""

    name: str
    kind: str
    values: Mapping[str, Spread | None]


@dataclass(frozen=True)
class SeedsTable:
    """All methods over the seeds, in the order of the runs' own tables; `notes` say what limits it."""

    seeds: tuple[int, ...]
    rows: tuple[SeedsRow, ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Return the table as Markdown; the best mean of each column is bold, ceilings aside."""
        best = {title: self._best(title, metric) for title, _, metric, _ in COLUMNS}
        body = []
        for row in self.rows:
            cells = [f"{row.name} (ceiling)" if row.kind == CEILING else row.name]
            for title, value in row.values.items():
                text = ABSENT if value is None else str(value)
                cells.append(f"**{text}**" if row.name in best[title] else text)
            body.append(cells)
        seeds = listing([str(seed) for seed in self.seeds])
        legend = (
            f"Percent, mean ± sample standard deviation over {count(len(self.seeds), 'seed')} "
            f"(n = {len(self.seeds)}: {seeds}). Bold: best mean; a ceiling does not compete."
        )
        table = markdown_table(["Method", *(title for title, *_ in COLUMNS)], body)
        return "\n\n".join([table, legend, *self.notes]) + "\n"

    def _best(self, title: str, metric: str) -> set[str]:
        shown = {
            row.name: float(percent(value.mean))
            for row in self.rows
            if row.kind != CEILING and (value := row.values[title]) is not None
        }
        if len(shown) < 2:
            return set()
        higher = next(known.higher_is_better for known in METRICS if known.key == metric)
        best = max(shown.values()) if higher else min(shown.values())
        return {name for name, value in shown.items() if value == best}


def seeds_table(runs: Sequence[RunRecord]) -> SeedsTable:
    """Summarise runs over their seeds.

    Parameters
    ----------
    runs : sequence of RunRecord
        Runs of one configuration with different seeds. Where a run is computed may differ
        (``runtime.*`` and settings that do not shape the result).

    Raises
    ------
    FedBiCrossError
        When there is no run, a run has no results, a seed comes twice, or the runs differ in a setting
        or in their methods.
    """
    if not runs:
        raise FedBiCrossError("a table over seeds needs at least one run; name the run folders")
    runs = sorted(runs, key=lambda run: run.seed)
    tables = [results_table(run) for run in runs]
    for run, table in zip(runs[1:], tables[1:], strict=True):
        _check_alike(runs[0], run, tables[0], table)
    for before, after in pairwise(runs):
        if before.seed == after.seed:
            raise FedBiCrossError(
                f"{before.folder} and {after.folder} both have seed {before.seed}; name each seed's run once"
            )
    rows = tuple(
        SeedsRow(row.name, row.kind, {title: _spread(tables, row.name, *where) for title, *where in COLUMNS})
        for row in tables[0].rows
    )
    notes = (*version_notes((f"seed {run.seed}", run) for run in runs), *_left_out(runs))
    return SeedsTable(tuple(run.seed for run in runs), rows, notes)


def version_notes(runs: Iterable[tuple[str, RunRecord]]) -> tuple[str, ...]:
    """Return a sentence if runs, given with their names, were made by different versions of the code."""
    first: dict[str, str] = {}
    for name, run in runs:
        if code := run.versions.get("code"):
            first.setdefault(code, name)
    if len(first) < 2:
        return ()
    shown = listing([f"{code} ({name}, ...)" for code, name in first.items()])
    return (f"The runs were made by different versions of this program: {shown}.",)


def _left_out(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """Return a sentence for each seed whose means are over fewer clients."""
    notes = []
    for run in runs:
        if run.failed:
            clients = " and ".join(f"{one.title} ({one.reason})" for one in run.failed)
            notes.append(f"Seed {run.seed} is without {clients}: its means are over the others.")
    return tuple(notes)


def _same_images(one: RunRecord, two: RunRecord) -> bool:
    """Return whether two runs' images are the same, as far as both tell it; a phantom's differ by seed."""
    contents = {run.dataset.fingerprint for run in (one, two)} - {""}
    return len(contents) < 2 or one.config.get("data.name") == "phantom"


def _check_alike(first: RunRecord, other: RunRecord, one: ResultsTable, two: ResultsTable) -> None:
    _check_settings(first, other)
    of_data = [(run.dataset.name, run.dataset.class_names, run.dataset.channels) for run in (first, other)]
    if of_data[0] != of_data[1]:
        raise FedBiCrossError(
            f"{first.folder} is of {first.dataset.name} and {other.folder} of {other.dataset.name}, or their "
            "classes differ; a table over seeds takes runs on the same data"
        )
    if not _same_images(first, other):
        raise FedBiCrossError(
            f"the images of {first.folder} and {other.folder} are not the same, though both are of "
            f"{first.dataset.name}; a table over seeds takes runs on the same data"
        )
    if [row.name for row in one.rows] != [row.name for row in two.rows]:
        raise FedBiCrossError(
            f"{first.folder} and {other.folder} hold different methods; run both with the same version"
        )


def _check_settings(first: RunRecord, other: RunRecord) -> None:
    passing = {key for key, declared, _ in walk(RunConfig()) if not declared.metadata["shapes_result"]}
    method = str(first.setting("method"))
    for key in sorted({*first.config, *other.config} - passing - {"seed"}):
        if key.startswith("runtime.") or (key != "method" and not reads(method, key)):
            continue
        one, two = first.setting(key), other.setting(key)
        if one != two:
            raise FedBiCrossError(
                f"{first.folder} and {other.folder} differ in {key} ({one} and {two}); a table over seeds "
                "takes runs that differ in the seed only"
            )


def _spread(
    tables: Sequence[ResultsTable], name: str, protocol: str, metric: str, statistic: str
) -> Spread | None:
    found = []
    for table in tables:
        row = next(row for row in table.rows if row.name == name)
        value = row.values.get((protocol, metric))
        number = value.statistic(statistic) if value else None
        if number is None:
            # A mean over some of the seeds would not compare with the other rows.
            return None
        found.append(number)
    return Spread.of(found)
