"""The embedded data set: blood-smear phantoms drawn on the spot, from a seed, with no file and no download.

Eight classes with BloodMNIST's names and imbalance. Image i of a part has a generator of its own, so a
client draws just the images it holds and gets the same pixels as everyone else would.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedbicross_flwr.data.cell_types import CELL_TYPES, CLASS_NAMES
from fedbicross_flwr.data.phantom_render import NUM_NORMAL, NUM_UNIFORM, Draws, render
from fedbicross_flwr.data.source import IMAGE_SIZE, DatasetInfo, Part, checked_indices
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.seeds import derive_seed, numpy_generator

DEFAULT_TRAIN: Final = 6000
DEFAULT_TEST: Final = 1500
DRAWING: Final = 1
"""Version of the drawing; raise it with any change of pixels, so that no run is resumed on other images."""

_NOISE = np.float32(0.022)
_LUMA = np.asarray([0.299, 0.587, 0.114], dtype=np.float32)
# Drawn in blocks that fit the processor's cache, which is faster than all at once.
_BLOCK = 128


def class_counts(total: int) -> NDArray[np.int64]:
    """Return BloodMNIST's class proportions scaled to `total` images (largest remainder, at least 1 each).

    Returns
    -------
    (8,) int64, summing to `total` (which must be 8 or more).
    """
    weights: NDArray[np.float64] = np.asarray([cell.train_count for cell in CELL_TYPES], dtype=np.float64)
    exact = weights / weights.sum() * (total - len(weights))
    counts: NDArray[np.int64] = 1 + np.floor(exact).astype(np.int64)
    counts[np.argsort(-(exact % 1.0), kind="stable")[: total - counts.sum()]] += 1
    return counts


@dataclass(frozen=True)
class PhantomSource:
    """Blood-smear phantoms; an `ImageSource`.

    Parameters
    ----------
    train, test : int
        Number of images of each part (defaults 6,000 and 1,500; at least 8 each).
    channels : int
        3 for RGB (default), 1 for its luminance.
    seed : int
        Seed of labels and pixels.

    Raises
    ------
    FedBiCrossError
        A size below 8, or channels other than 1 and 3.
    """

    train: int = DEFAULT_TRAIN
    test: int = DEFAULT_TEST
    channels: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot be drawn."""
        for key, size in (("data.phantom_train", self.train), ("data.phantom_test", self.test)):
            if size < len(CELL_TYPES):
                raise FedBiCrossError(
                    f"{key} = {size}: the phantom needs at least one image a class, so 8 or more"
                )
        if self.channels not in (1, 3):
            raise FedBiCrossError(
                f"data.phantom_channels = {self.channels}: give 3 for RGB or 1 for grayscale"
            )

    @cached_property
    def info(self) -> DatasetInfo:
        """The facts about the phantom."""
        return DatasetInfo(
            name="phantom",
            class_names=CLASS_NAMES,
            channels=self.channels,
            size=IMAGE_SIZE,
            licence="Apache-2.0",
            source="drawn by fedbicross_flwr.data.phantom",
        )

    def labels(self, part: Part) -> NDArray[np.int64]:
        """Return the labels of one part, (n,) int64: fixed class counts in a seeded order."""
        counts = class_counts(self.train if part == "train" else self.test)
        ordered = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        return numpy_generator(self.seed, f"phantom/{part}/labels").permutation(ordered)

    def images(self, part: Part, indices: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Draw images of one part, (m, 28, 28, channels) uint8, in the order of `indices` (default all)."""
        labels = self.labels(part)
        chosen = checked_indices(indices, len(labels))
        key = derive_seed(self.seed, f"phantom/{part}/pixels")
        images = np.empty((len(chosen), IMAGE_SIZE, IMAGE_SIZE, self.channels), dtype=np.uint8)
        for start in range(0, len(chosen), _BLOCK):
            block = chosen[start : start + _BLOCK]
            images[start : start + _BLOCK] = self._draw(key, block, labels[block])
        return images

    def _draw(self, key: int, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        pixels = IMAGE_SIZE * IMAGE_SIZE
        uniform = np.empty((len(indices), NUM_UNIFORM), dtype=np.float32)
        normal = np.empty((len(indices), NUM_NORMAL + pixels * (1 + self.channels)), dtype=np.float32)
        for row, index in enumerate(indices):
            # Philox is counter-based: with the index in the highest word, images are 2**192 numbers apart.
            generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, int(index)]))
            generator.random(out=uniform[row], dtype=np.float32)
            generator.standard_normal(out=normal[row], dtype=np.float32)
        shape = (len(indices), IMAGE_SIZE, IMAGE_SIZE)
        texture = normal[:, NUM_NORMAL : NUM_NORMAL + pixels].reshape(shape)
        picture = render(labels, Draws(uniform, normal[:, :NUM_NORMAL], texture))
        if self.channels == 1:
            red, green, blue = (weight * picture[..., k] for k, weight in enumerate(_LUMA))
            picture = (red + green + blue)[..., None]
        noise = normal[:, NUM_NORMAL + pixels :].reshape(*shape, self.channels)
        return np.rint(np.clip(picture + _NOISE * noise, 0.0, 1.0) * np.float32(255)).astype(np.uint8)

    def fingerprint(self) -> str:
        """Return a digest of the settings, which with the drawing's version determine every pixel."""
        settings = f"phantom/{DRAWING}/{self.train}/{self.test}/{self.channels}/{self.seed}"
        return hashlib.sha256(settings.encode()).hexdigest()[:16]
