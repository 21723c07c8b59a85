"""How many clusters: accuracy and silhouette against K, and the K that the silhouette chooses by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedbicross_flwr.compare.collect import CLUSTER_STUDY, CellRuns, Comparison
from fedbicross_flwr.compare.figures.looks import Look, handle, legend_below, percent_of, say_missing_seeds
from fedbicross_flwr.compare.lines import Line, final_line, lines_of
from fedbicross_flwr.compare.variants import AUTOMATIC
from fedbicross_flwr.config_readers import FEDBICROSS
from fedbicross_flwr.report.figures.missing import NothingToDrawError
from fedbicross_flwr.report.seeds_table import Spread
from fedbicross_flwr.report.style import LIGHT, Theme, context, figure, label

NO_CLUSTERING = "fedbicross-no-clustering"
AUTOMATIC_MARKER = "*"
AUTOMATIC_TITLE = "automatic K (best silhouette)"
CURVES = {"global_accuracy": "global accuracy", "local_accuracy": "local accuracy"}


@dataclass(frozen=True)
class Chosen:
    """The runs that chose K themselves: their final line, and mean and deviation of K over seeds."""

    line: Line
    clusters: float
    deviation: float


def draw_cluster_count(comparison: Comparison, theme: Theme = LIGHT) -> Figure:
    """Draw one row of panels a cell: accuracy of the personal models against K, and the silhouette.

    The variant that takes the K of the best silhouette stands as a hollow star at its mean K over seeds, with
    the deviation of K across.

    Raises
    ------
    NothingToDrawError
        When no cell has runs with two K, or with one and the automatic one.
    """
    studies = [(cell, by_clusters(cell), chosen_clusters(cell)) for cell in comparison.cells]
    studies = [(cell, found, auto) for cell, found, auto in studies if len(found) + bool(auto) > 1]
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
        for row, (cell, found, auto) in zip(panels, studies, strict=True):
            _accuracy(row[0], found, looks)
            _silhouette(row[1], cell, found, theme)
            if auto is not None:
                _draw_chosen(row, cell, auto, looks, theme)
            if not row[1].has_data():
                where = {"transform": row[1].transAxes, "ha": "center", "color": theme.muted}
                row[1].text(0.5, 0.5, "no run has one", **where)
            name = cell.cell.caption
            row[0].set_title(f"{label(name, 40)}: accuracy")
            row[1].set_title("Silhouette of the clusters")
            ticks = _ticks(found, auto)
            for axes in row:
                axes.set_xticks(ticks)
                axes.set_xlim(*_limits(ticks, auto))
                axes.set_xlabel("clusters K")
        handles = [handle(CURVES[key], looks[key]) for key in CURVES]
        if any(auto for _, _, auto in studies):
            star = handle(AUTOMATIC_TITLE, Look(theme.neutral, AUTOMATIC_MARKER, "solid"), line=False)
            star.set(markersize=12, markerfacecolor=theme.surface)
            handles.append(star)
        drawn = [(cell, [*found.values(), *([auto.line] if auto else [])]) for cell, found, auto in studies]
        say_missing_seeds(made, drawn, theme)
        legend_below(made, handles)
    return made


def by_clusters(cell: CellRuns) -> dict[int, Line]:
    """Return the final lines of FedBiCross by K, sorted; a run with ``auto`` was asked for none."""
    lines = lines_of(cell)
    found: dict[int, Line] = {}
    for run, record in cell.records():
        name = run.variant.name
        asked = record.config.get("clustering.clusters")
        if not isinstance(asked, int) or not (
            name in (FEDBICROSS, NO_CLUSTERING) or CLUSTER_STUDY.fullmatch(name)
        ):
            continue
        line = final_line(lines, name)
        # The study's own runs come after the plain one, and take its place if they have more seeds.
        if line is not None and (asked not in found or len(line.seeds) > len(found[asked].seeds)):
            found[asked] = line
    return dict(sorted(found.items()))


def chosen_clusters(cell: CellRuns) -> Chosen | None:
    """Return what the variant with automatic K came to; None when it has not been run."""
    line = final_line(lines_of(cell), AUTOMATIC)
    found = [
        record.clustering.clusters for _, record in cell.records(AUTOMATIC) if record.clustering is not None
    ]
    if line is None or not found:
        return None
    spread = Spread.of(found)
    return Chosen(line, spread.mean, spread.deviation or 0.0)


def _ticks(found: Mapping[int, Line], auto: Chosen | None) -> list[int]:
    """Return the values of K that were asked for, and the whole numbers beside the chosen mean."""
    chosen = () if auto is None else (math.floor(auto.clusters), math.ceil(auto.clusters))
    return sorted({*found, *chosen})


def _limits(ticks: Sequence[int], auto: Chosen | None) -> tuple[float, float]:
    """Return the ends of the axis of K, the bar across what was chosen included."""
    bar = () if auto is None else (auto.clusters - auto.deviation, auto.clusters + auto.deviation)
    return min(*ticks, *bar) - 0.3, max(*ticks, *bar) + 0.3


def _draw_chosen(
    row: Sequence[Axes], cell: CellRuns, auto: Chosen, looks: Mapping[str, Look], theme: Theme
) -> None:
    """Draw the automatic K into both panels: hollow, so that a point of the study below it can be seen."""
    values = [(row[0], look.colour, percent_of(auto.line, key)) for key, look in looks.items()]
    if (mean := _mean_silhouette(cell, AUTOMATIC)) is not None:
        values.append((row[1], theme.cluster(2), (mean, 0.0)))
    for axes, colour, value in values:
        if value is not None:
            axes.errorbar(
                [auto.clusters],
                [value[0]],
                xerr=[auto.deviation],
                yerr=[value[1]],
                color=colour,
                marker=AUTOMATIC_MARKER,
                markersize=12,
                markerfacecolor=theme.surface,
                linestyle="none",
                elinewidth=1,
                zorder=4,
            )


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


def _silhouette(axes: Axes, cell: CellRuns, found: Mapping[int, Line], theme: Theme) -> None:
    points = [
        (clusters, mean)
        for clusters, line in found.items()
        if (mean := _mean_silhouette(cell, line.variant)) is not None
    ]
    if points:
        axes.plot(*zip(*points, strict=True), color=theme.cluster(2), marker="^")
    axes.set_ylabel("silhouette, mean over seeds")


def _mean_silhouette(cell: CellRuns, variant: str) -> float | None:
    """Return the mean over those seeds that have a silhouette."""
    values = [
        record.clustering.silhouette
        for _, record in cell.records(variant)
        if record.clustering is not None and record.clustering.silhouette is not None
    ]
    return fmean(values) if values else None
