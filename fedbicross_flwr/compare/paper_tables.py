"""Tables I-III of the paper from our own runs, with the paper's figure beside each of ours.

`fedbicross_flwr.compare.paper_render` turns them into text.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from fedbicross_flwr.compare.checks import fairness_notes
from fedbicross_flwr.compare.collect import CellRuns, Comparison, Run
from fedbicross_flwr.compare.lines import Line, line_of, lines_of
from fedbicross_flwr.compare.paired import paired_tests
from fedbicross_flwr.compare.paper import Paper, PaperRow, PaperTable, load_paper
from fedbicross_flwr.compare.scale import scale_differences
from fedbicross_flwr.compare.tables import BY_KEY, best_of, left_out_notes, spread
from fedbicross_flwr.config_readers import FEDBICROSS
from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.report.seeds_table import Spread
from fedbicross_flwr.report.units import listing
from fedbicross_flwr.settings import read_toml

NOT_RUN = "not run"
CLUSTERS = "clustering.clusters"
MARKED = ("global_accuracy", "local_accuracy")
"""Columns of a table, in their order; each has its best method."""

NUMBERS = {"1": "I", "2": "II", "3": "III"}


@dataclass(frozen=True)
class Entry:
    """One method in one cell.

    Parameters
    ----------
    alpha : float
        The cell's.
    ours_global, ours_local : Spread or None
        Our accuracy under both protocols, fractions.
    seeds, cell_seeds : int
        Over how many seeds that is, and how many the cell has.
    state : str
        Why there is none: ``not run``, ``failed``, ``not finished``, ``unreadable`` or several of them.
    paper : float or None
        The paper's figure, in percent.
    best_global, best_local : bool
        Whether it is the best one-shot method of its column.
    """

    alpha: float
    ours_global: Spread | None
    ours_local: Spread | None
    seeds: int
    cell_seeds: int
    state: str
    paper: float | None
    best_global: bool = False
    best_local: bool = False


@dataclass(frozen=True)
class BlockRow:
    """One method on one data set, at every alpha."""

    name: str
    group: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Block:
    """One data set; one that is not in the paper has no figures of the paper. `tests`: one line a cell."""

    data: str
    title: str
    clients: int
    in_paper: bool
    alphas: tuple[float, ...]
    rows: tuple[BlockRow, ...]
    tests: tuple[str, ...] = ()

    @property
    def ran(self) -> bool:
        """Whether there is any result of ours."""
        return any(entry.seeds for row in self.rows for entry in row.entries)

    @property
    def heading(self) -> str:
        """The data set and the number of clients."""
        return f"{self.title}, N = {self.clients}" + ("" if self.in_paper else " (not in the paper)")


@dataclass(frozen=True)
class RegeneratedTable:
    """A table of the paper, data set by data set, with what a reader of it must know.

    `differences` are the settings of our runs that are not the paper's.
    """

    number: str
    title: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    differences: tuple[str, ...]


def table_number(name: str, cells: Sequence[str] = ()) -> str:
    """Return ``I``, ``II`` or ``III`` for a name in Roman or Arabic numerals.

    Raises
    ------
    FedBiCrossError
        When the paper has no such table; `cells` have tables of their own, which are named besides.
    """
    number = NUMBERS.get(name, name.upper())
    if number not in NUMBERS.values():
        there = f", and of this comparison {', '.join(cells)}" if cells else ""
        raise FedBiCrossError(
            f"there is no table {name!r}{near_names(name, cells)}; the paper has "
            f"{', '.join(NUMBERS.values())}{there}"
        )
    return number


def paper_table(name: str, comparison: Comparison) -> RegeneratedTable:
    """Regenerate a table of the paper from the runs that are there.

    The paper's data sets always have their place, run or not; others that were run with this table's number
    of clients follow.

    Raises
    ------
    FedBiCrossError
        When the paper has no such table.
    """
    paper = load_paper()
    table = paper.tables[table_number(name, [cell.cell.name for cell in comparison.cells])]
    sets = dict(table.clients)
    for cell in comparison.cells:
        if cell.cell.clients == table.default_clients:
            sets.setdefault(cell.cell.data, table.default_clients)
    used = [cell for cell in comparison.cells if sets.get(cell.cell.data) == cell.cell.clients]
    blocks = tuple(
        _block(paper, table, data, clients, [cell for cell in used if cell.cell.data == data])
        for data, clients in sets.items()
    )
    title = f"Table {table.number} of the paper (page {table.page}): {table.caption}"
    notes = _notes(paper, table, blocks, used)
    return RegeneratedTable(table.number, title, blocks, notes, _differences(table.rows, used))


def _block(paper: Paper, table: PaperTable, data: str, clients: int, cells: Sequence[CellRuns]) -> Block:
    by_alpha = {cell.cell.alpha: cell for cell in cells}
    alphas = tuple(sorted({*table.alphas, *by_alpha} if data in table.clients else by_alpha))
    columns = []
    for alpha in alphas:
        index = table.alphas.index(alpha) if alpha in table.alphas else None
        printed = [
            None if index is None or data not in row.values else row.values[data][index] for row in table.rows
        ]
        columns.append(_column(table.rows, alpha, by_alpha.get(alpha), printed))
    rows = tuple(
        BlockRow(row.name, row.group, entries)
        for row, entries in zip(table.rows, zip(*columns, strict=True), strict=True)
    )
    tests = tuple(sentence for alpha in alphas if (sentence := _tests(by_alpha.get(alpha))))
    title = paper.titles.get(data, data)
    return Block(data, title, clients, data in table.clients, alphas, rows, tests)


def _column(
    rows: Sequence[PaperRow], alpha: float, cell: CellRuns | None, printed: Sequence[float | None]
) -> tuple[Entry, ...]:
    """Return one cell's entries, a row each, with the best one-shot method marked under both protocols."""
    if cell is None:
        return tuple(Entry(alpha, None, None, 0, 0, NOT_RUN, figure) for figure in printed)
    lines = lines_of(cell)
    ours = [_ours(row, cell, lines) for row in rows]
    values = [
        {index: (line, spread(line, BY_KEY[key].read)) for index, line in enumerate(ours) if line}
        for key in MARKED
    ]
    best = [best_of(found) for found in values]

    def entry(index: int, line: Line | None) -> Entry:
        seeds, figure = len(cell.seeds), printed[index]
        if line is None:
            return Entry(alpha, None, None, 0, seeds, _state(rows[index], cell, lines), figure)
        shown = [found[index][1] for found in values]
        marks = [index in found for found in best]
        return Entry(alpha, shown[0], shown[1], len(line.seeds), seeds, "", figure, marks[0], marks[1])

    return tuple(entry(index, line) for index, line in enumerate(ours))


