"""The comparison of a cell as Markdown, CSV and LaTeX, and the page with all cells."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from fedbicross_flwr.compare.image_quality import image_quality_markdown
from fedbicross_flwr.compare.latex import bold, escape, latex_table
from fedbicross_flwr.compare.lines import CEILING, CEILING_GROUPS, CONTROL, MANY_ROUNDS
from fedbicross_flwr.compare.paired import NOT_INDEPENDENT
from fedbicross_flwr.compare.tables import COLUMNS, Column, ComparisonRow, ComparisonTable
from fedbicross_flwr.report.render import markdown_table
from fedbicross_flwr.report.seeds_table import Spread
from fedbicross_flwr.report.units import ABSENT, count, human_bytes, listing

AHEAD = "†"
HEADER = ("Method", *(column.title for column in COLUMNS))
LEGEND = (
    "Bold: the best one-shot method, ablations included; controls, ceilings, other K and strategies of many "
    "rounds do not compete. "
    f"{AHEAD}: a control, trained without any other client, that is ahead of the best one-shot method. "
    "Accuracy, AUC and calibration error (ECE; lower is better) in percent: mean over clients, then "
    "mean ± sample standard deviation over seeds. Rounds: exchanges with the clients, a last one for the "
    "final model included. Sent and received: bytes per client, of models and what goes with them. Wall "
    "seconds: the whole run as if it had been alone, the clients' training included; the controls count in "
    "the run that measured them. Runs that were made at once share the cores, and their seconds are more."
)


@dataclass(frozen=True)
class Entry:
    """One value as text, and whether it is marked."""

    text: str
    best: bool = False
    ahead: bool = False


@dataclass(frozen=True)
class Format:
    """One way to write a table: the file's suffix, and the function."""

    suffix: str
    render: Callable[[ComparisonTable], str]


def title_of(row: ComparisonRow, seeds: int) -> str:
    """Return a row's name; it says what is a ceiling, how many rounds, and how many seeds if not all."""
    line = row.line
    said = [line.remark] if line.remark else []
    if 0 < len(line.seeds) < seeds:
        said.append(f"{len(line.seeds)} of {count(seeds, 'seed')}")
    if line.state:
        said.append(line.state)
    return f"{line.title} ({', '.join(said)})" if said else line.title


def value_text(value: Spread | None, unit: str) -> str:
    """Return a value with its deviation, in its unit."""
    if value is None:
        return ABSENT
    if unit == "bytes":
        return human_bytes(round(value.mean))
    if unit == "count":
        return f"{value.mean:g}" if not value.deviation else f"{value.mean:.1f} ± {value.deviation:.1f}"
    if unit == "seconds":
        return f"{value.mean:.1f}" + ("" if value.deviation is None else f" ± {value.deviation:.1f}")
    return str(value)


def entries(table: ComparisonTable) -> list[list[Entry]]:
    """Return the table's body, without the names."""
    best = {column.key: table.best(column) for column in COLUMNS}
    ahead = {column.key: table.controls_ahead(column) for column in COLUMNS}

    def entry(row: ComparisonRow, column: Column) -> Entry:
        key = (row.line.variant, row.line.role)
        text = value_text(row.values[column.key], column.unit)
        return Entry(text, key in best[column.key], key in ahead[column.key])

    return [[entry(row, column) for column in COLUMNS] for row in table.rows]


def caption(table: ComparisonTable) -> str:
    """Return what the table is about, in one sentence."""
    cell = table.cell
    seeds = f"{count(len(table.seeds), 'seed')}" + (
        f" (n = {len(table.seeds)}: {listing([str(seed) for seed in table.seeds])})" if table.seeds else ""
    )
    return f"{cell.data}, N = {cell.clients} clients, Dirichlet α = {cell.alpha:g}, {seeds}."


def markdown(table: ComparisonTable) -> str:
    """Return the table, the paired tests, what the images are worth and the notes as Markdown."""
    body = []
    for row, values in zip(table.rows, entries(table), strict=True):
        cells = [f"**{one.text}**" if one.best else one.text + AHEAD * one.ahead for one in values]
        body.append([title_of(row, len(table.seeds)), *cells])
    parts = [f"**{caption(table)}**", markdown_table(HEADER, body), LEGEND]
    if table.tests:
        parts.append("\n".join(f"- {test.sentence}" for test in table.tests))
        parts.append(NOT_INDEPENDENT)
    else:
        parts.append("No paired test: FedBiCross, or what it is to be compared with, has not been run.")
    if table.images:
        parts.append(image_quality_markdown(table.images, len(table.seeds)))
    if table.notes:
        parts.append("\n".join(f"- {note}" for note in table.notes))
    return "\n\n".join(parts) + "\n"


def csv_text(table: ComparisonTable) -> str:
    """Return one line a method: fractions, bytes and seconds at full precision, empty where there is none.

    ``seeds`` counts them, ``best`` lists the columns in which the row is the best one-shot method.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    header = ["cell", "title", "variant", "row", "group", "state", "seeds", "best"]
    for column in COLUMNS:
        header += [f"{column.key}_mean", f"{column.key}_sd"]
    writer.writerow(header)
    for row, values in zip(table.rows, entries(table), strict=True):
        line = row.line
        best = " ".join(column.key for column, one in zip(COLUMNS, values, strict=True) if one.best)
        cells: list[str | int | float | None] = [
            *(table.cell.name, line.title, line.variant, line.role, line.group),
            *(line.state or "done", len(line.seeds), best),
        ]
        for column in COLUMNS:
            value = row.values[column.key]
            cells += [None, None] if value is None else [value.mean, value.deviation]
        writer.writerow(cells)
    return stream.getvalue()


def latex(table: ComparisonTable) -> str:
    """Return the table for a LaTeX document; rules part controls, one-shot methods, ceilings and the rest."""
    rows = list(zip(table.rows, entries(table), strict=True))
    groups = []
    for _, members in groupby(rows, key=lambda pair: _block(pair[0])):
        block = []
        for row, values in members:
            texts = [escape(one.text + AHEAD * one.ahead) for one in values]
            cells = [bold(text) if one.best else text for text, one in zip(texts, values, strict=True)]
            block.append([escape(title_of(row, len(table.seeds))), *cells])
        groups.append(block)
    tests = [*(test.sentence for test in table.tests), NOT_INDEPENDENT] if table.tests else []
    notes = [LEGEND, *tests, *table.notes]
    return latex_table(HEADER, groups, caption(table), f"tab:{table.cell.name}", notes)


def _block(row: ComparisonRow) -> str:
    if row.line.group in {CEILING, *CEILING_GROUPS}:
        return CEILING
    return row.line.group if row.line.group in (CONTROL, MANY_ROUNDS) else "method"


FORMATS: Mapping[str, Format] = {
    "markdown": Format("md", markdown),
    "csv": Format("csv", csv_text),
    "latex": Format("tex", latex),
}


def comparison_markdown(tables: Sequence[ComparisonTable]) -> str:
    """Return the page with all cells."""
    parts = ["# Comparison"]
    parts += [f"## {table.cell.name}\n\n{markdown(table).rstrip()}" for table in tables]
    return "\n\n".join(parts) + "\n"
