"""A regenerated table of the paper as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from itertools import groupby

from fedbicross_flwr.compare.latex import escape, latex_table
from fedbicross_flwr.compare.paper_tables import Block, BlockRow, Entry, RegeneratedTable
from fedbicross_flwr.report.render import markdown_table
from fedbicross_flwr.report.seeds_table import Spread

NOT_RUN = "-"


def markdown(table: RegeneratedTable) -> str:
    """Return one table a data set: at each alpha ours under both protocols, and the paper's figure."""
    parts = [f"**{table.title}**"]
    for block in table.blocks:
        body = [[row.name, *_texts(block, row)] for row in block.rows]
        parts.append(f"{heading(block)}\n\n{markdown_table(_header(block), body)}")
    parts.append("\n".join(f"- {note}" for note in table.notes))
    return "\n\n".join(parts) + "\n"


def csv_text(table: RegeneratedTable) -> str:
    """Return one line a method, data set and alpha: percent, empty where there is no figure."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    ours = ["ours_global_mean", "ours_global_sd", "ours_local_mean", "ours_local_sd"]
    writer.writerow(["table", "data", "clients", "alpha", "group", "method", *ours, "seeds", "paper"])
    for block in table.blocks:
        for row in block.rows:
            for one in row.entries:
                place = [table.number, block.data, block.clients, f"{one.alpha:g}", row.group, row.name]
                numbers = [*_numbers(one.ours_global), *_numbers(one.ours_local)]
                writer.writerow([*place, *numbers, one.seeds, one.paper])
    return stream.getvalue()


def latex(table: RegeneratedTable) -> str:
    """Return one LaTeX table a data set; rules part baselines, ours and ablations."""
    parts = []
    for block in table.blocks:
        groups = [
            [[escape(row.name), *map(escape, _texts(block, row))] for row in rows]
            for _, rows in groupby(block.rows, key=lambda row: row.group)
        ]
        caption = f"{table.title}. {heading(block)}."
        label = f"tab:paper-{table.number}-{block.data}"
        parts.append(latex_table(_header(block), groups, caption, label, table.notes))
    return "\n".join(parts)


def heading(block: Block) -> str:
    """Return the data set and the number of clients."""
    return f"{block.title}, N = {block.clients}" + ("" if block.in_paper else " (not in the paper)")


def _header(block: Block) -> list[str]:
    columns = ["global", "local", "paper"] if block.in_paper else ["global", "local"]
    # The alpha stands once, over the first of its columns.
    named = [[f"α = {alpha:g}: {columns[0]}", *columns[1:]] for alpha in block.alphas]
    return ["Method", *(title for titles in named for title in titles)]


def _texts(block: Block, row: BlockRow) -> list[str]:
    return [text for entry in row.entries for text in _entry(block, entry)]


def _entry(block: Block, entry: Entry) -> list[str]:
    ours = [NOT_RUN if value is None else str(value) for value in (entry.ours_global, entry.ours_local)]
    return [*ours, *([NOT_RUN if entry.paper is None else f"{entry.paper:.2f}"] if block.in_paper else [])]


def _numbers(value: Spread | None) -> list[float | None]:
    if value is None:
        return [None, None]
    return [100 * value.mean, None if value.deviation is None else 100 * value.deviation]


PAPER_FORMATS: Mapping[str, Callable[[RegeneratedTable], str]] = {
    "markdown": markdown,
    "csv": csv_text,
    "latex": latex,
}
