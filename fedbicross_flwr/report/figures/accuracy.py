"""How good the models are: the accuracy of every client under every method."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedbicross_flwr.report.figures.missing import NothingToDrawError, needed
from fedbicross_flwr.report.record import ResultRow, RunRecord
from fedbicross_flwr.report.render import title
from fedbicross_flwr.report.style import LIGHT, Theme, context, figure, label
from fedbicross_flwr.report.table import CEILING, METRICS, summarise
from fedbicross_flwr.report.units import percent

TITLES = {"global": "On the whole test set", "local": "On test images mixed like its own"}
MAX_NUMBERED = 10
SPREAD = 0.62


def draw_accuracy(run: RunRecord, theme: Theme = LIGHT) -> Figure:
    """Draw one dot a client and one row a method, a panel a protocol; the mean is a tick and a number.

    Within a row clients keep their place from top to bottom, so a client can be followed across rows.

    Raises
    ------
    NothingToDrawError
        When the run has no results.
    """
    results = needed(run, run.results, "metrics.json")
    if not results.rows:
        raise NothingToDrawError("The run evaluated no model.")
    clients = sorted({c for row in results.rows for scores in row.scores.values() for c in scores})
    with context(theme):
        made = figure(height=0.8 + 0.74 * len(results.rows))
        panels = made.subplots(1, len(results.protocols), squeeze=False, sharex=True, sharey=True)[0]
        for axes, protocol in zip(panels, results.protocols, strict=True):
            for position, row in enumerate(results.rows):
                _draw_row(axes, position, row, protocol, clients, theme)
            axes.set_title(TITLES[protocol])
            _beside(axes, "mean", -0.7, theme.muted)
            axes.set_xlabel("accuracy in percent")
            axes.set_ylim(len(results.rows) - 0.45, -0.55)
            axes.grid(axis="y", visible=False)
            axes.spines["left"].set_visible(False)
            for position in range(1, len(results.rows)):
                axes.axhline(position - 0.5, color=theme.grid, linewidth=0.8)
        panels[0].set_yticks(range(len(results.rows)), [label(title(row)) for row in results.rows])
        for tick, row in zip(panels[0].get_yticklabels(), results.rows, strict=True):
            tick.set_color(_colour(row, theme))
            tick.set_fontweight("bold" if row.kind == "ours" else "normal")
    return made


def _colour(row: ResultRow, theme: Theme) -> str:
    return theme.accent if row.kind == "ours" else theme.muted


def _draw_row(
    axes: Axes, position: int, row: ResultRow, protocol: str, clients: list[int], theme: Theme
) -> None:
    scores = row.scores[protocol]
    mean = summarise(scores, METRICS[0]).mean
    if mean is None:
        return
    colour = _colour(row, theme)
    offsets = np.linspace(-SPREAD / 2, SPREAD / 2, len(clients)) if len(clients) > 1 else np.zeros(1)
    place = dict(zip(clients, offsets, strict=True))
    numbered = len(clients) <= MAX_NUMBERED
    xs = [100 * score.accuracy for score in scores.values()]
    ys = [position + place[client] for client in scores]
    axes.plot([100 * mean] * 2, [position - 0.4, position + 0.4], color=colour, linewidth=2.2, zorder=1)
    axes.scatter(
        xs,
        ys,
        s=22 if numbered else 14,
        facecolors=theme.surface if row.kind == CEILING else colour,
        edgecolors=colour,
        linewidths=1.2,
        zorder=2,
        alpha=1.0,
    )
    _beside(axes, percent(mean), position, colour, "bold")


def _beside(axes: Axes, text: str, position: float, colour: str, weight: str = "normal") -> None:
    """Write to the right of the panel, at a height given in rows."""
    axes.annotate(
        text,
        xy=(1.0, position),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        annotation_clip=False,
        fontweight=weight,
    )
