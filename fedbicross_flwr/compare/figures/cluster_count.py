"""How many clusters: accuracy and silhouette against K."""

from __future__ import annotations

from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedbicross_flwr.compare.collect import CLUSTER_STUDY, CellRuns, Comparison
from fedbicross_flwr.compare.figures.looks import Look, handle, legend_below, percent_of
from fedbicross_flwr.compare.lines import Line, final_line, lines_of
from fedbicross_flwr.report.figures.missing import NothingToDrawError
from fedbicross_flwr.report.style import LIGHT, Theme, context, figure, label

OURS = "fedbicross"
NO_CLUSTERING = "fedbicross-no-clustering"
CURVES = {"global_accuracy": "global accuracy", "local_accuracy": "local accuracy"}


def draw_cluster_count(comparison: Comparison, theme: Theme = LIGHT) -> Figure:
    """Draw one row of panels a cell: accuracy of the personal models against K, and the silhouette.

    Raises
    ------
    NothingToDrawError
        When no cell has runs with two K.
    """
    studies = [(cell, by_clusters(cell)) for cell in comparison.cells]
    studies = [(cell, found) for cell, found in studies if len(found) > 1]
    if not studies:
        raise NothingToDrawError(
            "The cluster-count study needs runs of FedBiCross with two K: variants fedbicross-K2, ..."
        )
    with context(theme):
        made = figure(height=2.8 * len(studies) + 0.5)
        panels = made.subplots(len(studies), 2, squeeze=False)
        looks = {
            key: Look(theme.cluster(index), "os"[index], ("solid", "dashed")[index])
            for index, key in enumerate(CURVES)
        }
        for row, (cell, found) in zip(panels, studies, strict=True):
            _accuracy(row[0], found, looks)
            _silhouette(row[1], cell, found, theme)
            name = f"{cell.cell.data}, N = {cell.cell.clients}, α = {cell.cell.alpha:g}"
            row[0].set_title(f"{label(name, 40)}: accuracy")
            row[1].set_title("Silhouette of the clusters")
            for axes in row:
                axes.set_xticks(sorted(found))
                axes.set_xlim(min(found) - 0.3, max(found) + 0.3)
                axes.set_xlabel("clusters K")
        legend_below(made, [handle(CURVES[key], looks[key]) for key in CURVES])
    return made


def by_clusters(cell: CellRuns) -> dict[int, Line]:
    """Return the final lines of FedBiCross by K, sorted; a run with ``auto`` has no K of its own."""
    lines = lines_of(cell)
    found: dict[int, Line] = {}
    for run, record in cell.records():
        name = run.variant.name
        asked = record.config.get("clustering.clusters")
        if not isinstance(asked, int) or not (name in (OURS, NO_CLUSTERING) or CLUSTER_STUDY.fullmatch(name)):
            continue
        line = final_line(lines, name)
        if line is not None:
            # The study's own runs come after the plain one and take its place.
            found[asked] = line
    return dict(sorted(found.items()))


def _accuracy(axes: Axes, found: dict[int, Line], looks: dict[str, Look]) -> None:
    for key, look in looks.items():
        points = [(k, *value) for k, line in found.items() if (value := percent_of(line, key))]
        if points:
            xs, ys, deviations = zip(*points, strict=True)
            axes.errorbar(
                xs,
                ys,
                yerr=deviations,
                color=look.colour,
                marker=look.marker,
                linestyle=look.dash,
                elinewidth=1,
            )
    axes.set_ylabel("accuracy in percent")


def _silhouette(axes: Axes, cell: CellRuns, found: dict[int, Line], theme: Theme) -> None:
    points = []
    for clusters, line in found.items():
        values = [
            record.clustering.silhouette
            for _, record in cell.records(line.variant)
            if record.clustering is not None and record.clustering.silhouette is not None
        ]
        if values:
            points.append((clusters, fmean(values)))
    if points:
        axes.plot(*zip(*points, strict=True), color=theme.cluster(2), marker="^")
    else:
        axes.text(0.5, 0.5, "no run has one", transform=axes.transAxes, ha="center", color=theme.muted)
    axes.set_ylabel("silhouette, mean over seeds")