def _ours(row: PaperRow, cell: CellRuns, lines: Sequence[Line]) -> Line | None:
    """Return our line for a row of the paper; a row for one K takes runs with that K alone.

    Of two that have it, the plain one, which competes; the study's own if that has more seeds.
    """
    if row.clusters is None:
        return line_of(lines, row.variant, row.role)
    study = line_of(lines, f"{FEDBICROSS}-K{row.clusters}", row.role)
    asked = {record.config.get(CLUSTERS) for _, record in cell.records(FEDBICROSS)}
    plain = line_of(lines, FEDBICROSS, row.role) if asked == {row.clusters} else None
    return max((line for line in (plain, study) if line), key=lambda line: len(line.seeds), default=None)


def _state(row: PaperRow, cell: CellRuns, lines: Sequence[Line]) -> str:
    """Return why there is no result for a row; a plain run counts for the K that it was to have."""
    if row.clusters is None:
        return next((line.state for line in lines if line.variant == row.variant and line.state), NOT_RUN)
    study = f"{FEDBICROSS}-K{row.clusters}"
    runs = [run for run in cell.runs if run.variant.name == study]
    runs += [run for run in cell.of(FEDBICROSS) if run.record is None and _asked(run) == row.clusters]
    return ", ".join(sorted({run.state for run in runs if run.record is None})) or NOT_RUN


