"""Who is like whom: the similarity of the clients' models, ordered by cluster."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fedbicross_flwr.report.figures.missing import needed
from fedbicross_flwr.report.record import Clustering, RunRecord
from fedbicross_flwr.report.style import LIGHT, WIDTH, Theme, bare, context

MAX_NUMBERED = 12
CLIENT_LABELS = 0.7
BESIDE = 1.9


def draw_clustering(run: RunRecord, theme: Theme = LIGHT) -> Figure:
    """Draw the N x N similarities as a heat map; clients stand by cluster, each cluster in its frame.

    Raises
    ------
    NothingToDrawError
        When the run has no clustering.
    """
    clustering = needed(run, run.clustering, "clustering.json")
    order = sorted(
        range(len(clustering.clients)),
        key=lambda index: (clustering.assignment[index], clustering.clients[index]),
    )
    similarity = clustering.similarity[np.ix_(order, order)]
    clients = [clustering.clients[index] for index in order]
    number = len(clients)
    with context(theme):
        made, axes, bar_axes = _axes(number)
        image = axes.imshow(similarity, vmin=-1, vmax=1, cmap=theme.colormap())
        bare(axes)
        if number <= MAX_NUMBERED:
            _write_numbers(axes, similarity, theme)
        _frame_clusters(axes, clustering, order, theme)
        prefix = "client " if number <= MAX_NUMBERED else ""
        size = 9 if number <= 30 else 6
        axes.set_yticks(range(number), [f"{prefix}{client}" for client in clients], fontsize=size)
        axes.set_xticks(range(number), [str(client) for client in clients], fontsize=size)
        axes.tick_params(labelcolor=theme.ink)
        axes.set_xlabel("client")
        bar = made.colorbar(image, cax=bar_axes, ticks=[-1, -0.5, 0, 0.5, 1])
        bar.set_label("similarity")
        bar_axes.grid(False)
        for spine in bar_axes.spines.values():
            spine.set_visible(False)
    return made


def _axes(clients: int) -> tuple[Figure, Axes, Axes]:
    """Return the figure, a square for the matrix and a strip for its scale, placed in inches.

    A square matrix with text on both sides is placed by hand: automatic layout cuts its labels.
    """
    side = min(5.6, max(2.2, 0.55 * clients))
    height = side + 0.75
    left = (WIDTH - side - BESIDE) / 2 + CLIENT_LABELS / 2
    made = Figure(figsize=(WIDTH, height))
    matrix = (left / WIDTH, 0.6 / height, side / WIDTH, side / height)
    scale = ((left + side + 1.15) / WIDTH, (0.6 + 0.1 * side) / height, 0.16 / WIDTH, 0.8 * side / height)
    return made, made.add_axes(matrix), made.add_axes(scale)


def _write_numbers(axes: Axes, similarity: np.ndarray, theme: Theme) -> None:
    for row, column in np.ndindex(similarity.shape):
        value = similarity[row, column]
        strong = abs(value) > 0.6
        axes.text(
            column,
            row,
            f"{value:.2f}".replace("-", "−"),
            ha="center",
            va="center",
            fontsize=8.5,
            color=theme.on_accent if strong else theme.ink,
        )


def _frame_clusters(axes: Axes, clustering: Clustering, order: list[int], theme: Theme) -> None:
    assigned = [clustering.assignment[index] for index in order]
    starts = [0, *(i for i in range(1, len(order)) if assigned[i] != assigned[i - 1]), len(order)]
    for start, stop in pairwise(starts):
        colour = theme.cluster(assigned[start])
        size = stop - start
        axes.add_patch(
            Rectangle(
                (start - 0.5, start - 0.5),
                size,
                size,
                fill=False,
                edgecolor=colour,
                linewidth=3,
                clip_on=False,
            )
        )
        axes.annotate(
            f"cluster {assigned[start]}",
            xy=(1.0, (start + stop - 1) / 2),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight="bold",
            annotation_clip=False,
        )
