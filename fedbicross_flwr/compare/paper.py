"""The paper's own figures, from ``paper.json``: Tables I-III and what its text says of Figs. 2 and 3."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

FILE = "paper.json"


@dataclass(frozen=True)
class PaperRow:
    """One row of a table of the paper, and which of our rows stands beside it.

    Parameters
    ----------
    name : str
        As the paper prints it.
    group : {"baseline", "ours", "ablation"}
        Part of the table.
    variant, role : str
        Name of the variant, and whether its model as shipped or the personal one is compared.
    clusters : int or None
        K, where the row is for one K.
    values : mapping of str to tuple of float
        Percent, by data set and then in the order of the table's alphas.
    """

    name: str
    group: str
    variant: str
    role: str
    clusters: int | None
    values: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper; `clients` is N by data set, `default_clients` that of all but exceptions."""

    number: str
    page: int
    caption: str
    default_clients: int
    clients: Mapping[str, int]
    alphas: tuple[float, ...]
    rows: tuple[PaperRow, ...]


@dataclass(frozen=True)
class Paper:
    """What the paper reports, and `titles` of data sets; its settings are in ``configs/paper.toml``."""

    citation: str
    measure: str
    titles: Mapping[str, str]
    tables: Mapping[str, PaperTable]
    figures: Mapping[str, Mapping[str, Any]]


def load_paper() -> Paper:
    """Read ``paper.json``, which is part of this package."""
    text = resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    content = json.loads(text)
    tables = {number: _table(number, entry) for number, entry in content["tables"].items()}
    return Paper(
        content["paper"],
        content["measure"],
        content["titles"],
        tables,
        content["figures"],
    )


def _table(number: str, entry: Mapping[str, Any]) -> PaperTable:
    rows = tuple(
        PaperRow(
            row["name"],
            row["group"],
            row["variant"],
            row["role"],
            row.get("clusters"),
            {data: tuple(values) for data, values in row["values"].items()},
        )
        for row in entry["rows"]
    )
    return PaperTable(
        number,
        entry["page"],
        entry["caption"],
        entry["default_clients"],
        entry["clients"],
        tuple(entry["alphas"]),
        rows,
    )
