"""What the cluster models learn from: contact sheets of the synthetic images."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedbicross_flwr.report.figures.missing import needed
from fedbicross_flwr.report.record import RunRecord, SyntheticImages
from fedbicross_flwr.report.style import LIGHT, WIDTH, Theme, bare, context, label, text_inches

PANELS_A_ROW = {1: 1, 2: 2, 3: 3, 4: 4, 5: 3, 6: 3}
MANY_PANELS_A_ROW = 4
COLUMNS = {1: 12, 2: 8, 3: 6, 4: 4}
GAP = 2
SPACE, TITLE, MAX_TILE = 0.22, 0.42, 0.62


def draw_synthetic(run: RunRecord, theme: Theme = LIGHT) -> Figure:
    """Draw one contact sheet a cluster: a row is a class, a column an image of that class.

    Raises
    ------
    NothingToDrawError
        When the run kept no synthetic images.
    """
    clusters = needed(run, run.synthetic, "synthetic.safetensors")
    names = [label(name) for name in run.dataset.class_names]
    across = PANELS_A_ROW.get(len(clusters), MANY_PANELS_A_ROW)
    most = max((int(np.bincount(sheet.labels).max()) for sheet in clusters if len(sheet.labels)), default=1)
    columns = min(most, COLUMNS[across])
    with context(theme):
        left = text_inches(names) + 0.25
        made, panels = _panels(clusters, across, columns, len(names), left)
        for index, (axes, sheet) in enumerate(zip(panels, clusters, strict=True)):
            _draw_sheet(axes, sheet, len(names), columns)
            axes.set_title(f"Cluster {sheet.cluster}", color=theme.cluster(sheet.cluster))
            side = sheet.images.shape[2]
            centres = [row * (side + GAP) + side / 2 for row in range(len(names))]
            axes.set_yticks(centres, names if index % across == 0 else [])
            axes.tick_params(labelcolor=theme.ink)
    return made


def _panels(
    clusters: tuple[SyntheticImages, ...], across: int, columns: int, classes: int, left: float
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel a cluster, placed in inches: pictures keep their aspect and labels fit."""
    height, width = canvas_size(clusters[0], classes, columns)
    panel_width = min((WIDTH - left - SPACE * across) / across, MAX_TILE * columns)
    panel_height = panel_width * height / width
    down = math.ceil(len(clusters) / across)
    total = down * (panel_height + TITLE) + 0.1
    made = Figure(figsize=(WIDTH, total))
    panels = []
    for index in range(len(clusters)):
        row, column = divmod(index, across)
        bottom = total - (row + 1) * (panel_height + TITLE)
        place = (left + column * (panel_width + SPACE), bottom, panel_width, panel_height)
        panels.append(made.add_axes((place[0] / WIDTH, place[1] / total, place[2] / WIDTH, place[3] / total)))
    return made, panels


def canvas_size(sheet: SyntheticImages, classes: int, columns: int) -> tuple[int, int]:
    """Return the height and width of a contact sheet in pixels."""
    height, width = sheet.images.shape[2:]
    return classes * (height + GAP) - GAP, columns * (width + GAP) - GAP


def _draw_sheet(axes: Axes, sheet: SyntheticImages, classes: int, columns: int) -> None:
    axes.imshow(contact_sheet(sheet, classes, columns), interpolation="nearest")
    axes.set_xticks([])
    bare(axes)


def contact_sheet(sheet: SyntheticImages, classes: int, columns: int) -> NDArray[np.float32]:
    """Lay images out on a transparent RGBA canvas, the first `columns` of each class in its row.

    Returns
    -------
    numpy.ndarray of float32, shape (classes * (H + GAP) - GAP, columns * (W + GAP) - GAP, 4)
    """
    height, width = sheet.images.shape[2:]
    canvas = np.zeros((*canvas_size(sheet, classes, columns), 4), np.float32)
    # Inversion does not bound its pixels; what lies outside -1..1 is shown as black or white.
    pixels = np.clip((np.nan_to_num(sheet.images) + 1) / 2, 0, 1).transpose(0, 2, 3, 1)
    for row in range(classes):
        for column, index in enumerate(np.flatnonzero(sheet.labels == row)[:columns]):
            top, left = row * (height + GAP), column * (width + GAP)
            tile = canvas[top : top + height, left : left + width]
            tile[..., :3] = pixels[index]
            tile[..., 3] = 1
    return canvas
