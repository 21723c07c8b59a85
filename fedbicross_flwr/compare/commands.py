"""``fedbicross table`` and ``fedbicross figure``: the paper's tables and figures, of our own runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedbicross_flwr.config_readers import FEDBICROSS
from fedbicross_flwr.errors import FedBiCrossError, near_names

if TYPE_CHECKING:
    from fedbicross_flwr.compare.collect import Comparison

OUT = Path("comparisons")
FORMATS = ("markdown", "csv", "latex")

Out = Annotated[Path, typer.Option(help="Folder of the comparison.", metavar="FOLDER")]
Scale = Annotated[str, typer.Option(help="Runs of that scale alone: quick or paper. [all runs]")]


def table(
    name: Annotated[
        str, typer.Argument(help="I, II or III of the paper; or a cell, such as phantom-N5-alpha0.3.")
    ],
    out: Out = OUT,
    format: Annotated[str, typer.Option(help="markdown, csv or latex.")] = FORMATS[0],
    scale: Scale = "",
    against: Annotated[
        str,
        typer.Option(help="Of a cell, print the paired tests against this method instead.", metavar="METHOD"),
    ] = "",
) -> None:
    """Print table I, II or III of the paper, its figures beside those of the runs that are there.

    A cell's name, such as phantom-N5-alpha0.3, prints that cell's table.
    """
    if format not in FORMATS:
        raise FedBiCrossError(
            f"--format {format!r} is unknown{near_names(format, FORMATS)}; there are {', '.join(FORMATS)}"
        )
    if against:
        if format != FORMATS[0]:
            raise FedBiCrossError(
                f"--format {format}: the tests of --against are written as {FORMATS[0]} alone; leave it out"
            )
        print(against_text(name, out, against, scale))
        return
    print(table_text(name, out, format, scale), end="")


def figure(
    name: Annotated[
        str,
        typer.Argument(
            help="2 or 3 of the paper; accuracy-by-alpha, cost, accuracy-by-bytes, cluster-count, "
            "clusterings, images; or all."
        ),
    ] = "all",
    out: Out = OUT,
    scale: Scale = "",
) -> None:
    """Draw figures of a comparison into its folder figures: 2 or 3 of the paper, another by name, or all.

    By name: accuracy-by-alpha, cost, accuracy-by-bytes, cluster-count, clusterings, images.
    """
    from fedbicross_flwr.compare.figures import write_comparison_figures

    written = write_comparison_figures(runs_in(out, scale), name)
    for file in written.files:
        print(file)
    for title, reason in written.left_out.items():
        print(f"left out: {title}: {reason}")


def export_records(
    to: Annotated[Path, typer.Argument(help="Where to; what is there of the same runs is replaced.")],
    out: Out = OUT,
) -> None:
    """Write what the tables of a comparison are made of to another folder: no models, no images, no paths."""
    from fedbicross_flwr.compare.records import write_records

    written, left_out = write_records(out, to)
    for line in left_out:
        print(f"left out: {line}")
    print(f"{len(written)} run(s): {to}")


def runs_in(out: Path, scale: str) -> Comparison:
    """Return the runs of a comparison; with a scale, those of another have no results.

    Raises
    ------
    FedBiCrossError
        When there is no such folder or scale.
    """
    # Imported here and below, as PyTorch takes seconds to load and `--help` should not.
    from fedbicross_flwr.compare.collect import collect
    from fedbicross_flwr.compare.scale import at_scale

    comparison = collect(out)
    return at_scale(comparison, scale) if scale else comparison


def against_text(name: str, out: Path, against: str, scale: str = "") -> str:
    """Return a line for each paired test of FedBiCross against another method of a cell, and their notes.

    Raises
    ------
    FedBiCrossError
        When there is no such cell, or either of the two methods has no runs in it that share a seed.
    """
    from fedbicross_flwr.compare.checks import fairness_notes
    from fedbicross_flwr.compare.collect import CellRuns
    from fedbicross_flwr.compare.lines import PERSONAL, lines_of
    from fedbicross_flwr.compare.paired import NAMED, tests_against
    from fedbicross_flwr.compare.tables import left_out_notes

    cells = {one.cell.name: one for one in runs_in(out, scale).cells}
    if name not in cells:
        raise FedBiCrossError(
            f"{name} is no cell of {out}{near_names(name, cells)}; there are {', '.join(cells)}"
        )
    lines = lines_of(cells[name])
    tests = tests_against(lines, against)
    if not tests:
        run = sorted({line.variant for line in lines if line.role == PERSONAL and line.seeds} - {FEDBICROSS})
        raise FedBiCrossError(
            f"--against {against!r}: {name} has no seeds of it and of {FEDBICROSS}"
            f"{near_names(against, run)}; there are {', '.join(run)}"
        )
    both = {FEDBICROSS, against}
    runs = [run for run in cells[name].runs if run.variant.name in both]
    finished = Counter(run.seed for run in runs if run.record)
    # What befell the runs of a seed that only one of them has does not limit the tests.
    two = CellRuns(cells[name].cell, tuple(run for run in runs if finished[run.seed] == len(both)))
    notes = [f"- {note}" for note in (*fairness_notes(two), *left_out_notes(two))]
    blocks = [[f"- {test.sentence}" for test in tests], [NAMED], notes]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def table_text(name: str, out: Path, format: str, scale: str = "") -> str:
    """Return a table of the paper, or of one cell, in one of `FORMATS`.

    Raises
    ------
    FedBiCrossError
        When there is no such table, folder or scale.
    """
    from fedbicross_flwr.compare.paper_render import PAPER_FORMATS
    from fedbicross_flwr.compare.paper_tables import paper_table
    from fedbicross_flwr.compare.render import FORMATS as CELL_FORMATS
    from fedbicross_flwr.compare.tables import comparison_table

    comparison = runs_in(out, scale)
    for cell in comparison.cells:
        if cell.cell.name == name:
            return CELL_FORMATS[format].render(comparison_table(cell))
    return PAPER_FORMATS[format](paper_table(name, comparison))
