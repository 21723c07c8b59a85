"""A model's answers to images that lie in a folder or an .npz file, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedbicross_flwr.artifacts import Classifier, load_model
from fedbicross_flwr.data.folder import GRAY_MODES, FolderSource, check_image
from fedbicross_flwr.data.npz import array_names, read_array, read_header
from fedbicross_flwr.data.source import IMAGE_SIZE, DatasetInfo
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.site.store import PERSONAL

CHUNK: Final = 2048
"""Images that are held and predicted at a time."""


@dataclass(frozen=True)
class Batch:
    """Images in the order of their names; ``read(rows)`` returns uint8 (m, 28, 28, channels).

    `heading` is that of the names' column: ``file``, or ``index`` for the rows of an array.
    """

    heading: str
    names: Sequence[str]
    channels: int
    read: Callable[[NDArray[np.int64]], NDArray[np.uint8]]


def model_file(path: Path) -> Path:
    """Return a model's file, given itself or a site's folder that holds a personal model.

    Raises
    ------
    FedBiCrossError
        When there is neither.
    """
    path = path.expanduser()
    if not path.exists():
        raise FedBiCrossError(f"{path}: no such file or folder; give a model file or a site's folder")
    if not path.is_dir():
        return path
    if not (path / PERSONAL).is_file():
        raise FedBiCrossError(
            f"{path}: no {PERSONAL} in it; give a model file or a site's folder, such as "
            "runs/<id>/sites/client-00"
        )
    return path / PERSONAL


def predictions(model: Path, images: Path, device: str = "auto") -> bytes:
    """Return a model's answers as CSV in UTF-8: a line an image, with its class and all probabilities.

    Parameters
    ----------
    model : Path
        See `model_file`.
    images : Path
        A folder, read with all folders in it, or an .npz file with an array ``images`` or ``test_images``.
    device : str, default "auto"
        ``auto``, ``cpu``, or a PyTorch device.

    Raises
    ------
    FedBiCrossError
        When the model or an image cannot be read, or the images are none that the model takes.
    """
    path = images.expanduser()
    classifier = load_model(model_file(model), device)
    batch = folder_batch(path) if path.is_dir() else packed_batch(path)
    if batch.channels != classifier.spec.channels:
        kind = {1: "grayscale, 1 channel", 3: "in colour, 3 channels"}
        raise FedBiCrossError(
            f"{path}: the images are {kind[batch.channels]}, but the model takes images "
            f"{kind[classifier.spec.channels]}; save them as those that it was trained on"
        )
    return as_csv(batch, classifier.class_names, answers(classifier, batch))


def answers(classifier: Classifier, batch: Batch) -> Iterator[NDArray[np.float32]]:
    """Yield probabilities, float32 (m, C), chunk after chunk."""
    for start in range(0, len(batch.names), CHUNK):
        yield classifier.predict(batch.read(np.arange(start, min(start + CHUNK, len(batch.names)))))


def folder_batch(folder: Path) -> Batch:
    """Return the images in a folder and the folders in it, by name; hidden ones are passed over.

    They are read and refused as those of a site's folder are (`fedbicross_flwr.data.folder`), but for the
    endings: a file counts as an image when Pillow has a reader for its ending.

    Raises
    ------
    FedBiCrossError
        When there is no image, one cannot be read, or one is not 28x28 pixels of 8 bits.
    """
    endings = readable_endings()
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in endings and file.is_file() and not hidden(file.relative_to(folder))
    )
    if not files:
        raise FedBiCrossError(f"{folder}: no image in it; give a folder of images or an .npz file")
    channels = 1 if {check_image(file) for file in files} <= {*GRAY_MODES} else 3
    info = DatasetInfo(folder.name, (), channels, IMAGE_SIZE, "", str(folder))
    source = FolderSource(folder, info, {"train": (), "test": tuple((file, 0) for file in files)})
    names = [file.relative_to(folder).as_posix() for file in files]
    return Batch("file", names, channels, lambda rows: source.images("test", rows))


def readable_endings() -> set[str]:
    """Return the endings that Pillow has a reader for, in lower case with their dot."""
    return {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def hidden(path: Path) -> bool:
    """Return whether a file, or a folder that it lies in, is hidden."""
    return any(part.startswith(".") for part in path.parts)


def packed_batch(path: Path) -> Batch:
    """Return the images of an .npz file: its array ``images``, or else MedMNIST's ``test_images``.

    Raises
    ------
    FedBiCrossError
        When the file is missing or damaged, has no such array, or its images are not uint8 of 28x28 pixels.
    """
    found = array_names(path)
    name = next((name for name in ("images", "test_images") if name in found), None)
    if name is None:
        raise FedBiCrossError(
            f"{path}: no array 'images' or 'test_images' in it; found {', '.join(found) or 'nothing'}"
        )
    header = read_header(path, name)
    shape = header.shape if len(header.shape) == 4 else (*header.shape, 1)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    if header.dtype != np.uint8 or shape[1:] not in ((*size, 1), (*size, 3)):
        raise FedBiCrossError(
            f"{path}: {name} is {header.dtype} of shape {header.shape}; expected uint8 of shape (n, 28, 28), "
            "(n, 28, 28, 1) or (n, 28, 28, 3)"
        )
    if not shape[0]:
        raise FedBiCrossError(f"{path}: no image in {name}")
    images: NDArray[np.uint8] = read_array(path, name).reshape(shape)
    return Batch("index", [str(row) for row in range(shape[0])], shape[3], lambda rows: images[rows])


def as_csv(batch: Batch, class_names: Sequence[str], probabilities: Iterator[NDArray[np.float32]]) -> bytes:
    """Return the table; a probability has the fewest digits that give its float32 back."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([batch.heading, "predicted", *(f"probability of {name}" for name in class_names)])
    rows = (row for chunk in probabilities for row in chunk)
    for name, row in zip(batch.names, rows, strict=True):
        writer.writerow([name, class_names[int(row.argmax())], *(str(value) for value in row)])
    # A file's name need not be UTF-8; its bytes are given back as they are.
    return text.getvalue().encode("utf-8", "surrogateescape")
