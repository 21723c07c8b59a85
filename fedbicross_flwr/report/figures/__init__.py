"""The figures of a report: the list of them, and writing them to disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from fedbicross_flwr.files import write_bytes
from fedbicross_flwr.report.figures.accuracy import draw_accuracy
from fedbicross_flwr.report.figures.clustering import draw_clustering
from fedbicross_flwr.report.figures.inversion import draw_inversion
from fedbicross_flwr.report.figures.missing import NothingToDrawError
from fedbicross_flwr.report.figures.partition import draw_partition
from fedbicross_flwr.report.figures.synthetic import draw_synthetic
from fedbicross_flwr.report.figures.weights import draw_weights
from fedbicross_flwr.report.record import RunRecord
from fedbicross_flwr.report.style import LIGHT, Theme, png

__all__ = [
    "FIGURES",
    "NothingToDrawError",
    "draw_accuracy",
    "draw_clustering",
    "draw_inversion",
    "draw_partition",
    "draw_synthetic",
    "draw_weights",
    "render_figures",
    "write_figures",
]

FIGURES: dict[str, Callable[[RunRecord, Theme], Figure]] = {
    "accuracy": draw_accuracy,
    "partition": draw_partition,
    "clustering": draw_clustering,
    "inversion": draw_inversion,
    "synthetic": draw_synthetic,
    "weights": draw_weights,
}


@dataclass(frozen=True)
class Rendered:
    """The figures that could be drawn, as PNG; and why the others were left out."""

    images: dict[str, bytes]
    left_out: dict[str, str]


def render_figures(run: RunRecord, theme: Theme = LIGHT) -> Rendered:
    """Draw every figure the run has data for."""
    images: dict[str, bytes] = {}
    left_out: dict[str, str] = {}
    for name, draw in FIGURES.items():
        try:
            images[name] = png(draw(run, theme), theme)
        except NothingToDrawError as reason:
            left_out[name] = str(reason)
    return Rendered(images, left_out)


def write_figures(run: RunRecord, folder: Path) -> list[Path]:
    """Write ``<name>.png`` into `folder`, in the light theme, for every figure the run has data for.

    A figure of an earlier call that can no longer be drawn is removed, so that none contradicts the run.

    Returns
    -------
    list of Path
        The files written, in the order of the report.
    """
    return write_rendered(render_figures(run, LIGHT), folder)


def write_rendered(rendered: Rendered, folder: Path) -> list[Path]:
    """Write figures that are already rendered; see `write_figures`."""
    for name in rendered.left_out:
        (folder / f"{name}.png").unlink(missing_ok=True)
    return [write_bytes(folder / f"{name}.png", image) for name, image in rendered.images.items()]
