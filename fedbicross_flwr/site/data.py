"""A site's own images as a federation needs them.

A simulation's data set says itself which classes there are. Here the federation's settings do: a site may
lack a class, a folder's classes are found by their names, and what does not fit is refused before training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedbicross_flwr.client import ClientImages
from fedbicross_flwr.data.folder import (
    SUFFIXES,
    FolderSource,
    check_layout,
    class_of,
    common_channels,
    labelled_files,
)
from fedbicross_flwr.data.npz import array_names
from fedbicross_flwr.data.packed import PackedSource, read_class_names, read_splits
from fedbicross_flwr.data.site import SITE_LICENCE
from fedbicross_flwr.data.source import IMAGE_SIZE, DatasetInfo, ImageSource, Part, normalise
from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.files import expanded, reading
from fedbicross_flwr.labelled_images import LabelledImages
from fedbicross_flwr.seeds import numpy_generator


def site_images(
    path: Path, classes: Sequence[str], channels: int, seed: int = 0, client: int = 0
) -> ClientImages:
    """Read a site's images; its test images, if it has any, serve the ``local`` protocol.

    Parameters
    ----------
    path : Path
        An .npz file in MedMNIST's layout or a folder with ``train/<class>/``; ``~`` is expanded.
    classes : sequence of str
        The federation's classes in the order of their labels.
    channels : int
        The federation's channels.
    seed, client : int
        For the order of images that lie class by class: the first of them serve as validation images. Images
        in any other order are taken as they lie.

    Raises
    ------
    FedBiCrossError
        When the data are missing or damaged, or do not fit the federation; the message says which and why.
    """
    source = open_site_source(path, classes)
    check_channels(path, source.info.channels, channels)
    order = training_order(source.labels("train"), seed, client)
    tests = {"local": labelled(source, "test")} if source.info.has_test else {}
    return ClientImages(labelled(source, "train", order), tests, source.fingerprint())


def training_order(labels: NDArray[np.int64], seed: int, client: int) -> NDArray[np.int64]:
    """Return the order in which training images are taken, as row numbers; see `site_images`."""
    rows = np.arange(len(labels))
    if lies_class_by_class(labels):
        return numpy_generator(seed, "site-order", client).permutation(rows)
    return rows


def check_channels(path: Path, found: int, agreed: int) -> None:
    """Hold the channels of a site's images against the federation's.

    Raises
    ------
    FedBiCrossError
        When they differ.
    """
    if found != agreed:
        raise FedBiCrossError(
            f"{path}: the images have {found} channel(s), but deployment.channels = {agreed}; save them as "
            "the federation agreed on"
        )


def open_site_source(path: Path, classes: Sequence[str]) -> ImageSource:
    """Open a site's data with the federation's classes; no image is read.

    Raises
    ------
    FedBiCrossError
        See `site_images`.
    """
    path = expanded(path)
    with reading(path):
        present, folder = path.exists(), path.is_dir()
    if not present:
        raise FedBiCrossError(
            f"{path}: no such file or folder; set data-path to an .npz file or a folder with train/<class>/"
        )
    return open_folder_as(path, classes) if folder else open_packed_as(path, classes)


def open_packed_as(path: Path, classes: Sequence[str]) -> PackedSource:
    """Open an .npz file whose labels are the federation's.

    Without an array ``class_names`` only the number of classes can be compared, so every class must occur.
    """
    channels, labels = read_splits(path, discreet=True)
    check_labels(
        path, read_class_names(path) if "class_names" in array_names(path) else None, labels, classes
    )
    has_test = bool(len(labels.get("test", ())))
    return PackedSource(path, site_info(path, classes, channels, has_test), labels)


def check_labels(
    path: Path, names: Sequence[str] | None, labels: Mapping[str, NDArray[np.int64]], classes: Sequence[str]
) -> None:
    """Hold the labels of an .npz file, by split, and the names that it gives them against the classes.

    Raises
    ------
    FedBiCrossError
        When they do not mean the same, or there is nothing to train on.
    """
    present = {int(label) for values in labels.values() for label in np.unique(values)}
    if names is not None:
        if commas := [name for name in names if "," in name]:
            raise FedBiCrossError(
                f"{path}: class_names has {commas[0]!r}, but in deployment.class_names a comma ends a name; "
                "rename the class, at all sites alike"
            )
        if tuple(names) != tuple(classes):
            raise FedBiCrossError(
                f"{path}: class_names is {listed(names)}, but the federation's classes are "
                f"{listed(classes)}; names and order must be the same"
            )
    elif len(present) != len(classes):
        raise FedBiCrossError(
            f"{path}: {len(present)} classes occur in its labels, but the federation has {len(classes)} "
            f"({listed(classes)}); add an array class_names that says what the labels mean"
        )
    if max(present, default=0) >= len(classes):
        raise FedBiCrossError(
            f"{path}: label {max(present)} found, but the federation's {len(classes)} classes are 0 to "
            f"{len(classes) - 1}; number the labels as deployment.class_names does"
        )
    if not sum(len(values) for split, values in labels.items() if split != "test"):
        raise FedBiCrossError(f"{path}: there is no training image")


def open_folder_as(path: Path, classes: Sequence[str]) -> FolderSource:
    """Open a folder; a class folder's label is the place of its name among the federation's classes."""
    check_layout(path)

    def complaint(folder: Path) -> str:
        near = near_names(class_of(folder), classes)
        return f"is none of the federation's classes{near}; they are {listed(classes)}"

    files = labelled_files(path, classes, complaint)
    if not files["train"]:
        raise FedBiCrossError(f"{path / 'train'}: no image in it (endings {', '.join(SUFFIXES)})")
    info = site_info(path, classes, common_channels(files), bool(files["test"]))
    return FolderSource(path, info, files)


def site_info(path: Path, classes: Sequence[str], channels: int, has_test: bool) -> DatasetInfo:
    """Return the facts about a site's data."""
    return DatasetInfo(
        path.stem, tuple(classes), channels, IMAGE_SIZE, SITE_LICENCE, str(path), has_test=has_test
    )


def listed(names: Sequence[str]) -> str:
    """Return names as a message lists them."""
    return ", ".join(names)


def lies_class_by_class(labels: NDArray[np.int64]) -> bool:
    """Return whether images lie class by class, once or, with validation images behind, twice."""
    present = len(np.unique(labels))
    return present > 1 and int(np.count_nonzero(np.diff(labels))) < 2 * present


def labelled(source: ImageSource, part: Part, order: NDArray[np.int64] | None = None) -> LabelledImages:
    """Read images and labels of a part, in an order of their rows."""
    labels = source.labels(part)
    rows = np.arange(len(labels)) if order is None else order
    return LabelledImages(normalise(source.images(part, rows)), torch.from_numpy(labels[rows]))
