"""What accuracy costs: the server's time and the bytes each client sends and receives."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation, Transform

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
from fedbicross_flwr.compare.lines import MANY_ROUNDS, SHIPPED, Line, SeedScores, lines_of
from fedbicross_flwr.compare.variants import VARIANTS
from fedbicross_flwr.report.figures.missing import NothingToDrawError
from fedbicross_flwr.report.style import LIGHT, Theme, context, figure, label

ACCURACY = "mean_accuracy"
LEAST_SECONDS = 0.1


def _seconds(row: SeedScores) -> float | None:
    return None if row.server_seconds is None else max(row.server_seconds, LEAST_SECONDS)


def _megabytes(row: SeedScores) -> float | None:
    return (row.bytes_up + row.bytes_down) / 1e6


def draw_cost(comparison: Comparison, theme: Theme = LIGHT) -> Figure:
    """Draw one row of panels a cell: accuracy against server seconds, and against megabytes per client.

    Each method is a hollow point for the model as shipped and a full one for what the client makes of it,
    which costs the server nothing more. Accuracy is the mean of both protocols'; the dashed line is the
    control that only trains longer.

    Raises
    ------
    NothingToDrawError
        When no one-shot method of any cell has both protocols.
    """
    cells = [(cell, _drawable(cell)) for cell in comparison.cells]
    cells = [(cell, lines) for cell, lines in cells if any(line.competes for line in lines)]
    if not cells:
        raise NothingToDrawError("Cost against accuracy needs a finished run of a one-shot method.")
    with context(theme):
        made = figure(height=2.9 * len(cells) + 0.7)
        panels = made.subplots(len(cells), 2, squeeze=False, sharey="row")
        titles: dict[str, str] = {}
        for row, (cell, lines) in zip(panels, cells, strict=True):
            _panel(row[0], lines, _seconds, theme, beside=False)
            _logarithmic(row[0])
            _panel(row[1], lines, _megabytes, theme, beside=True)
            name = cell.cell.caption
            row[0].set_title(f"{label(name, 40)}: time")
            row[1].set_title("Traffic (what costs the same stands side by side)")
            row[0].set_xlabel(f"server seconds (less than {LEAST_SECONDS:g} drawn at {LEAST_SECONDS:g})")
            row[1].set_xlabel("megabytes sent and received, per client")
            row[0].set_ylabel("mean of global and local\naccuracy in percent")
            _traffic_axis(row[1], lines)
            titles |= {
                line.variant: VARIANTS[line.variant].title for line in lines if line.variant in VARIANTS
            }
            titles |= {line.variant: line.title for line in lines if line.variant not in VARIANTS}
        known = [name for name in (*reversed(ORDER), *titles) if name in titles]
        handles = [
            handle(titles[name], look_of(name, theme), line=name == CONTROL_LINE, marker=name != CONTROL_LINE)
            for name in dict.fromkeys(known)
        ]
        say_missing_seeds(made, cells, theme)
        legend_below(made, [*handles, *ends(theme)], columns=3)
    return made


def _drawable(cell: CellRuns) -> list[Line]:
    """Return the methods that are compared by cost, and the control; a ceiling sends and receives nothing."""
    return [
        line
        for line in lines_of(cell)
        if percent_of(line, ACCURACY)
        and (line.group in {"one-shot", MANY_ROUNDS} or line.variant == CONTROL_LINE)
    ]


def _panel(
    axes: Axes, lines: list[Line], read: Callable[[SeedScores], float | None], theme: Theme, beside: bool
) -> None:
    alike: dict[str, list[str]] = {}  # what is of one group costs about the same
    for line in lines:
        if line.variant not in alike.setdefault(line.group, []):
            alike[line.group].append(line.variant)
    drawn: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        value = percent_of(line, ACCURACY)
        assert value is not None  # `_drawable` left the others out
        look = look_of(line.variant, theme)
        if line.variant == CONTROL_LINE:
            axes.axhline(value[0], color=look.colour, linestyle=look.dash, linewidth=1.2, zorder=1)
            continue
        costs = [cost for row in line.seeds.values() if (cost := read(row)) is not None]
        if not costs:
            continue
        transform: Transform = axes.transData
        if beside:
            group = alike[line.group]
            place = group.index(line.variant) - (len(group) - 1) / 2
            transform = transform + ScaledTranslation(BESIDE * place, 0, axes.figure.dpi_scale_trans)
        point = (fmean(costs), value[0])
        axes.errorbar(
            [point[0]],
            [point[1]],
            yerr=[value[1]],
            color=look.colour,
            marker=look.marker,
            markersize=6.5,
            markerfacecolor=theme.surface if _hollow(line, lines) else look.colour,
            elinewidth=0.9,
            zorder=3,
            transform=transform,
        )
        drawn.setdefault(line.variant, []).append(point)
        if len(drawn[line.variant]) > 1:
            join(axes, drawn[line.variant], look, transform)


def _hollow(line: Line, lines: list[Line]) -> bool:
    """Whether it is the first of a method's two points."""
    return line.role == SHIPPED and sum(other.variant == line.variant for other in lines) > 1


def _logarithmic(axes: Axes) -> None:
    """Take a logarithmic axis with plain numbers on it."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _traffic_axis(axes: Axes, lines: list[Line]) -> None:
    """Take a logarithmic axis where strategies of many rounds stand beside one-shot methods."""
    sizes = [size for line in lines for row in line.seeds.values() if (size := _megabytes(row))]
    if max(sizes, default=1.0) > 10 * min(sizes, default=1.0):
        _logarithmic(axes)
        axes.set_xlim(min(sizes) / 3, 3 * max(sizes))
    else:
        axes.set_xlim(0, 1.35 * max(sizes, default=1.0))
