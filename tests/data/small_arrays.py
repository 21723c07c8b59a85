"""Small arrays in MedMNIST's layout, for the tests of the data package."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def make_arrays(sizes: dict[str, int], classes: int = 3, channels: int | None = 3, seed: int = 0) -> Arrays:
    """Random images and labels in MedMNIST's layout; every class occurs in each split."""
    generator = np.random.default_rng(seed)
    arrays: Arrays = {}
    for split, size in sizes.items():
        shape = (size, 28, 28) if channels is None else (size, 28, 28, channels)
        arrays[f"{split}_images"] = generator.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(size) % classes).astype(np.uint8)[:, None]
    return arrays
