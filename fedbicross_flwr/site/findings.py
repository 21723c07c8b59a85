"""Reads all of a site's own images and gathers whatever is wrong, for `fedbicross_flwr.site.check`.

The readers in `fedbicross_flwr.data` stop at the first thing that is wrong; these use their pieces and go on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedbicross_flwr.data.folder import (
    GRAY_MODES,
    SUFFIXES,
    class_folders,
    class_of,
    depth_problem,
    entries,
    frames_in,
    is_folder,
    is_image,
    opened,
    subfolders,
)
from fedbicross_flwr.data.npz import array_names, read_chunks
from fedbicross_flwr.data.packed import (
    check_classes,
    check_images,
    present_splits,
    read_class_names,
    read_labels,
)
from fedbicross_flwr.data.source import IMAGE_SIZE
from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.report.units import count
from fedbicross_flwr.site.data import check_labels

SPLITS: Final = ("train", "val", "test")
NAMED: Final = 20
"""Files that one line names; of more, it gives the number."""

Result = TypeVar("Result")


@dataclass
class Findings:
    """What was found; filled while looking.

    Parameters
    ----------
    images : dict
        Split -> class -> images that can be used.
    sizes : Counter
        Images by size, such as ``28x28``.
    channels : int
        1 or 3; 0 while no image could be read.
    prints : dict
        Split -> (where an image is, digest of its pixels in RGB).
    problems : list of str
        One line each: the data cannot be used before they are mended.
    notes : list of str
        One line each: worth knowing, no hindrance.
    """

    images: dict[str, Counter[str]] = field(default_factory=dict)
    sizes: Counter[str] = field(default_factory=Counter)
    channels: int = 0
    prints: dict[str, list[tuple[str, bytes]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, look: Callable[[], Result]) -> Result | None:
        """Return what `look` returns; if it refuses the data, note that as a problem and return None."""
        try:
            return look()
        except FedBiCrossError as error:
            self.problems.append(str(error))
            return None

    def blame(self, files: Sequence[str], what: str) -> None:
        """Note a problem of several files in one line; without files there is none."""
        if files:
            self.problems.append(f"{count(len(files), 'file')} {what}: {named(files)}")


def named(words: Iterable[str], limit: int = NAMED) -> str:
    """Return words with commas between them, and how many more than `limit` there are."""
    everything = list(words)
    rest = len(everything) - limit
    return ", ".join(everything[:limit]) + (f", and {rest:,} more" if rest > 0 else "")


def look_at_folder(path: Path, found: Findings, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Read every image of a folder, and return its own classes; `classes` are the federation's."""
    if not is_folder(path / "train"):
        found.problems.append(
            f"{path}: no folder 'train' in it; expected train/<class>/*.png and test/<class>/*.png"
        )
        return ()
    own = class_folders(path / "train")
    look = FolderLook(path, found)
    for split in (split for split in SPLITS if is_folder(path / split)):
        found.images[split], found.prints[split] = Counter(), []
        found.attempt(partial(look.at_split, split))
        for stranger in sorted(found.images[split].keys() - {*own, *(classes or ())}):
            found.problems.append(
                f"{path / split}: class '{stranger}' has no folder in train{near_names(stranger, own)}"
            )
    look.conclude()
    return own


