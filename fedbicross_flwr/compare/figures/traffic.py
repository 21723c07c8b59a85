"""Accuracy against bytes: one-shot methods beside Flower's own strategies, which send a model each round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from fedbicross_flwr.compare.collect import CellRuns, Comparison
from fedbicross_flwr.compare.figures.looks import (
    BESIDE,
    CONTROL_LINE,
    ORDER,
    ends,
    handle,
    join,
    legend_below,
    look_of,
    percent_of,
    say_missing_seeds,
)
from fedbicross_flwr.compare.lines import PERSONAL, SHIPPED, Line, lines_of
from fedbicross_flwr.compare.variants import VARIANTS
from fedbicross_flwr.report.figures.missing import NothingToDrawError
from fedbicross_flwr.report.rounds import load_rounds
from fedbicross_flwr.report.style import LIGHT, Theme, context, figure, label

PROTOCOLS = {"global_accuracy": "whole test set", "local_accuracy": "test images mixed like its own"}
SENT, RECEIVED = "sent", "received"
GROUPS = ("one-shot", "flower")


@dataclass(frozen=True)
class Curve:
    """One strategy over its rounds 1..R: megabytes each way, per client, and global accuracy in percent."""

    megabytes: Mapping[str, tuple[float, ...]]
    accuracy: tuple[float, ...]


def draw_traffic(comparison: Comparison, theme: Theme = LIGHT) -> Figure:
    """Draw two rows of panels a cell, global and local accuracy: against what a client sends, and receives.

    A one-shot method is a hollow point for the model as shipped and a full one for what the client makes of
    it; methods that cost the same stand side by side. A strategy of many rounds has both behind its last
    round, and under the global protocol a curve of the global model from round to round; under the local one
    nobody scores it between rounds. The dashed line is the control that shares nothing and trains longer.

    Raises
    ------
    NothingToDrawError
        When no cell has a finished run of either kind.
    """
    found = [(cell, drawable(cell)) for cell in comparison.cells]
    found = [(cell, lines) for cell, lines in found if any(line.group in GROUPS for line in lines)]
    if not found:
        raise NothingToDrawError("Accuracy against bytes needs a finished run of a method that sends models.")
    with context(theme):
        made = figure(height=5.0 * len(found) + 0.9)
        panels = made.subplots(2 * len(found), 2, squeeze=False, sharex="col", sharey="row")
        for index, (cell, lines) in enumerate(found):
            curves = curves_of(cell, lines)
            name = label(cell.cell.caption, 40)
            for row, (key, title) in zip(panels[2 * index :], PROTOCOLS.items(), strict=False):
                for axes, way in zip(row, (SENT, RECEIVED), strict=True):
                    draw_lines(axes, lines, key, way, theme)
                    if key == "global_accuracy":
                        draw_curves(axes, curves, way, theme)
                    axes.set_xlabel(f"megabytes {way}, per client (equal ones side by side)")
                row[0].set_title(f"{name}: {title}")
                row[0].set_ylabel("accuracy in percent")
        for axes in made.axes:
            axes.tick_params(labelbottom=True)
        megabyte_axes(panels[0], [line for _, lines in found for line in lines])
        say_missing_seeds(made, found, theme)
        legend_below(made, legend([line for _, lines in found for line in lines], theme), columns=3)
    return made


def drawable(cell: CellRuns) -> list[Line]:
    """Return the lines of methods that send models, and the control that sends none."""
    return [
        line
        for line in lines_of(cell)
        if line.seeds and (line.group in GROUPS or line.variant == CONTROL_LINE)
    ]


def megabytes(line: Line, way: str) -> float:
    """Return what a client sends or receives, the mean over seeds."""
    return fmean(row.bytes_up if way == SENT else row.bytes_down for row in line.seeds.values()) / 1e6


def curves_of(cell: CellRuns, lines: Sequence[Line]) -> dict[str, Curve]:
    """Return the curve of each strategy, by variant; none where its seeds took different numbers of rounds.

    A client sends a model a round. It has received one more than it has sent when it uses the global model.
    """
    curves = {}
    for line in lines:
        if line.group != "flower" or line.role != SHIPPED:
            continue
        said = [rounds for run, _ in cell.records(line.variant) if (rounds := load_rounds(run.folder))]
        if len({one.rounds for one in said}) != 1:
            continue
        count = said[0].rounds
        sent, received = megabytes(line, SENT) / count, megabytes(line, RECEIVED) / (count + 1)
        done = range(1, count + 1)
        curves[line.variant] = Curve(
            {SENT: tuple(one * sent for one in done), RECEIVED: tuple((one + 1) * received for one in done)},
            tuple(100 * fmean(one.accuracy[number] for one in said) for number in done),
        )
    return curves


def draw_curves(axes: Axes, curves: Mapping[str, Curve], way: str, theme: Theme) -> None:
    """Draw the global model of each strategy from round to round."""
    for variant, curve in curves.items():
        look = look_of(variant, theme)
        axes.plot(
            curve.megabytes[way],
            curve.accuracy,
            color=look.colour,
            linestyle=look.dash,
            linewidth=1.2,
            marker=look.marker,
            markersize=3,
            zorder=2,
        )


def draw_lines(axes: Axes, lines: Sequence[Line], key: str, way: str, theme: Theme) -> None:
    """Draw the points of all methods, and the control as a line."""
    drawn: dict[str, list[tuple[float, float]]] = {}
    roles = {(line.variant, line.role) for line in lines}
    places = beside(lines)
    for line in lines:
        value = percent_of(line, key)
        if value is None:
            continue
        look = look_of(line.variant, theme)
        if line.variant == CONTROL_LINE:
            axes.axhline(value[0], color=look.colour, linestyle=look.dash, linewidth=1.2, zorder=1)
            continue
        shift = ScaledTranslation(BESIDE * places[line.variant], 0, axes.figure.dpi_scale_trans)
        hollow = line.role == SHIPPED and (line.variant, PERSONAL) in roles
        point = (megabytes(line, way), value[0])
        axes.errorbar(
            *point,
            yerr=value[1],
            color=look.colour,
            marker=look.marker,
            markersize=6.5,
            markerfacecolor=theme.surface if hollow else look.colour,
            elinewidth=0.9,
            zorder=3,
            transform=axes.transData + shift,
        )
        # What is drawn aside does not count for the limits of the axes by itself.
        axes.update_datalim([(point[0], value[0] - value[1]), (point[0], value[0] + value[1])])
        drawn.setdefault(line.variant, []).append(point)
        if len(drawn[line.variant]) > 1:
            join(axes, drawn[line.variant], look, axes.transData + shift)
    axes.autoscale_view(scalex=False)


def beside(lines: Sequence[Line]) -> dict[str, float]:
    """Return how many places aside a variant's points stand: one-shot methods around what they send.

    Strategies stand behind the ends of their curves.
    """
    one_shot, strategies = (
        list(dict.fromkeys(line.variant for line in lines if line.group == group)) for group in GROUPS
    )
    places = {variant: index - (len(one_shot) - 1) / 2 for index, variant in enumerate(one_shot)}
    return places | {variant: index + 1.5 for index, variant in enumerate(strategies)}


def megabyte_axes(row: Sequence[Axes], lines: Sequence[Line]) -> None:
    """Take logarithmic axes with plain numbers, which all panels of a column share."""
    for axes, way in zip(row, (SENT, RECEIVED), strict=True):
        sizes = [megabytes(line, way) for line in lines if line.variant != CONTROL_LINE]
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        # So much of the panel's width the farthest points and a margin take; the decades share what is left.
        aside = BESIDE * (max(beside(lines).values()) + 1) / (axes.bbox.width / axes.figure.dpi)
        low, high = min(sizes) / 2, max(sizes)
        axes.set_xlim(low, max(2 * high, low * (high / low) ** (1 / (1 - aside))))


def legend(lines: Sequence[Line], theme: Theme) -> list[Line2D]:
    """Return the legend's entries: one-shot methods, strategies as lines, the control, hollow and full."""
    groups = {line.variant: line for line in reversed(lines)}
    order = [name for name in (*reversed(ORDER), *VARIANTS, CONTROL_LINE) if name in groups]
    handles = []
    for name in dict.fromkeys([*order, *groups]):
        title = VARIANTS[name].title if name in VARIANTS else groups[name].title
        curve, control = groups[name].group == "flower", name == CONTROL_LINE
        handles.append(handle(title, look_of(name, theme), line=curve or control, marker=not control))
    return [*handles, *ends(theme)]
