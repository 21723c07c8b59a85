"""Accuracy against heterogeneity: a line a method over the Dirichlet concentration alpha."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedbicross_flwr.compare.collect import CellRuns, Comparison
from fedbicross_flwr.compare.figures.looks import (
    ORDER,
    categories,
    dodge,
    federations,
    handle,
    legend_below,
    look_of,
    percent_of,
    say_missing_seeds,
)
from fedbicross_flwr.compare.lines import Line, final_line, lines_of
from fedbicross_flwr.compare.variants import VARIANTS
from fedbicross_flwr.report.figures.missing import NothingToDrawError
from fedbicross_flwr.report.style import LIGHT, Theme, context, figure, label

OWN = tuple(name for name, one in VARIANTS.items() if one.group == "one-shot" and name not in ORDER)
"""Methods that came to those of the paper."""
SHOWN = (*OWN, *reversed(ORDER), "same-budget", "ensemble", "central")
LONGEST_TITLE = 48
"""Letters that fit above a panel."""
PANELS = {"global_accuracy": "whole test set", "local_accuracy": "test images mixed like its own"}


def draw_by_alpha(comparison: Comparison, theme: Theme = LIGHT) -> Figure:
    """Draw one row of panels a data set and N: global and local accuracy of each method's final models.

    Final means fine-tuned, or after stage 3; the bars are one sample standard deviation over seeds.

    Raises
    ------
    NothingToDrawError
        When no data set was run with two alphas.
    """
    groups = {
        title: [cell for cell in cells if cell.seeds]
        for title, cells in federations(comparison.cells).items()
        if sum(bool(cell.seeds) for cell in cells) > 1
    }
    if not groups:
        raise NothingToDrawError("Accuracy against alpha needs runs with two alphas, all else equal.")
    with context(theme):
        made = figure(height=2.9 * len(groups) + 0.7)
        panels = made.subplots(len(groups), len(PANELS), squeeze=False, sharey="row")
        titles: dict[str, str] = {}
        drawn = list[tuple[CellRuns, list[Line]]]()
        for row, (group, cells) in zip(panels, groups.items(), strict=True):
            lines = [lines_of(cell) for cell in cells]
            for cell, several in zip(cells, lines, strict=True):
                drawn.append((cell, [line for line in several if line.variant in SHOWN]))
            for axes, (key, name) in zip(row, PANELS.items(), strict=True):
                titles |= _draw(axes, cells, lines, key, theme)
                title = f"{label(group, 30)}: {name}"
                axes.set_title(title if len(title) <= LONGEST_TITLE else f"{label(group, 30)}:\n{name}")
            row[0].set_ylabel("accuracy in percent")
        known = [name for name in SHOWN if name in titles]
        say_missing_seeds(made, drawn, theme)
        legend_below(made, [handle(titles[name], look_of(name, theme)) for name in known], columns=3)
    return made


def _draw(
    axes: Axes, cells: Sequence[CellRuns], lines: Sequence[Sequence[Line]], key: str, theme: Theme
) -> dict[str, str]:
    """Draw all methods of one panel; return the titles of those that are there."""
    drawn: dict[str, str] = {}
    for index, name in enumerate(SHOWN):
        points = []
        for place, several in enumerate(lines):
            line = final_line(several, name)
            found = percent_of(line, key) if line else None
            if line and found:
                points.append((place + dodge(index, len(SHOWN), 0.24), *found))
                drawn[name] = line.title
        if points:
            look = look_of(name, theme)
            xs, ys, deviations = zip(*points, strict=True)
            axes.errorbar(
                xs,
                ys,
                yerr=deviations,
                color=look.colour,
                marker=look.marker,
                linestyle=look.dash,
                linewidth=2.2 if name == ORDER[0] else 1.4,
                elinewidth=1.0,
                markersize=5,
                zorder=3 if name == ORDER[0] else 2,
            )
    categories(axes, [f"{cell.cell.alpha:g}" for cell in cells], "Dirichlet α (smaller: more skewed)")
    return drawn
