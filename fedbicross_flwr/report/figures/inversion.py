"""How the synthetic images came about: six curves over the inversion steps (Eqs. 1-2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fedbicross_flwr.report.figures.missing import needed
from fedbicross_flwr.report.record import Inversion, RunRecord
from fedbicross_flwr.report.style import LIGHT, Theme, context, dashes, figure


@dataclass(frozen=True)
class Panel:
    """One quantity: its field in `Inversion`, its title, and its axis."""

    key: str
    title: str
    top: float | None = None
    logarithmic: bool = False


def draw_inversion(run: RunRecord, theme: Theme = LIGHT) -> Figure:
    """Draw agreement, confidence, classes covered and the three losses over t; one line a cluster.

    Earlier synthesis rounds are fainter than the last.

    Raises
    ------
    NothingToDrawError
        When the run has no inversion diagnostics.
    """
    records = needed(run, run.inversion, "inversion.json")
    classes = len(run.dataset.class_names)
    panels = (
        Panel("agreement", "Agreement with the label", top=1),
        Panel("confidence", "Confidence", top=1),
        Panel("classes_covered", f"Classes covered (of {classes})", top=classes),
        Panel("cross_entropy", "Cross-entropy", logarithmic=True),
        Panel("batch_norm", "BatchNorm term", logarithmic=True),
        Panel("total_variation", "Total variation", logarithmic=True),
    )
    with context(theme):
        made = figure(height=4.9)
        grid = made.subplots(2, 3, sharex=True)
        for axes, panel in zip(grid.flat, panels, strict=True):
            _draw_panel(axes, panel, records, theme)
        for axes in grid[1]:
            axes.set_xlabel("inversion step t")
        clusters = sorted({record.cluster for record in records})
        handles = [
            Line2D([], [], color=theme.cluster(c), linestyle=dashes(c), label=f"cluster {c}")
            for c in clusters
        ]
        made.legend(handles=handles, loc="outside upper left", ncols=min(len(clusters), 6))
    return made


def _draw_panel(axes: Axes, panel: Panel, records: tuple[Inversion, ...], theme: Theme) -> None:
    last = max(record.round for record in records)
    positive = True
    for record in records:
        values = getattr(record, panel.key)
        positive = positive and bool(np.all(values[np.isfinite(values)] > 0))
        axes.plot(
            np.arange(1, len(values) + 1),
            values,
            color=theme.cluster(record.cluster),
            linestyle=dashes(record.cluster),
            alpha=1.0 if record.round == last else 0.35,
            linewidth=1.7 if record.round == last else 1.1,
        )
    axes.set_title(panel.title)
    if panel.top is not None:
        axes.set_ylim(0, panel.top * 1.05)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=panel.top > 1))
    elif panel.logarithmic and positive:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
