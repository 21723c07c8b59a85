"""A regenerated table of the paper as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from itertools import groupby

from fedbicross_flwr.compare.latex import bold, escape, latex_table
from fedbicross_flwr.compare.paired import NOT_INDEPENDENT
from fedbicross_flwr.compare.paper_tables import NOT_RUN, Block, BlockRow, Entry, RegeneratedTable
from fedbicross_flwr.report.render import markdown_table
from fedbicross_flwr.report.seeds_table import Spread
from fedbicross_flwr.report.units import count

NO_FIGURE = "-"
LEGEND = (
    f"A dash ({NO_FIGURE}): not run, not scored, or no figure in the paper; runs that failed or are not "
    "finished say so. Bold: the best of our one-shot methods in a column, compared as shown, ablations "
    "included; nothing is bold where one alone was run. A K that was asked for by name, and a method with "
    "fewer seeds than others, do not compete; the paper’s figures are not marked."
)


def markdown(table: RegeneratedTable) -> str:
    """Return one table a data set: at each alpha ours under both protocols, and the paper's figure."""
    parts = [f"**{table.title}**"]
    for block in table.blocks:
        body = [[row.name, *_texts(block, row, lambda text: f"**{text}**")] for row in block.rows]
        parts.append(f"{block.heading}\n\n{markdown_table(_header(block), body)}")
    tests = [f"{block.heading}, {test}" for block in table.blocks for test in block.tests]
    notes = [*table.notes, *table.differences, *tests, *([NOT_INDEPENDENT] if tests else [])]
    parts += [LEGEND, "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def csv_text(table: RegeneratedTable) -> str:
    """Return one line a method, data set and alpha: percent, empty where there is no figure.

    ``seeds`` counts those of the method, ``cell_seeds`` those of its cell; ``state`` is ``done``, or says why
    there is nothing; ``best`` lists the columns in which the row is the best one-shot method.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    ours = ["ours_global_mean", "ours_global_sd", "ours_local_mean", "ours_local_sd"]
    more = ["seeds", "cell_seeds", "state", "best", "paper"]
    writer.writerow(["table", "data", "clients", "alpha", "group", "method", *ours, *more])
    for block in table.blocks:
        for row in block.rows:
            for one in row.entries:
                place = [table.number, block.data, block.clients, f"{one.alpha:g}", row.group, row.name]
                numbers = [*_numbers(one.ours_global), *_numbers(one.ours_local)]
                best = "ours_global " * one.best_global + "ours_local" * one.best_local
                about = [one.seeds, one.cell_seeds, one.state or "done", best.strip()]
                writer.writerow([*place, *numbers, *about, one.paper])
    return stream.getvalue()


def latex(table: RegeneratedTable) -> str:
    """Return one LaTeX table a data set; rules part baselines, ours and ablations."""
    parts = []
    for block in table.blocks:
        groups = [
            [[escape(row.name), *_texts(block, row, bold, escape)] for row in rows]
            for _, rows in groupby(block.rows, key=lambda row: row.group)
        ]
        caption = f"{table.title}. {block.heading}."
        notes = [LEGEND, *table.notes]
        notes += table.differences if block.ran else ()
        notes += [*block.tests, NOT_INDEPENDENT] if block.tests else []
        label = f"tab:paper-{table.number}-{block.data}"
        parts.append(latex_table(_header(block), groups, caption, label, notes))
    return "\n".join(parts)


def _header(block: Block) -> list[str]:
    columns = ["global", "local", "paper"] if block.in_paper else ["global", "local"]
    # The alpha stands once, over the first of its columns.
    named = [[f"α = {alpha:g}: {columns[0]}", *columns[1:]] for alpha in block.alphas]
    return ["Method", *(title for titles in named for title in titles)]


def _texts(
    block: Block, row: BlockRow, mark: Callable[[str], str], escaped: Callable[[str], str] = str
) -> list[str]:
    """Return a row's cells, the best ones marked; `escaped` comes before `mark`."""
    texts = []
    for entry in row.entries:
        for value, best in ((entry.ours_global, entry.best_global), (entry.ours_local, entry.best_local)):
            text = escaped(_ours(entry, value))
            texts.append(mark(text) if best else text)
        if block.in_paper:
            texts.append(NO_FIGURE if entry.paper is None else f"{entry.paper:.2f}")
    return texts


def _ours(entry: Entry, value: Spread | None) -> str:
    """Return one of our figures, with its seeds where these are not all, or why there is none."""
    if value is None:
        return NO_FIGURE if entry.state in ("", NOT_RUN) else entry.state
    few = entry.seeds < entry.cell_seeds
    return f"{value} ({entry.seeds} of {count(entry.cell_seeds, 'seed')})" if few else str(value)


def _numbers(value: Spread | None) -> list[float | None]:
    if value is None:
        return [None, None]
    return [100 * value.mean, None if value.deviation is None else 100 * value.deviation]


PAPER_FORMATS: Mapping[str, Callable[[RegeneratedTable], str]] = {
    "markdown": markdown,
    "csv": csv_text,
    "latex": latex,
}
