"""Writes the tables of a comparison into its folder."""

from __future__ import annotations

from pathlib import Path

from fedbicross_flwr.compare.collect import collect
from fedbicross_flwr.compare.render import FORMATS, comparison_markdown
from fedbicross_flwr.compare.tables import comparison_table
from fedbicross_flwr.files import write_bytes


def write_comparison(out: Path) -> Path:
    """Write ``table-<cell>.md``, ``.csv`` and ``.tex`` of every cell, and ``comparison.md`` with all of them.

    Parameters
    ----------
    out : Path
        The comparison's folder; the files are written there.

    Returns
    -------
    Path
        ``comparison.md``.

    Raises
    ------
    FedBiCrossError
        When there is no such folder, or no comparison in it.
    """
    comparison = collect(out)
    tables = [comparison_table(cell) for cell in comparison.cells]
    for table in tables:
        for known in FORMATS.values():
            file = comparison.out / f"table-{table.cell.name}.{known.suffix}"
            write_bytes(file, known.render(table).encode())
    page = comparison_markdown(tables)
    return write_bytes(comparison.out / "comparison.md", page.encode())
