"""Fig. 2 of the paper, ways to cluster clients, and how near each comes to their true label distributions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedbicross_flwr.compare.cluster_quality import clustering_quality
from fedbicross_flwr.compare.collect import CellRuns, Comparison
from fedbicross_flwr.compare.figures.looks import (
    CLUSTERINGS,
    categories,
    dodge,
    federations,
    handle,
    legend_below,
    look_of,
    percent_of,
    say_missing_seeds,
)
from fedbicross_flwr.compare.lines import final_line, lines_of
from fedbicross_flwr.compare.variants import VARIANTS
from fedbicross_flwr.report.figures.missing import NothingToDrawError
from fedbicross_flwr.report.record import RunRecord
from fedbicross_flwr.report.seeds_table import Spread
from fedbicross_flwr.report.style import LIGHT, Theme, context, figure, label

Value = Callable[[CellRuns, str], tuple[float, float] | None]


def draw_clusterings(comparison: Comparison, theme: Theme = LIGHT) -> Figure:
    """Draw one row of panels a data set and N: both accuracies, and the adjusted Rand index, against alpha.

    The index compares the clusters with those that K-means finds in the clients' true class shares. It is
    left out where it says nothing: with one cluster, or a cluster for every client.

    Raises
    ------
    NothingToDrawError
        When no cell has runs of two ways to cluster.
    """
    groups = {
        title: kept
        for title, cells in federations(comparison.cells).items()
        if (kept := [cell for cell in cells if sum(any(cell.records(name)) for name in CLUSTERINGS) > 1])
    }
    if not groups:
        raise NothingToDrawError(
            "Ways to cluster clients need runs of two of them: fedbicross, fedbicross-parameters, ..."
        )
    columns: dict[str, tuple[str, Value]] = {
        "global": ("global accuracy in percent", _accuracy("global_accuracy")),
        "local": ("local accuracy in percent", _accuracy("local_accuracy")),
        "index": ("adjusted Rand index", _index),
    }
    with context(theme):
        made = figure(height=2.8 * len(groups) + 0.6)
        panels = made.subplots(len(groups), len(columns), squeeze=False)
        for row, (group, cells) in zip(panels, groups.items(), strict=True):
            for axes, (title, value) in zip(row, columns.values(), strict=True):
                _draw(axes, cells, value, theme)
                axes.set_ylabel(title)
            row[0].set_title(label(group, 40))
            row[2].axhline(1, color=theme.neutral, linewidth=0.9, linestyle="dotted")
        present = [
            name for name in CLUSTERINGS if any(any(c.records(name)) for cs in groups.values() for c in cs)
        ]
        drawn = [
            (cell, [line for line in lines_of(cell) if line.variant in present])
            for cells in groups.values()
            for cell in cells
        ]
        handles = [
            handle(VARIANTS[name].title, look_of(name, theme, CLUSTERINGS), line=False) for name in present
        ]
        say_missing_seeds(made, drawn, theme)
        legend_below(made, handles, columns=2)
    return made


def rand_index(record: RunRecord) -> float | None:
    """Return the adjusted Rand index of a run's clusters against the clients' true label distributions.

    None when the run has no clustering, a client's class counts are unknown, or the index says nothing.
    """
    clustering = record.clustering
    if clustering is None or not 1 < len(set(clustering.assignment)) < len(clustering.assignment):
        return None
    known = {client.client: client.class_counts for client in record.clients}
    counts = [known[client] for client in clustering.clients]
    if any(one is None for one in counts):
        return None
    return clustering_quality(clustering.assignment, np.array(counts, dtype=np.int64), record.seed)


def _accuracy(key: str) -> Value:
    def value(cell: CellRuns, name: str) -> tuple[float, float] | None:
        line = final_line(lines_of(cell), name)
        return percent_of(line, key) if line else None

    return value


def _index(cell: CellRuns, name: str) -> tuple[float, float] | None:
    found = [index for _, record in cell.records(name) if (index := rand_index(record)) is not None]
    if not found:
        return None
    spread = Spread.of(found)
    return spread.mean, spread.deviation or 0.0


def _draw(axes: Axes, cells: Sequence[CellRuns], value: Value, theme: Theme) -> None:
    for index, name in enumerate(CLUSTERINGS):
        found = [(place, value(cell, name)) for place, cell in enumerate(cells)]
        points = [
            (place + dodge(index, len(CLUSTERINGS), 0.45), *pair) for place, pair in found if pair is not None
        ]
        if points:
            look = look_of(name, theme, CLUSTERINGS)
            xs, ys, deviations = zip(*points, strict=True)
            axes.errorbar(
                xs,
                ys,
                yerr=deviations,
                color=look.colour,
                marker=look.marker,
                linestyle="none",
                elinewidth=1.2,
                markersize=6.5,
            )
    categories(axes, [f"{cell.cell.alpha:g}" for cell in cells], "Dirichlet α")
