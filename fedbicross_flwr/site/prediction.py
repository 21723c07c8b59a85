"""A model's answers to images that lie in a folder or an .npz file, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from fedbicross_flwr.artifacts import load_model
from fedbicross_flwr.data.folder import GRAY_MODES, FolderSource, check_image, is_folder
from fedbicross_flwr.data.npz import array_names, read_chunks, read_header
from fedbicross_flwr.data.source import IMAGE_SIZE, DatasetInfo
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import expanded, reading, shown
from fedbicross_flwr.report.units import count
from fedbicross_flwr.site.store import PERSONAL

CHUNK: Final = 2048
"""Images that are held and predicted at a time."""


@dataclass(frozen=True)
class Batch:
    """Images in the order of their names; `chunks` gives them once, uint8 (m, 28, 28, channels) at a time.

    `heading` is that of the names' column: ``file``, or ``index`` for the rows of an array.
    """

    heading: str
    names: Sequence[str]
    channels: int
    chunks: Iterator[NDArray[np.uint8]]


def model_file(path: Path) -> Path:
    """Return a model's file, given itself or a site's folder that holds a personal model.

    Raises
    ------
    FedBiCrossError
        When there is neither.
    """
    path = expanded(path)
    with reading(path):
        present = path.exists()
    if not present:
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
    path = expanded(images)
    classifier = load_model(model_file(model), device)
    batch = folder_batch(path) if is_folder(path) else packed_batch(path)
    if batch.channels != classifier.spec.channels:
        kind = {1: "grayscale, 1 channel", 3: "in colour, 3 channels"}
        raise FedBiCrossError(
            f"{path}: the images are {kind[batch.channels]}, but the model takes images "
            f"{kind[classifier.spec.channels]}; save them as those that it was trained on"
        )
    return as_csv(batch, classifier.class_names, map(classifier.predict, batch.chunks))


def files_read(model: Path, images: Path) -> list[Path]:
    """Return the files that `predictions` reads."""
    path = expanded(images)
    return [model_file(model), *(image_files(path) if is_folder(path) else [path])]


def passed_over(images: Path) -> str:
    """Return a line on the files that `predictions` leaves unanswered for their endings, if there are any."""
    path = expanded(images)
    if not is_folder(path):
        return ""
    with reading(path):
        files = sorted(file for file in visible_files(path) if not has_image_ending(file))
    if not files:
        return ""
    example = files[0].relative_to(path).as_posix()
    return shown(
        f"{path}: {count(len(files), 'file')} passed over, without the ending of an image, such as {example}"
    )


def folder_batch(folder: Path) -> Batch:
    """Return the images in a folder and the folders in it, by name; hidden ones are passed over.

    They are read and refused as those of a site's folder are (`fedbicross_flwr.data.folder`), but for the
    endings: a file with the ending of another kind of image is refused, so that none goes unanswered.

    Raises
    ------
    FedBiCrossError
        When there is no image, one cannot be read, or one is not 28x28 pixels of 8 bits.
    """
    files = image_files(folder)
    if not files:
        raise FedBiCrossError(f"{folder}: no image in it; give a folder of images or an .npz file")
    channels = 1 if {check_image(file) for file in files} <= {*GRAY_MODES} else 3
    info = DatasetInfo(folder.name, (), channels, IMAGE_SIZE, "", str(folder))
    source = FolderSource(folder, info, {"train": (), "test": tuple((file, 0) for file in files)})
    names = [file.relative_to(folder).as_posix() for file in files]
    starts = range(0, len(files), CHUNK)
    chunks = (source.images("test", np.arange(len(files))[start : start + CHUNK]) for start in starts)
    return Batch("file", names, channels, chunks)


def image_files(folder: Path) -> list[Path]:
    """Return what a folder and the folders in it have with the ending of an image, by name."""
    with reading(folder):
        return sorted(filter(has_image_ending, visible_files(folder)))


def has_image_ending(file: Path) -> bool:
    """Return whether a file has the ending of an image."""
    return file.suffix.lower() in readable_endings()


@cache
def readable_endings() -> frozenset[str]:
    """Return the endings of images, in lower case with their dot: those that Pillow itself can decode."""
    Image.init()  # Until then Pillow knows of no kind.
    kinds = {kind for kind, (opener, _) in Image.OPEN.items() if not is_stub(opener)} - {"EPS", "WMF"}
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in kinds)


def is_stub(opener: object) -> bool:
    """Return whether Pillow knows a kind of image by name alone."""
    return isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile)


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and in all folders in it, but for hidden ones and what lies in them.

    Links to folders are followed. One that leads back to a folder which it lies in is not: what is there has
    a name already.

    Raises
    ------
    OSError
        When a folder cannot be read: what is in it would go unanswered.
    """
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        place, above = waiting.pop()
        facts = place.stat()
        if (here := (facts.st_dev, facts.st_ino)) in above:
            continue
        for entry in place.iterdir():
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                waiting.append((entry, above | {here}))
            else:
                yield entry


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
    # A copy, as PyTorch wants arrays that could be written to.
    chunks = (chunk.reshape(-1, *shape[1:]).copy() for chunk in read_chunks(path, name, CHUNK))
    return Batch("index", [str(row) for row in range(shape[0])], shape[3], chunks)


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
