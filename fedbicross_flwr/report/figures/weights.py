"""Who learns from whom: the cross-cluster weights over the steps of stage 2 (Eq. 8)."""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedbicross_flwr.report.figures.missing import NothingToDrawError, needed
from fedbicross_flwr.report.record import RunRecord
from fedbicross_flwr.report.style import LIGHT, Theme, context, dashes, figure

PANELS_A_ROW = 4


def draw_weights(run: RunRecord, theme: Theme = LIGHT) -> Figure:
    """Draw one panel a target cluster, in it one line a source cluster; a panel's lines sum to one.

    Raises
    ------
    NothingToDrawError
        When the run has no weights, or one cluster only.
    """
    history = needed(run, run.weights, "weights.json")
    clusters = history.weights.shape[1]
    if clusters == 1:
        raise NothingToDrawError("There is a single cluster, so there are no weights between clusters.")
    across = min(clusters, PANELS_A_ROW)
    down = math.ceil(clusters / across)
    with context(theme):
        made = figure(height=0.5 + 2.5 * down)
        grid = made.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        for target, axes in enumerate(grid.flat):
            if target >= clusters:
                axes.set_axis_off()
                continue
            for source in range(clusters):
                axes.plot(
                    history.steps,
                    history.weights[:, target, source],
                    color=theme.cluster(source),
                    linestyle=dashes(source),
                )
            axes.set_title(f"Cluster {target} learns from", color=theme.cluster(target))
            axes.set_ylim(0, 1.02)
            axes.set_xlabel("step")
        for axes in grid[:, 0]:
            axes.set_ylabel("weight")
        handles = [
            Line2D([], [], color=theme.cluster(c), linestyle=dashes(c), label=f"from cluster {c}")
            for c in range(clusters)
        ]
        made.legend(handles=handles, loc="outside upper left", ncols=min(clusters, 5))
    return made
