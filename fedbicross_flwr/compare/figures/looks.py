"""How methods look in every figure of a comparison: colour, marker and dashes, the same throughout."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Transform

from fedbicross_flwr.compare.collect import CellRuns
from fedbicross_flwr.compare.lines import Line
from fedbicross_flwr.compare.tables import BY_KEY, spread
from fedbicross_flwr.compare.variants import VARIANTS
from fedbicross_flwr.flower_names import FLOWER_NAMES
from fedbicross_flwr.report.style import DASHES, Theme, label
from fedbicross_flwr.report.units import listing

ORDER = ("fedbicross", "coboosting", "fedisca", "dense", "dafl", "fedavg")
CLUSTERINGS = ("fedbicross", *(name for name, one in VARIANTS.items() if one.group == "clustering"))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
GREY: Mapping[str, tuple[str, str]] = {
    "local-only": ("+", "dotted"),
    "same-budget": ("x", "dashed"),
    "ensemble": ("*", "dashdot"),
    "central": ("h", "solid"),
}
"""What is no one-shot method is grey: controls and ceilings."""
BESIDE = 0.09
"""Inches between methods that send equally much: their points would lie on each other."""
NOTE_WIDTH = 110
"""Characters in a line above a figure."""
CONTROL_LINE = "same-budget"
"""What shares nothing and trains longer: drawn as a line."""
ENDS = ("hollow: as shipped", "full: fine-tuned or personal")
STRATEGIES = FLOWER_NAMES


@dataclass(frozen=True)
class Look:
    """Colour, marker and line style of one method."""

    colour: str
    marker: str
    dash: Any


def look_of(variant: str, theme: Theme, order: Sequence[str] = ORDER) -> Look:
    """Return how a variant looks; those outside `order` take the hues that are left, or grey."""
    if variant in GREY:
        marker, dash = GREY[variant]
        return Look(theme.muted, marker, dash)
    if variant in order:
        index = order.index(variant)
        return Look(theme.cluster(index), MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)])
    if variant in STRATEGIES:
        # The two hues that one-shot methods leave, in turn; a marker that comes again has the other hue.
        index = STRATEGIES.index(variant)
        hue = theme.cluster(len(ORDER) + (index + index // len(MARKERS)) % 2)
        return Look(hue, MARKERS[index % len(MARKERS)], DASHES[index // 2 % len(DASHES)])
    # Unknown variants: told apart by their markers, which follow from the name.
    index = sum(variant.encode()) % len(MARKERS)
    return Look(theme.neutral, MARKERS[index], "solid")


def federations(cells: Iterable[CellRuns]) -> dict[str, list[CellRuns]]:
    """Return cells that differ in alpha alone, by their common title; their order is kept."""
    found: dict[str, list[CellRuns]] = {}
    for cell in cells:
        found.setdefault(f"{cell.cell.data}, N = {cell.cell.clients}", []).append(cell)
    return found


def legend_below(made: Figure, handles: Sequence[Line2D], columns: int = 4) -> None:
    """Put one legend for all panels below them."""
    if handles:
        made.legend(
            handles=list(handles),
            loc="outside lower center",
            ncols=min(columns, len(handles)),
            handlelength=2.6,
        )


def say_missing_seeds(made: Figure, drawn: Iterable[tuple[CellRuns, Iterable[Line]]], theme: Theme) -> None:
    """Write above a figure which lines are means of fewer seeds than their cell, and which lack clients.

    A line without seeds is not drawn, and is passed over. Where nothing lacks, nothing is written.
    """
    drawn = [(cell, list(lines)) for cell, lines in drawn]
    # By variant: a method's two points come from the same runs.
    short = {
        (cell.cell.name, line.variant): f"{line.title} ({len(line.seeds)} of {len(cell.seeds)}, "
        f"{cell.cell.name})"
        for cell, lines in drawn
        for line in lines
        if 0 < len(line.seeds) < len(cell.seeds)
    }
    without: dict[str, set[int]] = {}
    for cell, lines in drawn:
        variants = {line.variant for line in lines}
        for run, record in cell.records():
            if record.failed and run.variant.name in variants:
                without.setdefault(cell.cell.name, set()).add(run.seed)
    said = [f"With fewer seeds: {'; '.join(short.values())}"] if short else []
    if without:
        cells = (
            f"{name} (seed{'s' if len(seeds) > 1 else ''} {listing([str(seed) for seed in sorted(seeds)])})"
            for name, seeds in without.items()
        )
        said.append(f"Without some clients: {'; '.join(cells)}")
    if said:
        text = "\n".join(textwrap.fill(one, NOTE_WIDTH) for one in said)
        made.suptitle(text.replace("$", r"\$"), fontsize="small", color=theme.muted)


def handle(title: str, look: Look, line: bool = True, marker: bool = True) -> Line2D:
    """Return the legend's entry of a method."""
    return Line2D(
        [],
        [],
        color=look.colour,
        marker=look.marker if marker else "none",
        linestyle=look.dash if line else "none",
        markersize=6,
        linewidth=1.4,
        label=label(title, 40),
    )


def ends(theme: Theme) -> list[Line2D]:
    """Return the legend's entries for the two points of a method."""
    hollow, full = (handle(title, Look(theme.neutral, "o", "solid"), line=False) for title in ENDS)
    hollow.set_markerfacecolor(theme.surface)
    return [hollow, full]


def join(axes: Axes, points: Sequence[tuple[float, float]], look: Look, transform: Transform) -> None:
    """Join the two points of a method: dotted, as a deviation is a line as well."""
    xs, ys = zip(*points, strict=True)
    axes.plot(xs, ys, ":", color=look.colour, linewidth=0.9, zorder=2, transform=transform)


def dodge(index: int, number: int, width: float = 0.34) -> float:
    """Return how far the point of one of several methods stands beside its place: none hides another."""
    return 0.0 if number < 2 else width * (index / (number - 1) - 0.5)


def categories(axes: Axes, names: Sequence[str], axis_label: str) -> None:
    """Lay evenly spaced categories along the x axis."""
    axes.set_xticks(range(len(names)), list(names))
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xlabel(axis_label)
    axes.grid(axis="x", visible=False)


def percent_of(line: Line, key: str) -> tuple[float, float] | None:
    """Return mean and deviation of a column in percent; the deviation of one seed is 0."""
    value = spread(line, BY_KEY[key].read)
    return None if value is None else (100 * value.mean, 100 * (value.deviation or 0.0))
