"""Fig. 3 of the paper: what each method distils from, a row of synthetic images a method."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedbicross_flwr.compare.collect import CellRuns
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.report.figures.missing import NothingToDrawError
from fedbicross_flwr.report.record import SyntheticImages
from fedbicross_flwr.report.run_folder import load_run
from fedbicross_flwr.report.style import LIGHT, WIDTH, Theme, bare, context, label, text_inches

IMAGES_A_ROW = 24
MOST_OF_A_CLASS = 4
GAP = 2
CLASS_GAP = 8
TOP, LINE, RIGHT, BETWEEN, BOTTOM = 0.12, 0.14, 0.15, 0.1, 0.1
"""Inches above names of classes, for a line of them; beside and between rows; below the last."""
NAME_SIZE = 8
ANGLE = 35
"""Degrees that names are slanted by where they would run into each other."""
SLANTED_LETTERS = 24


def draw_images(cell: CellRuns, theme: Theme = LIGHT) -> Figure:
    """Draw a row a one-shot method: some images of every class, of the smallest seed that kept any.

    A method with several clusters shows images of each in turn. Values outside -1..1 are black or white.

    Raises
    ------
    NothingToDrawError
        When no run of the cell kept synthetic images.
    """
    found = {
        variant.title: images
        for variant in cell.variants
        if variant.group == "one-shot" and (images := first_images(cell, variant.name)) is not None
    }
    if not found:
        raise NothingToDrawError(f"No run of {cell.cell.name} kept synthetic images.")
    names = next(record.dataset.class_names for _, record in cell.records())
    each = max(1, min(MOST_OF_A_CLASS, IMAGES_A_ROW // len(names)))
    with context(theme):
        left = text_inches([label(title) for title in found]) + 0.25
        sheets = [strip(images, len(names), each) for images in found.values()]
        heads = headings(names, WIDTH - left)
        width = WIDTH - left - heads.right
        heights = [width * sheet.shape[0] / sheet.shape[1] for sheet in sheets]
        above = heads.above
        total = above + sum(heights) + BETWEEN * (len(sheets) - 1) + BOTTOM
        made = Figure(figsize=(WIDTH, total))
        top = total - above
        for index, (title, sheet, height) in enumerate(zip(found, sheets, heights, strict=True)):
            top -= height
            axes = made.add_axes((left / WIDTH, top / total, width / WIDTH, height / total))
            axes.imshow(sheet, interpolation="nearest", aspect="auto")
            axes.set_xticks([])
            axes.set_yticks([(sheet.shape[0] - 1) / 2], [label(title)])
            axes.tick_params(labelcolor=theme.ink)
            bare(axes)
            if index == 0:
                _name_classes(axes, heads, class_centres(sheet.shape[1], len(names)), theme)
            top -= BETWEEN
    return made


@dataclass(frozen=True)
class Headings:
    """Names of classes as they stand above the first row, and the inches that they take there and beside."""

    labels: tuple[str, ...]
    slanted: bool
    above: float
    right: float


def headings(names: Sequence[str], width: float) -> Headings:
    """Return the names of classes for so many inches: level where they fit, else slanted, in a line each.

    A slanted name of two lines would lie on its neighbour; the last name needs room beyond its images.
    """
    level = tuple(label(name, 14) for name in names)
    if text_inches(level, NAME_SIZE) <= 0.95 * (width - RIGHT) / len(names):
        lines = max(name.count("\n") + 1 for name in level)
        return Headings(level, False, TOP + LINE * lines, RIGHT)
    shortened = (textwrap.shorten(name, SLANTED_LETTERS, placeholder=" …") for name in names)
    # A name of one long word is cut within it.
    labels = tuple(
        label(short if short != "…" else f"{name.strip()[: SLANTED_LETTERS - 1]}…", SLANTED_LETTERS)
        for name, short in zip(names, shortened, strict=True)
    )
    longest, last = text_inches(labels, NAME_SIZE), text_inches(labels[-1:], NAME_SIZE)
    angle = math.radians(ANGLE)
    beyond = last * math.cos(angle) - width / len(names) / 4
    return Headings(labels, True, TOP + LINE + longest * math.sin(angle), RIGHT + max(beyond, 0.0))


def _name_classes(axes: Axes, heads: Headings, places: list[float], theme: Theme) -> None:
    """Write the classes above the first row."""
    axes.xaxis.tick_top()
    axes.set_xticks(places, heads.labels)
    axes.tick_params(axis="x", labelsize=NAME_SIZE, labelcolor=theme.ink, pad=3)
    if heads.slanted:
        for tick in axes.get_xticklabels():
            tick.set(rotation=ANGLE, ha="left", rotation_mode="anchor")


def first_images(cell: CellRuns, variant: str) -> SyntheticImages | None:
    """Return the images of a variant's first finished run that has any, its clusters dealt in turn."""
    for run, _ in cell.records(variant):
        try:
            clusters = load_run(run.folder).synthetic
        except FedBiCrossError:
            continue
        if any(len(sheet.labels) for sheet in clusters):
            return dealt(clusters)
    return None


def dealt(clusters: Sequence[SyntheticImages]) -> SyntheticImages:
    """Join clusters so that the first images of each class come from each cluster in turn."""
    pairs = [list(zip(sheet.images, sheet.labels, strict=True)) for sheet in clusters]
    classes = sorted({int(one) for sheet in clusters for one in sheet.labels})
    images, labels = [], []
    for wanted in classes:
        columns = [[image for image, one in sheet if one == wanted] for sheet in pairs]
        kept = [image for several in zip_longest(*columns) for image in several if image is not None]
        images += kept
        labels += [wanted] * len(kept)
    return SyntheticImages(0, np.stack(images), np.array(labels, dtype=np.int64))


def strip(images: SyntheticImages, classes: int, each: int) -> NDArray[np.float32]:
    """Lay the first `each` images of every class side by side.

    Returns
    -------
    numpy.ndarray of float32, shape (H, classes * (each * (W + GAP) - GAP + CLASS_GAP) - CLASS_GAP, 4)
        RGBA, transparent between images and where a class has too few.
    """
    height, width = images.images.shape[2:]
    one = each * (width + GAP) - GAP
    canvas = np.zeros((height, classes * (one + CLASS_GAP) - CLASS_GAP, 4), np.float32)
    pixels = np.clip((np.nan_to_num(images.images) + 1) / 2, 0, 1).transpose(0, 2, 3, 1)
    for number in range(classes):
        for column, index in enumerate(np.flatnonzero(images.labels == number)[:each]):
            left = number * (one + CLASS_GAP) + column * (width + GAP)
            canvas[:, left : left + width, :3] = pixels[index]
            canvas[:, left : left + width, 3] = 1
    return canvas


def class_centres(width: int, classes: int) -> list[float]:
    """Return the middle of each class's images in a strip, in pixels."""
    one = (width + CLASS_GAP) / classes
    return [number * one + (one - CLASS_GAP) / 2 for number in range(classes)]
