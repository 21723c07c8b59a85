"""A site's own images as a folder: ``train/<class>/*.png``, ``test/<class>/*.png``, optionally ``val``."""

from __future__ import annotations

import hashlib
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fedbicross_flwr.data.source import IMAGE_SIZE, DatasetInfo, Part, checked_indices
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import composed, is_text, reading, refuse_pipe

SUFFIXES: Final = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
FORMATS: Final = ("BMP", "JPEG", "PNG", "TIFF")
"""What is decoded, whatever a file's ending says: Pillow would hand EPS to another program."""

_SPLITS: Final[dict[Part, tuple[str, ...]]] = {"train": ("train", "val"), "test": ("test",)}
GRAY_MODES: Final = ("1", "L", "LA")
COLOUR_MODES: Final = ("P", "RGB", "RGBA", "CMYK", "YCbCr")


@dataclass(frozen=True)
class FolderSource:
    """A folder that has passed `open_folder`'s checks; an `ImageSource`.

    Parameters
    ----------
    path : Path
        The folder.
    info : DatasetInfo
        The facts about it.
    files : dict
        (file, label) pairs of each part, in the order of the labels and names; ``val`` behind ``train``.
    """

    path: Path
    info: DatasetInfo
    files: dict[Part, tuple[tuple[Path, int], ...]]

    def labels(self, part: Part) -> NDArray[np.int64]:
        """Return the labels of one part, (n,) int64."""
        return np.asarray([label for _, label in self.files[part]], dtype=np.int64)

    def images(self, part: Part, indices: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Read images of one part, (m, 28, 28, channels) uint8, in the order of `indices` (default all).

        Raises
        ------
        FedBiCrossError
            A file cannot be decoded; the message names it.
        """
        chosen = checked_indices(indices, len(self.files[part]))
        mode = "L" if self.info.channels == 1 else "RGB"
        images = np.empty((len(chosen), IMAGE_SIZE, IMAGE_SIZE, self.info.channels), dtype=np.uint8)
        for row, index in enumerate(chosen):
            with opened(self.files[part][index][0]) as image:
                images[row] = np.asarray(image.convert(mode)).reshape(images.shape[1:])
        return images

    def fingerprint(self) -> str:
        """Return a digest of the files' relative names, sizes and bytes."""
        digest = hashlib.sha256()
        for part in sorted(self.files):
            for file, _ in self.files[part]:
                with reading(file):
                    content = file.read_bytes()
                said = f"{file.relative_to(self.path).as_posix()}|{len(content)}|"
                # A name need not be UTF-8.
                digest.update(said.encode("utf-8", "surrogateescape"))
                digest.update(content)
        return digest.hexdigest()[:16]


def open_folder(path: Path, *, name: str, licence: str) -> FolderSource:
    """Check a folder of images and return it as a source; every image is opened and decoded once.

    Classes are the sorted names of the folders in ``train``. Images are grayscale if every file is, else
    all are read as RGB. Files with other endings than `SUFFIXES`, and hidden ones, are passed over.

    Raises
    ------
    FedBiCrossError
        No ``train`` folder, fewer than two classes, an empty class, a class in ``val`` or ``test`` that
        ``train`` has not, an unreadable folder or image, or one that is not 28x28 pixels of 8 bits, or
        several in a file.
    """
    check_layout(path)
    classes = class_folders(path / "train")
    if len(classes) < 2:
        found = f"one class folder ('{classes[0]}')" if classes else "no class folder"
        raise FedBiCrossError(f"{path / 'train'}: {found} in it; at least two classes are needed")

    def complaint(folder: Path) -> str:
        return f"class '{class_of(folder)}' has no folder in {folder.parent.with_name('train')}"

    files = labelled_files(path, classes, complaint)
    present = {label for _, label in files["train"]}
    for label, class_name in enumerate(classes):
        if label not in present:
            raise FedBiCrossError(
                f"{path / 'train' / class_name}: no image in it (endings {', '.join(SUFFIXES)}); every class "
                "needs training images"
            )
    channels, has_test = common_channels(files), bool(files["test"])
    info = DatasetInfo(name, classes, channels, IMAGE_SIZE, licence, str(path), has_test)
    return FolderSource(path, info, files)


def check_layout(path: Path) -> None:
    """Check that there is a folder of training images.

    Raises
    ------
    FedBiCrossError
        When there is none, or it cannot be looked at.
    """
    if not is_folder(path / "train"):
        raise FedBiCrossError(
            f"{path}: no folder 'train' in it; expected train/<class>/*.png and test/<class>/*.png"
        )


def labelled_files(
    path: Path, classes: Sequence[str], complaint: Callable[[Path], str]
) -> dict[Part, tuple[tuple[Path, int], ...]]:
    """List the image files of each part with their labels, in the order of the labels and names.

    Parameters
    ----------
    path : Path
        The folder that holds the splits; one that is not there has no files.
    classes : sequence of str
        The names of the classes in the order of their labels.
    complaint : callable
        Says what is wrong with a folder that is none of the classes.

    Raises
    ------
    FedBiCrossError
        For such a folder, or one that cannot be looked at.
    """
    label_of = {composed(class_name): label for label, class_name in enumerate(classes)}

    def files_in(split: Path) -> Iterator[tuple[Path, int]]:
        folders = subfolders(split) if is_folder(split) else []
        for folder in folders:
            if class_of(folder) not in label_of:
                raise FedBiCrossError(f"{folder}: {complaint(folder)}")
        for folder in sorted(folders, key=lambda one: label_of[class_of(one)]):
            yield from ((file, label_of[class_of(folder)]) for file in entries(folder) if is_image(file))

    return {
        part: tuple(pair for split in splits for pair in files_in(path / split))
        for part, splits in _SPLITS.items()
    }


def common_channels(files: Mapping[Part, Sequence[tuple[Path, int]]]) -> int:
    """Check every image's header; return 1 if all are grayscale, else 3.

    Raises
    ------
    FedBiCrossError
        See `check_image`.
    """
    modes = {check_image(file) for pairs in files.values() for file, _ in pairs}
    return 1 if modes <= {*GRAY_MODES} else 3


def entries(folder: Path) -> list[Path]:
    """Return what lies in a folder, by name; hidden files are nobody's concern."""
    with reading(folder):
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def is_folder(path: Path) -> bool:
    """Return whether there is such a folder.

    Raises
    ------
    FedBiCrossError
        When it cannot be looked at.
    """
    with reading(path):
        return path.is_dir()


def is_image(file: Path) -> bool:
    """Return whether a file counts as an image, by its ending."""
    return file.suffix.lower() in SUFFIXES


def class_of(folder: Path) -> str:
    """Return the name of the class whose images a folder holds."""
    return composed(folder.name)


def class_folders(split: Path) -> tuple[str, ...]:
    """Return the sorted names of the classes that have a folder in a split's.

    Raises
    ------
    FedBiCrossError
        See `subfolders`.
    """
    return tuple(sorted(map(class_of, subfolders(split))))


def subfolders(folder: Path) -> list[Path]:
    """Return the folders of the classes in a split's folder, by name.

    Raises
    ------
    FedBiCrossError
        When they cannot be looked at, the name of one is no text, or two have the name of one class.
    """
    found = [entry for entry in entries(folder) if is_folder(entry)]
    known: set[str] = set()
    for entry in found:
        if not is_text(entry.name):
            raise FedBiCrossError(f"{entry}: the name of this class is no text in UTF-8; rename the folder")
        if class_of(entry) in known:
            raise FedBiCrossError(
                f"{folder}: two folders have the name '{class_of(entry)}', written in two ways of Unicode; "
                "move the images of one into the other"
            )
        known.add(class_of(entry))
    return found


@contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """Open an image; whatever is wrong with the file becomes one line that names it."""
    try:
        # A file cut short may only warn before it fails; the line below says all there is to say.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refuse_pipe(file)
            with Image.open(file, formats=FORMATS) as image:
                yield image
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, UnidentifiedImageError):
            reason = f"not an image of the kinds {', '.join(FORMATS)}"
        raise FedBiCrossError(
            f"{file}: cannot be read as an image ({reason}); replace or remove it"
        ) from None


