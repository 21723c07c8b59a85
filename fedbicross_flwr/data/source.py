"""What every source of labelled 28x28 images offers, and how its bytes become the networks' input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from fedbicross_flwr.files import is_text

Part = Literal["train", "test"]
"""``"train"`` is the official training and validation split merged, in that order; ``"test"`` the test."""

IMAGE_SIZE: Final = 28
"""Height and width of every image, in pixels."""


@dataclass(frozen=True)
class DatasetInfo:
    """The facts about one data set that the rest of the project asks for.

    Parameters
    ----------
    name : str
        The name it is opened by, or the file's or folder's own name for a site's data.
    class_names : tuple of str
        One name a class, in the order of the labels 0..C-1.
    channels : int
        1 for grayscale, 3 for RGB.
    size : int
        Height and width in pixels (28).
    licence : str
        The licence the images are under, as their publisher states it.
    source : str
        Where the images come from: an address or a path.
    has_test : bool
        False only for a site's data that brings no test split; ``labels("test")`` is then empty.
    """

    name: str
    class_names: tuple[str, ...]
    channels: int
    size: int
    licence: str
    source: str
    has_test: bool = True

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)


@runtime_checkable
class ImageSource(Protocol):
    """A labelled set of images whose rows can be read a selection at a time."""

    @property
    def info(self) -> DatasetInfo:
        """The facts about this data set."""
        ...

    def labels(self, part: Part) -> NDArray[np.int64]:
        """Return the labels of one part, (n,) int64 in 0..C-1."""
        ...

    def images(self, part: Part, indices: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Return images of one part, (m, 28, 28, channels) uint8, in the order of `indices` (default all)."""
        ...

    def fingerprint(self) -> str:
        """Return a short hexadecimal digest of the content; a run refuses to go on with other data."""
        ...


def class_names_problem(names: Sequence[object]) -> str:
    """Return what is wrong with the names of classes, or nothing: each is a text, and its class's alone."""
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name.strip() or not is_text(name):
            return f"class_names has {name!r:.40}, which is no name"
        if name in seen:
            return f"class_names has {name!r:.40} twice"
        seen.add(name)
    return ""


def checked_indices(indices: NDArray[np.int64] | None, count: int) -> NDArray[np.int64]:
    """Return `indices` as (m,) int64, or 0..count-1 for None.

    Raises
    ------
    IndexError
        An index is negative or not below `count`: a programming error, so not a `FedBiCrossError`.
    """
    if indices is None:
        return np.arange(count, dtype=np.int64)
    chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
    if chosen.size and (chosen.min() < 0 or chosen.max() >= count):
        raise IndexError(f"image index outside 0..{count - 1}: {chosen.min()}..{chosen.max()}")
    return chosen


def normalise(images: NDArray[np.uint8]) -> torch.Tensor:
    """Scale images to [-1, 1] with mean .5 and standard deviation .5, as FedISCA's client recipe does.

    Parameters
    ----------
    images : (m, 28, 28, channels) uint8

    Returns
    -------
    (m, channels, 28, 28) float32 tensor, contiguous, on the CPU; byte b becomes 2 b / 255 - 1.
    """
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return torch.from_numpy(channels_first).to(torch.float32).mul_(2.0 / 255.0).sub_(1.0)
