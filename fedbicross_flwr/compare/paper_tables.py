"""Tables I-III of the paper from our own runs, with the paper's figure beside each of ours.

`fedbicross_flwr.compare.paper_render` turns them into text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedbicross_flwr.compare.collect import CellRuns, Comparison
from fedbicross_flwr.compare.lines import Line, line_of, lines_of
from fedbicross_flwr.compare.paper import Paper, PaperRow, PaperTable, load_paper
from fedbicross_flwr.compare.tables import BY_KEY, spread
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.report.seeds_table import Spread
from fedbicross_flwr.report.units import listing

NUMBERS = {"1": "I", "2": "II", "3": "III"}
OURS = "fedbicross"


@dataclass(frozen=True)
class Entry:
    """One cell of the table: ours under both protocols, fractions, over `seeds`; the paper's in percent."""

    alpha: float
    ours_global: Spread | None
    ours_local: Spread | None
    seeds: int
    paper: float | None


@dataclass(frozen=True)
class BlockRow:
    """One method on one data set, at every alpha."""

    name: str
    group: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Block:
    """One data set; one that is not in the paper has no figures of the paper."""

    data: str
    title: str
    clients: int
    in_paper: bool
    alphas: tuple[float, ...]
    rows: tuple[BlockRow, ...]


@dataclass(frozen=True)
class RegeneratedTable:
    """A table of the paper, data set by data set, with what a reader of it must know."""

    number: str
    title: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]


def table_number(name: str) -> str:
    """Return ``I``, ``II`` or ``III`` for a name in Roman or Arabic numerals.

    Raises
    ------
    FedBiCrossError
        When the paper has no such table.
    """
    number = NUMBERS.get(name, name.upper())
    if number not in NUMBERS.values():
        raise FedBiCrossError(f"the paper has no table {name!r}; there are {', '.join(NUMBERS.values())}")
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
    table = paper.tables[table_number(name)]
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
    return RegeneratedTable(table.number, title, blocks, _notes(paper, blocks, used))


def _block(paper: Paper, table: PaperTable, data: str, clients: int, cells: Sequence[CellRuns]) -> Block:
    by_alpha = {cell.cell.alpha: cell for cell in cells}
    lines = {alpha: lines_of(cell) for alpha, cell in by_alpha.items()}
    alphas = tuple(sorted({*table.alphas, *by_alpha} if data in table.clients else by_alpha))
    rows = []
    for row in table.rows:
        printed = dict(zip(table.alphas, row.values.get(data, ()), strict=False))
        entries = []
        for alpha in alphas:
            line = _ours(row, by_alpha[alpha], lines[alpha]) if alpha in by_alpha else None
            entries.append(_entry(alpha, line, printed.get(alpha)))
        rows.append(BlockRow(row.name, row.group, tuple(entries)))
    title = paper.titles.get(data, data)
    return Block(data, title, clients, data in table.clients, alphas, tuple(rows))


def _ours(row: PaperRow, cell: CellRuns, lines: Sequence[Line]) -> Line | None:
    """Return our line for a row of the paper; a row for one K takes runs with that K alone."""
    if row.clusters is None:
        return line_of(lines, row.variant, row.role)
    study = line_of(lines, f"{OURS}-K{row.clusters}", row.role)
    asked = {record.config.get("clustering.clusters") for _, record in cell.records(OURS)}
    return study or (line_of(lines, OURS, row.role) if asked == {row.clusters} else None)


def _entry(alpha: float, line: Line | None, printed: float | None) -> Entry:
    if line is None:
        return Entry(alpha, None, None, 0, printed)
    shown = [spread(line, BY_KEY[key].read) for key in ("global_accuracy", "local_accuracy")]
    return Entry(alpha, shown[0], shown[1], len(line.seeds), printed)


def _notes(paper: Paper, blocks: Sequence[Block], used: Sequence[CellRuns]) -> tuple[str, ...]:
    notes = [
        f"Ours: accuracy in percent, mean ± sample standard deviation over seeds{_seeds(blocks)}; global: "
        "each client’s model on the whole test set, local: on test images mixed like its own. "
        f"The paper’s: {paper.measure}; it does not say which of the two.",
        "Baselines stand here as shipped. The rows of FedBiCross have seen the client’s own data in stage 3, "
        "except w/o PKD; comparison.md also has the baselines fine-tuned for as long.",
    ]
    ran = [block for block in blocks if _ran(block)]
    if not ran:
        notes.append("Nothing of this table has been run.")
    other = [block.title for block in ran if not block.in_paper]
    if other:
        are = "are not data sets" if len(other) > 1 else "is not a data set"
        notes.append(f"{listing(other)} {are} of the paper, so no figure of the paper stands beside ours.")
    absent = [block.title for block in blocks if not _ran(block)]
    if ran and absent:
        notes.append(f"Not run here: {listing(absent)}.")
    if scale := scale_differences(paper.settings, used):
        notes.append(f"Our runs are not at the paper’s scale: {'; '.join(scale)}.")
    return tuple(notes)


def scale_differences(settings: Mapping[str, object], cells: Sequence[CellRuns]) -> list[str]:
    """Return one phrase for each setting in which any of our runs differs from the paper's."""
    found = []
    for key, wanted in settings.items():
        values = {
            record.config[key] for cell in cells for _, record in cell.records() if key in record.config
        }
        if values - {wanted}:
            found.append(f"{key} is {listing(sorted(str(value) for value in values))} (paper: {wanted})")
    return found


def _ran(block: Block) -> bool:
    return any(entry.seeds for row in block.rows for entry in row.entries)


def _seeds(blocks: Sequence[Block]) -> str:
    counts = sorted({e.seeds for block in blocks for row in block.rows for e in row.entries if e.seeds})
    return f" (n = {listing([str(number) for number in counts])})" if counts else ""
