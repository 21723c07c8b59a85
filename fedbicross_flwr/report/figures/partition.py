"""Who holds what: the class counts of every client."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from fedbicross_flwr.report.figures.missing import NothingToDrawError
from fedbicross_flwr.report.record import RunRecord
from fedbicross_flwr.report.style import LIGHT, WIDTH, Theme, context, figure, label

MAX_LABELLED_CLIENTS = 12
ROW = 0.42


def draw_partition(run: RunRecord, theme: Theme = LIGHT) -> Figure:
    """Draw one disc per client (column) and class (row); its area is the number of images.

    Raises
    ------
    NothingToDrawError
        When no client's class counts are known, as in a deployment.
    """
    known = [client for client in run.clients if client.class_counts is not None]
    if not known:
        raise NothingToDrawError("The sites did not disclose their class counts.")
    counts = np.array([client.class_counts for client in known]).T
    classes, clients = counts.shape
    with context(theme):
        made = figure(height=1.1 + ROW * classes)
        axes = made.add_subplot()
        rows, columns = np.nonzero(counts)
        # The largest disc touches its neighbours at most: a cell is `ROW` high, its width depends on N.
        largest = 72 * min(ROW, (WIDTH - 2.4) / max(clients, 1))
        sizes = largest**2 * counts[rows, columns] / counts.max()
        labelled = clients <= MAX_LABELLED_CLIENTS
        colours = [theme.accent if known[column].ok else theme.neutral for column in columns]
        shift = -0.16 if labelled else 0.0
        axes.scatter(columns + shift, rows, s=np.maximum(sizes, 3), c=colours, linewidths=0, zorder=2)
        if labelled:
            for row, column in np.ndindex(counts.shape):
                number = counts[row, column]
                colour = theme.ink if number else theme.neutral
                axes.text(
                    column + shift + _radius_in_cells(largest, clients) + 0.04,
                    row,
                    f"{number:,}" if number else "0",
                    va="center",
                    fontsize=8.5,
                    color=colour,
                    bbox={"facecolor": theme.surface, "edgecolor": "none", "pad": 1.5},
                )
        axes.set_yticks(range(classes), [label(name) for name in run.dataset.class_names])
        axes.set_xticks(range(clients), [_heading(run, i, labelled) for i in (c.client for c in known)])
        if not labelled:
            axes.tick_params(axis="x", labelsize=8 if clients <= 40 else 5)
            axes.set_xlabel("client")
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_xlim(-0.6, clients - 0.4)
        axes.set_ylim(classes - 0.4, -0.6)
        axes.tick_params(axis="both", labelcolor=theme.ink)
        axes.grid(axis="x", visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return made


def _radius_in_cells(diameter_points: float, clients: int) -> float:
    """Return the largest disc's radius in units of the x axis, near enough for placing a number."""
    return diameter_points / 2 / (72 * (WIDTH - 2.2) / clients)


def _heading(run: RunRecord, client: int, long: bool) -> str:
    if not long:
        return str(client)
    found = next(entry for entry in run.clients if entry.client == client)
    total = sum(found.class_counts or ())
    return f"client {client}\n{total:,}" if found.ok else f"client {client}\n{total:,} (failed)"
