"""Pictures from signed-distance fields, many at a time: the primitives that the phantom is drawn with.

A field is (n, 28, 28) float32: each pixel's distance to a shape's edge in pixels, negative inside. Row i
belongs to image i alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedbicross_flwr.data.source import IMAGE_SIZE

Floats = NDArray[np.float32]

_AXIS: Floats = np.arange(IMAGE_SIZE, dtype=np.float32) - np.float32((IMAGE_SIZE - 1) / 2)
PIXEL_X = _AXIS[None, None, :]
PIXEL_Y = _AXIS[None, :, None]


def over_pixels(values: Floats) -> Floats:
    """Shape (n, 1) to (n, 1, 1), to broadcast over the pixels."""
    return values[:, :, None]


def coverage_of(distance: Floats, softness: float = 1.0) -> Floats:
    """Share of a pixel inside a shape, from the signed distance (pixels, negative inside)."""
    return np.asarray(np.clip(0.5 - distance / softness, 0.0, 1.0), dtype=np.float32)


def smooth_union(a: Floats, b: Floats, width: Floats) -> Floats:
    """Polynomial smooth minimum of two distance fields, rounding the corner over `width` pixels."""
    overlap = np.maximum(width - np.abs(a - b), 0.0) / width
    return np.asarray(np.minimum(a, b) - overlap * overlap * width * 0.25, dtype=np.float32)


def paint_over(canvas: Floats, coverage: Floats, colour: Floats) -> None:
    """Blend `colour` (n, 3), or (n, 28, 28, 3), over the canvas in place."""
    paint = colour[:, None, None, :] if colour.ndim == 2 else colour
    canvas += coverage[..., None] * (paint - canvas)


def blur(field: Floats, sigma: Floats) -> Floats:
    """Blur (n, 28, 28, c) with each image's own Gaussian of `sigma` (n, 1) pixels, edges repeated."""
    taps = np.exp(-0.5 * (np.arange(4, dtype=np.float32)[None, :] / np.maximum(sigma, 0.2)) ** 2)
    taps = taps / (taps[:, :1] + 2 * (taps[:, 1:2] + taps[:, 2:3] + taps[:, 3:4]))
    for axis in (1, 2):
        pad = [(0, 0)] * field.ndim
        pad[axis] = (3, 3)
        padded = np.pad(field, pad, mode="edge")
        blurred = np.zeros_like(field)
        for offset in range(-3, 4):
            window = [slice(None)] * field.ndim
            window[axis] = slice(3 + offset, 3 + offset + IMAGE_SIZE)
            blurred += taps[:, abs(offset), None, None, None] * padded[tuple(window)]
        field = blurred
    return field


def distance_to_segment(
    x: Floats, y: Floats, start: tuple[Floats, Floats], end: tuple[Floats, Floats]
) -> Floats:
    """Distance of every pixel to a line segment; (n, 28, 28)."""
    sx, sy = over_pixels(start[0]), over_pixels(start[1])
    dx, dy = over_pixels(end[0]) - sx, over_pixels(end[1]) - sy
    along: Floats = ((x - sx) * dx + (y - sy) * dy) / np.maximum(dx * dx + dy * dy, np.float32(1e-6))
    along = np.clip(along, 0.0, 1.0)
    return np.asarray(np.hypot(x - sx - along * dx, y - sy - along * dy), dtype=np.float32)
