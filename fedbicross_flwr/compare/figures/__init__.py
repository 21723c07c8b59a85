"""The figures of a comparison: the list of them, and writing them into ``<out>/figures``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from fedbicross_flwr.compare.collect import Comparison
from fedbicross_flwr.compare.figures.by_alpha import draw_by_alpha
from fedbicross_flwr.compare.figures.cluster_count import draw_cluster_count
from fedbicross_flwr.compare.figures.clusterings import draw_clusterings
from fedbicross_flwr.compare.figures.cost import draw_cost
from fedbicross_flwr.compare.figures.images import draw_images
from fedbicross_flwr.compare.figures.traffic import draw_traffic
from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.files import write_bytes
from fedbicross_flwr.report.figures.missing import NothingToDrawError
from fedbicross_flwr.report.style import LIGHT, Theme, png

__all__ = [
    "FIGURES",
    "PAPER_FIGURES",
    "Written",
    "draw_by_alpha",
    "draw_cluster_count",
    "draw_clusterings",
    "draw_cost",
    "draw_images",
    "draw_traffic",
    "write_comparison_figures",
]

FIGURES: Mapping[str, Callable[[Comparison, Theme], Figure]] = {
    "accuracy-by-alpha": draw_by_alpha,
    "cost": draw_cost,
    "accuracy-by-bytes": draw_traffic,
    "cluster-count": draw_cluster_count,
    "clusterings": draw_clusterings,
}
"""Figures of the whole comparison; ``images`` is drawn for every cell."""

IMAGES = "images"
PAPER_FIGURES = {"2": "clusterings", "3": IMAGES}


@dataclass(frozen=True)
class Written:
    """The files written, and why other figures were left out, by name."""

    files: tuple[Path, ...]
    left_out: Mapping[str, str]


def write_comparison_figures(comparison: Comparison, name: str = "all", theme: Theme = LIGHT) -> Written:
    """Draw a comparison's figures that have data, and write them into ``<out>/figures``.

    A figure of an earlier call that can no longer be drawn is removed, so that none contradicts the runs.

    Parameters
    ----------
    comparison : Comparison
        The runs, and where they lie.
    name : str, default "all"
        One of `FIGURES`, ``images``, ``2`` or ``3`` as the paper numbers them, or ``all``.
    theme : Theme, default LIGHT

    Raises
    ------
    FedBiCrossError
        When there is no such figure.
    """
    wanted = PAPER_FIGURES.get(name, name)
    known = [*FIGURES, IMAGES]
    if wanted not in [*known, "all"]:
        names = ["all", *known, *PAPER_FIGURES]
        raise FedBiCrossError(
            f"there is no figure {name!r}{near_names(name, names)}; there are {', '.join(names)}"
        )
    files, left_out = [], {}
    for title, draw in _drawings(comparison, known if wanted == "all" else [wanted]):
        file = comparison.out / "figures" / f"{title}.png"
        try:
            files.append(write_bytes(file, png(draw(theme), theme)))
        except NothingToDrawError as reason:
            left_out[title] = str(reason)
            file.unlink(missing_ok=True)
    return Written(tuple(files), left_out)


def _drawings(comparison: Comparison, wanted: list[str]) -> Iterator[tuple[str, Callable[[Theme], Figure]]]:
    """Yield file stems and what draws them."""
    for name in wanted:
        if name != IMAGES:
            yield name, partial(FIGURES[name], comparison)
            continue
        for cell in comparison.cells:
            yield f"{IMAGES}-{cell.cell.name}", partial(draw_images, cell)