@dataclass
class FolderLook:
    """The files of one folder, sorted by what is wrong with them."""

    path: Path
    found: Findings
    broken: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)
    deep: list[str] = field(default_factory=list)
    several: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)

    def at_split(self, split: str) -> None:
        """Look at the folders of all classes in one split."""
        folders = subfolders(self.path / split)
        for entry in entries(self.path / split):
            if entry in folders:
                self.found.attempt(partial(self.at_class, split, entry))
            else:
                self.passed.append(self.name(entry))

    def at_class(self, split: str, folder: Path) -> None:
        """Look at the files of one class."""
        class_name = class_of(folder)
        self.found.images[split][class_name] = 0
        for file in entries(folder):
            if not is_image(file):
                self.passed.append(self.name(file))
            elif (print_ := self.at_image(file)) is not None:
                self.found.images[split][class_name] += 1
                self.found.prints[split].append((self.name(file), print_))

    def at_image(self, file: Path) -> bytes | None:
        """Return the digest of an image's pixels, or None when it cannot be used."""
        try:
            with opened(file) as image:
                deep, frames = depth_problem(image), frames_in(image)
                image.load()
                self.found.sizes[f"{image.width}x{image.height}"] += 1
                if image.size != (IMAGE_SIZE, IMAGE_SIZE):
                    self.misfits.append(f"{self.name(file)} ({image.width}x{image.height})")
                elif deep:
                    self.deep.append(f"{self.name(file)} (mode {deep})")
                elif frames > 1:
                    self.several.append(f"{self.name(file)} ({frames})")
                else:
                    pixels = np.asarray(image.convert("RGB"))
                    self.modes["gray" if image.mode in GRAY_MODES else "colour"] += 1
                    return fingerprint(pixels)
        except FedBiCrossError:
            self.broken.append(self.name(file))
        return None

    def name(self, file: Path) -> str:
        """Return a file's name below the folder."""
        return file.relative_to(self.path).as_posix()

    def conclude(self) -> None:
        """Turn what was sorted into problems and notes."""
        found, size = self.found, f"{IMAGE_SIZE}x{IMAGE_SIZE}"
        found.blame(self.broken, "cannot be read as an image; replace or remove")
        found.blame(self.misfits, f"of another size; resize to {size} pixels")
        found.blame(self.deep, "without 8 bits a channel; save as grayscale or RGB with 8 bits")
        found.blame(self.several, "with several images in it; save each that is meant in its own file")
        if self.passed:
            found.notes.append(
                f"passed over, as not in a class folder or without an ending of {', '.join(SUFFIXES)}: "
                f"{named(self.passed)}"
            )
        gray, colour = self.modes["gray"], self.modes["colour"]
        found.channels = 3 if colour else 1 if gray else 0
        if gray and colour:
            found.notes.append(f"{gray:,} of {gray + colour:,} images are grayscale; all are read as RGB")


def look_at_packed(path: Path, found: Findings, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Read every image of an .npz file, and return its classes: the federation's where it names none."""
    arrays = found.attempt(lambda: array_names(path))
    splits = found.attempt(partial(present_splits, path, arrays)) if arrays is not None else None
    if arrays is None or splits is None:
        return ()
    channels: dict[str, int] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    for split in splits:
        kind = found.attempt(partial(check_images, path, split))
        values = found.attempt(partial(read_labels, path, split))
        if kind is not None and values is not None:
            channels[split], labels[split] = kind, values
    if len(set(channels.values())) > 1:
        has = ", ".join(f"{split}_images has {number}" for split, number in channels.items())
        found.problems.append(f"{path}: the splits differ in channels ({has}); save them all alike")
    if len(labels) < len(splits):
        return ()
    own = found.attempt(lambda: classes_of(path, labels, classes))
    if own is None:
        return ()
    found.channels = channels["train"]
    for split in splits:
        found.images[split] = Counter(own[label] for label in labels[split].tolist())
        prints = found.attempt(partial(packed_prints, path, split))
        if prints is not None:
            found.sizes[f"{IMAGE_SIZE}x{IMAGE_SIZE}"] += len(prints)
            found.prints[split] = prints
    if "class_names" not in arrays:
        found.notes.append(f"{path}: no class_names in it; labels 0, 1, ... are taken to be {', '.join(own)}")
    return own


def packed_prints(path: Path, split: str) -> list[tuple[str, bytes]]:
    """Return where each image of a split is, and the digest of its pixels."""
    images = (image for chunk in read_chunks(path, f"{split}_images") for image in chunk)
    return [(f"{split} {row}", fingerprint(image)) for row, image in enumerate(images)]


def classes_of(
    path: Path, labels: Mapping[str, NDArray[np.int64]], classes: Sequence[str] | None
) -> tuple[str, ...]:
    """Return what an .npz file's labels mean: what it says itself, or else the federation's classes.

    Whether what it says is what the federation says is for `fedbicross_flwr.site.check`.

    Raises
    ------
    FedBiCrossError
        When the labels do not fit those classes.
    """
    names = read_class_names(path) if "class_names" in array_names(path) else None
    if names is None and classes is None:
        train = np.concatenate([values for split, values in labels.items() if split != "test"])
        return check_classes(path, train, labels.get("test", np.empty(0, np.int64)), None)
    meant = names if names is not None else tuple(classes or ())
    check_labels(path, names, labels, meant)
    return meant


def fingerprint(pixels: NDArray[np.uint8]) -> bytes:
    """Return a digest of an image, (28, 28), (28, 28, 1) or (28, 28, 3); gray ones are compared as RGB."""
    shaped = pixels.reshape(IMAGE_SIZE, IMAGE_SIZE, -1)
    return hashlib.sha256(np.broadcast_to(shaped, (IMAGE_SIZE, IMAGE_SIZE, 3)).tobytes()).digest()
