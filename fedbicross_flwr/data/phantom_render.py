"""Draws blood-smear phantoms: background, cell, stain and focus, many images at a time.

Row i of every array belongs to image i alone and nothing is summed over rows, so an image comes out the
same, bit for bit, whichever others are drawn with it (no matrix products: BLAS rounds by batch size).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedbicross_flwr.data.cell_types import CELL_TYPES, CellType
from fedbicross_flwr.data.drawing import (
    PIXEL_X,
    PIXEL_Y,
    Floats,
    blur,
    coverage_of,
    distance_to_segment,
    over_pixels,
    paint_over,
    smooth_union,
)
from fedbicross_flwr.data.source import IMAGE_SIZE

MAX_LOBES: Final = 5
MAX_GRANULES: Final = 64
RED_CELLS: Final = 6
NUM_UNIFORM: Final = 8 + RED_CELLS * 4 + MAX_GRANULES * 4
NUM_NORMAL: Final = 40 + 2 * MAX_LOBES

_PATCH = np.arange(-2, 3)
_FAR = np.float32(1e3)
# Chromatin is shared out: the fewer the lobes (index), the thicker each of a segmented nucleus.
_LOBE_SCALE = np.asarray([1.0, 1.2, 1.04, 1.0, 0.94, 0.9], dtype=np.float32)


def _column(name: str) -> NDArray[np.float32]:
    return np.asarray([getattr(cell, name) for cell in CELL_TYPES], dtype=np.float32)


_COLUMNS: Final = {
    field.name: _column(field.name) for field in fields(CellType) if field.name not in ("name", "train_count")
}


@dataclass(frozen=True)
class Draws:
    """The random numbers of n images; everything else follows from them and the labels.

    ``uniform`` (n, NUM_UNIFORM) in [0, 1); ``normal`` (n, NUM_NORMAL) and ``texture`` (n, 28, 28) standard
    normal; all float32.
    """

    uniform: Floats
    normal: Floats
    texture: Floats


class _Tape:
    """Hands out columns of the random numbers in the order in which the drawing asks for them."""

    def __init__(self, draws: Draws) -> None:
        self._uniform, self._normal = draws.uniform, np.clip(draws.normal, -2.5, 2.5)
        self._next_uniform = self._next_normal = 0

    def uniform(self, low: float, high: float, columns: int = 1) -> Floats:
        start, self._next_uniform = self._next_uniform, self._next_uniform + columns
        return low + (high - low) * self._uniform[:, start : self._next_uniform]

    def normal(self, deviation: float, columns: int = 1) -> Floats:
        start, self._next_normal = self._next_normal, self._next_normal + columns
        return deviation * self._normal[:, start : self._next_normal]


def _background(tape: _Tape, count: int) -> Floats:
    """Bright, unevenly lit plasma with red cells (pale in the middle) around the centre; (n, 28, 28, 3)."""
    canvas = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    canvas[:] = (np.asarray([0.95, 0.90, 0.86], np.float32) + tape.normal(0.012, 3))[:, None, None, :]
    number = tape.uniform(0.0, RED_CELLS + 0.5)
    angle = tape.uniform(-0.5, 0.5, RED_CELLS) + np.arange(RED_CELLS, dtype=np.float32)
    angle = angle * np.float32(2 * np.pi / RED_CELLS)
    away, radius = tape.uniform(13.0, 19.0, RED_CELLS), tape.uniform(5.5, 7.5, RED_CELLS)
    pallor = tape.uniform(0.25, 0.8, RED_CELLS)
    tint = np.asarray([0.87, 0.70, 0.67], np.float32) + tape.normal(0.015, 3)
    for j in range(RED_CELLS):
        cx, cy = (
            away[:, j : j + 1] * np.cos(angle[:, j : j + 1]),
            away[:, j : j + 1] * np.sin(angle[:, j : j + 1]),
        )
        distance = np.hypot(PIXEL_X - over_pixels(cx), PIXEL_Y - over_pixels(cy))
        size = over_pixels(radius[:, j : j + 1])
        disc = coverage_of(distance - size)
        pale = over_pixels(pallor[:, j : j + 1]) * np.clip(1.0 - distance / (0.6 * size), 0.0, 1.0)
        present = over_pixels((number > j).astype(np.float32))
        paint_over(canvas, present * disc * (0.9 - 0.6 * pale), tint)
    return canvas


def _nucleus(tape: _Tape, labels: NDArray[np.int64], x: Floats, y: Floats, radius: Floats) -> Floats:
    """Signed distance of the nucleus: lobes on an arc, joined by strands; (n, 28, 28)."""

    def of(name: str) -> Floats:
        return _COLUMNS[name][labels][:, None]

    weights = np.cumsum(_COLUMNS["lobes"], axis=1)[labels]
    lobes = 1 + (tape.uniform(0.0, 1.0) > weights[:, :-1]).sum(axis=1, keepdims=True)
    arc = radius * of("arc") * (1.0 + tape.normal(0.10))
    span = of("span") * (1.0 + tape.normal(0.14))
    thick = radius * of("lobe") * (1.0 + tape.normal(0.06)) * _LOBE_SCALE[lobes]
    strand = radius * of("strand") * (1.0 + tape.normal(0.15))
    shift_x, shift_y = radius * of("shift") * tape.normal(1.0), radius * of("shift") * tape.normal(1.0)
    jitter, bend = tape.normal(0.09, MAX_LOBES), tape.normal(0.10, MAX_LOBES)
    places: list[tuple[Floats, Floats]] = []
    field = np.full_like(x, _FAR)
    width = over_pixels(np.maximum(np.float32(0.16) * radius, np.float32(0.5)))
    for j in range(MAX_LOBES):
        step = np.where(lobes > 1, j / np.maximum(lobes - 1, 1) - 0.5, 0.0).astype(np.float32)
        turn = span * (step + bend[:, j : j + 1])
        # A single lobe sits at the centre: only several of them spread over the arc.
        reach = np.where(lobes > 1, arc, 0.3 * arc)
        px, py = shift_x + reach * (np.cos(turn) - 0.4), shift_y + reach * np.sin(turn)
        places.append((px, py))
        active = over_pixels((j < lobes) & (thick > 0))
        size = over_pixels(thick * (1.0 + jitter[:, j : j + 1]))
        lobe = np.hypot(x - over_pixels(px), y - over_pixels(py)) - size
        field = smooth_union(field, np.where(active, lobe, _FAR), width)
        if j:
            bridge = distance_to_segment(x, y, places[j - 1], places[j]) - over_pixels(strand)
            field = np.minimum(field, np.where(active, bridge, _FAR))
    return field


def _granules(
    tape: _Tape, labels: NDArray[np.int64], centre: tuple[Floats, Floats], radius: Floats
) -> Floats:
    """Ink of the granules in [0, 1], (n, 28, 28); each touches a 5x5 patch only, which keeps this fast."""

    def of(name: str) -> Floats:
        return _COLUMNS[name][labels][:, None]

    number = of("granules") * (1.0 + tape.normal(0.35))
    angle = tape.uniform(0.0, 2 * np.pi, MAX_GRANULES)
    away = np.sqrt(tape.uniform(0.0, 1.0, MAX_GRANULES)) * radius * np.float32(0.92)
    size = of("granule_radius") * tape.uniform(0.75, 1.25, MAX_GRANULES)
    ink = of("granule_ink") * tape.uniform(0.5, 1.2, MAX_GRANULES)
    ink = ink * (np.arange(MAX_GRANULES) < number)
    half = np.float32((IMAGE_SIZE - 1) / 2)
    column = centre[0] + away * np.cos(angle) + half
    row = centre[1] + away * np.sin(angle) + half
    columns = np.rint(column).astype(np.int64)[:, :, None, None] + _PATCH[None, None, None, :]
    rows = np.rint(row).astype(np.int64)[:, :, None, None] + _PATCH[None, None, :, None]
    distance = np.hypot(columns - column[:, :, None, None], rows - row[:, :, None, None])
    amount = ink[:, :, None, None] * coverage_of((distance - size[:, :, None, None]).astype(np.float32))
    inside = (columns >= 0) & (columns < IMAGE_SIZE) & (rows >= 0) & (rows < IMAGE_SIZE)
    image = np.arange(len(labels))[:, None, None, None]
    pixel = np.where(inside, (image * IMAGE_SIZE + rows) * IMAGE_SIZE + columns, 0)
    total = np.bincount(
        pixel.ravel(), np.where(inside, amount, 0.0).ravel(), minlength=len(labels) * IMAGE_SIZE**2
    )
    ink_of_pixel: Floats = np.minimum(total, 1.0).astype(np.float32)
    return ink_of_pixel.reshape(-1, IMAGE_SIZE, IMAGE_SIZE)


def _cell(canvas: Floats, tape: _Tape, labels: NDArray[np.int64], texture: Floats) -> None:
    """Paint the cell itself: cytoplasm, nucleus with its chromatin, granules."""

    def of(name: str) -> Floats:
        return _COLUMNS[name][labels]

    radius = of("radius")[:, :1] + of("radius")[:, 1:] * tape.normal(1.0)
    centre = (tape.normal(1.1), tape.normal(1.1))
    pose = tape.uniform(0.0, 2 * np.pi)
    stretch = np.exp(tape.normal(0.06))
    dx, dy = PIXEL_X - over_pixels(centre[0]), PIXEL_Y - over_pixels(centre[1])
    cos, sin = over_pixels(np.cos(pose)), over_pixels(np.sin(pose))
    x = np.asarray((cos * dx + sin * dy) / over_pixels(stretch), dtype=np.float32)
    y = np.asarray((cos * dy - sin * dx) * over_pixels(stretch), dtype=np.float32)
    around = np.arctan2(y, x)
    waves = of("outline")[:, None] * (tape.normal(0.6, 3))
    edge: Floats = 1.0 + sum(
        over_pixels(waves[:, k : k + 1]) * np.cos((k + 2) * around + k) for k in range(3)
    )
    body = coverage_of(np.hypot(x, y) - over_pixels(radius) * edge, 1.4)
    paint_over(canvas, 0.94 * body, of("cytoplasm") + tape.normal(0.025, 3))

    nucleus = coverage_of(_nucleus(tape, labels, x, y, radius), 1.2) * body
    chromatin = over_pixels(of("clumping")[:, None]) * texture
    ink: Floats = of("nucleus") + tape.normal(0.03, 3)
    shaded: Floats = ink[:, None, None, :] * (1.0 + chromatin[..., None])
    paint_over(canvas, np.float32(0.95) * nucleus, shaded.clip(0.05, 1.0))

    granules = _granules(tape, labels, centre, radius) * body
    over = over_pixels(of("granule_over")[:, None])
    granules *= 1.0 - nucleus * (1.0 - over)
    paint_over(canvas, granules, of("granule") + tape.normal(0.03, 3))


def render(labels: NDArray[np.int64], draws: Draws) -> Floats:
    """Draw one cell an image, without sensor noise.

    Parameters
    ----------
    labels : (n,) int64
        Indices into `CELL_TYPES`.
    draws : Draws
        The images' own random numbers.

    Returns
    -------
    (n, 28, 28, 3) float32 RGB, nominally in [0, 1]: after stain, lighting and focus, before the camera's
    noise.
    """
    tape = _Tape(draws)
    count = len(labels)
    grain = blur(draws.texture[..., None], np.full((count, 1), 1.0, np.float32))[..., 0] * np.float32(3.0)
    canvas = _background(tape, count)
    _cell(canvas, tape, labels, grain)
    # Stain acts on optical density (Beer-Lambert): one strength for all, a little of its own each channel.
    strength = np.exp(tape.normal(0.13)) * np.exp(tape.normal(0.07, 3))
    canvas = np.maximum(canvas, np.float32(0.02)) ** strength[:, None, None, :]
    lamp = 1.0 + tape.normal(0.03)
    slope_x, slope_y = tape.normal(0.0016), tape.normal(0.0016)
    canvas *= (over_pixels(lamp) + over_pixels(slope_x) * PIXEL_X + over_pixels(slope_y) * PIXEL_Y)[..., None]
    return blur(canvas, tape.uniform(0.35, 0.95))