def check_image(file: Path) -> str:
    """Return the image's Pillow mode after checking that it is one image, its size, depth, and all of it.

    Raises
    ------
    FedBiCrossError
        When it is not one image of 28x28 pixels of 8 bits, or cannot be read.
    """
    with opened(file) as image:
        size, mode, deep, frames = image.size, image.mode, depth_problem(image), frames_in(image)
        if size == (IMAGE_SIZE, IMAGE_SIZE) and not deep and frames == 1:
            image.load()
    if size != (IMAGE_SIZE, IMAGE_SIZE):
        raise FedBiCrossError(
            f"{file}: is {size[0]}x{size[1]} pixels; resize the images to {IMAGE_SIZE}x{IMAGE_SIZE}"
        )
    if deep:
        raise FedBiCrossError(
            f"{file}: has pixels of mode {deep}; save it with 8 bits a channel, grayscale or RGB"
        )
    if frames > 1:
        raise FedBiCrossError(
            f"{file}: holds {frames} images, and one a file is read; save each that is meant in its own file"
        )
    return mode


def frames_in(image: Image.Image) -> int:
    """Return how many images a file holds: a TIFF has pages, a PNG may be animated, and the first is read.

    Raises
    ------
    OSError
        When they cannot be counted.
    """
    try:
        return int(getattr(image, "n_frames", 1))
    except (EOFError, LookupError, TypeError, struct.error) as error:  # Pillow's, at a page that is cut short
        raise OSError(f"its pages cannot be counted: {error}") from error


def depth_problem(image: Image.Image) -> str:
    """Return the mode of an image that is not one of 8 bits a channel; nothing for one that is.

    Of 16-bit colour Pillow keeps the upper half of each value and calls it 8-bit: only how it would decode
    the file tells. Call it before the pixels are loaded.
    """
    if image.mode not in GRAY_MODES and image.mode not in COLOUR_MODES:
        return image.mode
    if image.format == "BMP":  # 16 bits a pixel there are five or six a channel
        return ""
    # After the raw mode, such as RGB;16B of a PNG, in the codec's arguments.
    raw = re.search(r"\w+;16\w*", str(getattr(image, "tile", "")))
    return raw.group() if raw else ""
