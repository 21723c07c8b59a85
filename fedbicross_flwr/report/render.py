"""The results table in a terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedbicross_flwr.report.record import ResultRow
from fedbicross_flwr.report.table import (
    CEILING,
    MEAN,
    METRICS,
    PROTOCOL_TITLES,
    WORST,
    Metric,
    ResultsTable,
    TableRow,
    shown,
)
from fedbicross_flwr.report.units import human_bytes

MARK = "*"
WIDE = 100
"""Columns that a terminal needs for the whole table."""
LEGEND = (
    "Percent. ECE is the expected calibration error: lower is better. "
    "Sent and received: bytes per client, of models and what goes with them."
)
KIND_STYLES = {"ours": "bold", CEILING: "dim italic"}


def columns() -> Iterator[tuple[Metric, str]]:
    """Yield the numeric columns of one protocol: each metric's mean, then its worst client."""
    for metric in METRICS:
        yield metric, MEAN
        yield metric, WORST


def title(row: TableRow | ResultRow) -> str:
    """Return a row's name; a ceiling says that it is one."""
    return f"{row.name} (ceiling)" if row.kind == CEILING else row.name


def render_terminal(table: ResultsTable, console: Console) -> None:
    """Print one table a protocol; the best of each column is starred, and coloured where that works.

    It fits 100 columns; a narrower console gets fewer columns, and is told so.
    """
    chosen = list(columns())
    notes = list(table.notes)
    if console.width < WIDE:
        chosen = [(m, s) for m, s in chosen if s == MEAN or m.key == "accuracy"]
        notes.append(f"A terminal of {WIDE} columns shows every metric's worst client; so does the report.")
    for protocol in table.protocols:
        console.print(_rich_table(table, protocol, chosen))
    for line in (f"{MARK} best of its column; a ceiling does not compete. {LEGEND}", *notes):
        console.print(Text(line, style="dim"))


def _rich_table(table: ResultsTable, protocol: str, chosen: Sequence[tuple[Metric, str]]) -> Table:
    grid = Table(
        title=PROTOCOL_TITLES[protocol],
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    grid.add_column("\nMethod", min_width=16, overflow="fold")
    for metric, statistic in chosen:
        heading = f"{metric.title}\nmean" if statistic == MEAN else "\nworst"
        grid.add_column(heading.replace("Balanced acc.", "Balanced"), justify="right", no_wrap=True)
    grid.add_column("\nsent", justify="right", no_wrap=True)
    grid.add_column("\nreceived", justify="right", no_wrap=True)
    best = {column: table.best(protocol, *column) for column in chosen}
    for row in table.rows:
        style = KIND_STYLES.get(row.kind, "")
        cells = [Text(title(row), style=style)]
        for column in chosen:
            marked = row.name in best[column]
            # The blank keeps the figures of starred and unstarred cells in line.
            text = shown(row, protocol, *column) + (MARK if marked else " ")
            cells.append(Text(text, style="bold green" if marked else style))
        cells += [Text(human_bytes(size), style=style) for size in (row.bytes_up, row.bytes_down)]
        grid.add_row(*cells)
    return grid


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column to the left, all others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def render_markdown(table: ResultsTable) -> str:
    """Return one Markdown table a protocol, each under its title; the best of each column is bold."""
    header = ["Method"]
    header += [m.title if s == MEAN else f"{m.title}, worst" for m, s in columns()]
    header += ["Sent", "Received"]
    parts = []
    for protocol in table.protocols:
        best = {column: table.best(protocol, *column) for column in columns()}
        body = []
        for row in table.rows:
            cells = [title(row)]
            for column in columns():
                text = shown(row, protocol, *column)
                cells.append(f"**{text}**" if row.name in best[column] else text)
            body.append([*cells, human_bytes(row.bytes_up), human_bytes(row.bytes_down)])
        parts.append(f"**{PROTOCOL_TITLES[protocol]}**\n\n{markdown_table(header, body)}")
    legend = f"Bold: best of its column; a ceiling does not compete. {LEGEND}"
    return "\n\n".join([*parts, " ".join([legend, *table.notes])]) + "\n"


def render_csv(table: ResultsTable) -> str:
    """Return one line a method and protocol: fractions at full precision, empty where there is no value."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    header = ["method", "kind", "protocol"]
    for metric in METRICS:
        header += [f"{metric.key}_mean", f"{metric.key}_worst", f"{metric.key}_worst_client"]
    writer.writerow([*header, "clients", "bytes_sent", "bytes_received"])
    for protocol in table.protocols:
        for row in table.rows:
            cells: list[str | int | float | None] = [row.name, row.kind, protocol]
            for metric in METRICS:
                value = row.values[protocol, metric.key]
                cells += [value.mean, value.worst, value.worst_client]
            covered = row.values[protocol, "accuracy"].clients
            writer.writerow([*cells, covered, row.bytes_up, row.bytes_down])
    return stream.getvalue()