def _asked(run: Run) -> object:
    """Return the number of clusters that a run without results was to have, where its folder says so."""
    with suppress(FedBiCrossError):
        return read_toml(run.folder / "config.toml").get(CLUSTERS)
    return None


def _tests(cell: CellRuns | None) -> str:
    """Return the paired tests of a cell, or nothing."""
    if cell is None:
        return ""
    found = " ".join(test.sentence for test in paired_tests(lines_of(cell)))
    return f"α = {cell.cell.alpha:g}. {found}" if found else ""


def _notes(
    paper: Paper, table: PaperTable, blocks: Sequence[Block], used: Sequence[CellRuns]
) -> tuple[str, ...]:
    notes = [
        f"Ours: accuracy in percent, mean ± sample standard deviation over seeds{_seeds(blocks)}; global: "
        "each client’s model on the whole test set, local: on test images mixed like its own. "
        f"The paper’s: {paper.measure}; it does not say which of the two.",
        "Baselines stand here as shipped. The rows of FedBiCross have seen the client’s own data in stage 3, "
        "except w/o PKD; comparison.md also has the baselines fine-tuned for as long.",
    ]
    ran = [block for block in blocks if block.ran]
    if not ran:
        notes.append("Nothing of this table has been run.")
    other = [block.title for block in ran if not block.in_paper]
    if other:
        are = "are not data sets" if len(other) > 1 else "is not a data set"
        notes.append(f"{listing(other)} {are} of the paper, so no figure of the paper stands beside ours.")
    absent = [block.title for block in blocks if not block.ran]
    if ran and absent:
        notes.append(f"Not run here: {listing(absent)}.")
    if clusters := ablation_clusters(table.rows, used):
        notes.append(f"Ablations, w/o Clus apart, ran with K = {listing(clusters)}.")
    for cell in used:
        told = (*fairness_notes(cell), *left_out_notes(cell))
        notes += [f"{cell.cell.name}: {note}" for note in told]
    return tuple(notes)


def ablation_clusters(rows: Sequence[PaperRow], cells: Sequence[CellRuns]) -> list[str]:
    """Return every K that ablations ran with, as their rows do not say it; without clustering is none."""
    names = {row.variant for row in rows if row.group == "ablation"}
    found = {
        record.config.get(CLUSTERS)
        for cell in cells
        for run, record in cell.records()
        if run.variant.name in names and CLUSTERS not in run.variant.overrides
    }
    return sorted(str(clusters) for clusters in found if clusters is not None)


def _differences(rows: Sequence[PaperRow], cells: Sequence[CellRuns]) -> tuple[str, ...]:
    """Return in which settings the runs behind the rows are not the paper's, a line for methods alike."""
    names = {row.variant for row in rows} | {f"{FEDBICROSS}-K{row.clusters}" for row in rows if row.clusters}
    runs = [run for cell in cells for run, _ in cell.records() if run.variant.name in names]
    if not runs:
        return ()
    try:
        told = scale_differences("paper", runs)
    except FedBiCrossError as error:
        return (f"Where our settings are not the paper’s is not told: {error}.",)
    first = (
        "Our runs are not at the paper’s scale. The settings in which they differ follow, with the values of "
        "configs/paper.toml in brackets (of the other methods, the published ones); what a method does not "
        "read is left out."
    )
    return (first, *(f"{one}." for one in told)) if told else ()


def _seeds(blocks: Sequence[Block]) -> str:
    counts = sorted({e.seeds for block in blocks for row in block.rows for e in row.entries if e.seeds})
    return f" (n = {listing([str(number) for number in counts])})" if counts else ""
