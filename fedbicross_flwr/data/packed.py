"""Images in one .npz file of MedMNIST's layout: ``{train,val,test}_{images,labels}``.

Serves the MedMNIST sets and a site's own file alike. ``val`` is optional and merged behind ``train``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedbicross_flwr.data.npz import array_names, read_array, read_header, read_rows
from fedbicross_flwr.data.source import IMAGE_SIZE, DatasetInfo, Part, checked_indices, class_names_problem
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import composed, reading

_SPLITS: Final[dict[Part, tuple[str, ...]]] = {"train": ("train", "val"), "test": ("test",)}
_ARRAYS: Final = (
    *(f"{split}_{kind}" for split in ("train", "val", "test") for kind in ("images", "labels")),
    "class_names",
)
_SHAPES: Final = "(n, 28, 28), (n, 28, 28, 1) or (n, 28, 28, 3)"


@dataclass(frozen=True)
class PackedSource:
    """An .npz file that has passed `open_packed`'s checks; an `ImageSource`.

    Parameters
    ----------
    path : Path
        The file.
    info : DatasetInfo
        The facts about it.
    split_labels : dict
        Labels of each split that the file has, (n,) int64.
    digest : str
        A digest of the file's bytes where it is known already (MedMNIST's MD5); empty: computed when asked.
    """

    path: Path
    info: DatasetInfo
    split_labels: dict[str, NDArray[np.int64]]
    digest: str = ""

    def labels(self, part: Part) -> NDArray[np.int64]:
        """Return the labels of one part, (n,) int64; the array is the caller's own."""
        found = [self.split_labels[split] for split in _SPLITS[part] if split in self.split_labels]
        return np.concatenate([np.empty(0, dtype=np.int64), *found])

    def images(self, part: Part, indices: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Read images of one part, (m, 28, 28, channels) uint8, in the order of `indices` (default all).

        Peak memory is the result's size and a few MB, however large the file is.
        """
        splits = [split for split in _SPLITS[part] if split in self.split_labels]
        chosen = checked_indices(indices, sum(len(self.split_labels[split]) for split in splits))
        images = np.empty((len(chosen), IMAGE_SIZE, IMAGE_SIZE, self.info.channels), dtype=np.uint8)
        first = 0
        for split in splits:
            end = first + len(self.split_labels[split])
            mine = np.flatnonzero((chosen >= first) & (chosen < end))
            read_rows(self.path, f"{split}_images", chosen[mine] - first, images, mine)
            first = end
        return images

    @cached_property
    def _file_digest(self) -> str:
        with reading(self.path), self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def fingerprint(self) -> str:
        """Return a digest of the file's bytes."""
        return (self.digest or self._file_digest)[:16]


def open_packed(
    path: Path,
    *,
    name: str,
    class_names: Sequence[str] | None = None,
    licence: str,
    source: str,
    digest: str = "",
) -> PackedSource:
    """Check an .npz file's layout and labels and return it as a source; no image is read.

    Parameters
    ----------
    path : Path
        The file.
    name, licence, source : str
        Facts for `DatasetInfo`.
    class_names : sequence of str, optional
        Names of the classes; without, the file's ``class_names`` array, else ``"class 0"`` and so on.
    digest : str
        The file's digest where it is known already.

    Raises
    ------
    FedBiCrossError
        The file is missing or damaged, arrays are missing, or shapes, dtypes or labels do not fit.
    """
    channels, labels = read_splits(path)
    if class_names is None and "class_names" in array_names(path):
        class_names = read_class_names(path)
    train = np.concatenate([labels[split] for split in labels if split != "test"])
    classes = check_classes(path, train, labels.get("test", np.empty(0, np.int64)), class_names)
    info = DatasetInfo(
        name=name,
        class_names=classes,
        channels=channels,
        size=IMAGE_SIZE,
        licence=licence,
        source=source,
        has_test=len(labels.get("test", ())) > 0,
    )
    return PackedSource(path, info, labels, digest)


def read_splits(path: Path, *, discreet: bool = False) -> tuple[int, dict[str, NDArray[np.int64]]]:
    """Return the number of channels of all images, and the labels of each split that is there.

    Parameters
    ----------
    path : Path
        The .npz file.
    discreet : bool, default False
        Whether others will read what is wrong with it; see `present_splits`.

    Raises
    ------
    FedBiCrossError
        When arrays are missing, or their shapes or types do not fit each other.
    """
    splits = present_splits(path, array_names(path), discreet=discreet)
    channels = {split: check_images(path, split) for split in splits}
    if len(set(channels.values())) > 1:
        found = ", ".join(f"{split}_images has {count}" for split, count in channels.items())
        raise FedBiCrossError(f"{path}: the splits differ in channels ({found}); save them all alike")
    return channels["train"], {split: read_labels(path, split) for split in splits}


def present_splits(path: Path, names: tuple[str, ...], *, discreet: bool = False) -> tuple[str, ...]:
    """Return the splits that an .npz file has, given the names of its arrays.

    Raises
    ------
    FedBiCrossError
        When images or labels are missing. With `discreet`, the names that are none of the layout's are only
        counted: they could be anything.
    """
    splits = tuple(
        split for split in ("train", "val", "test") if {f"{split}_images", f"{split}_labels"} & {*names}
    )
    wanted = [
        f"{split}_{kind}" for split in {"train": 0, **dict.fromkeys(splits)} for kind in ("images", "labels")
    ]
    missing = [name for name in wanted if name not in names]
    if missing:
        told = [name for name in names if name in _ARRAYS or not discreet]
        others = [f"{len(names) - len(told)} other array(s)"] if len(told) < len(names) else []
        found = ", ".join([*told, *others]) or "nothing"
        raise FedBiCrossError(
            f"{path}: missing {', '.join(missing)}; found {found}; save train_images, train_labels and, "
            "if you have them, val_* and test_*"
        )
    return splits


def check_images(path: Path, split: str) -> int:
    """Return the number of channels of a split's images."""
    name = f"{split}_images"
    header = read_header(path, name)
    if header.dtype != np.uint8:
        raise FedBiCrossError(f"{path}: {name} is {header.dtype.name}; save the images as uint8, 0 to 255")
    shape = header.shape
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise FedBiCrossError(f"{path}: {name} has shape {shape}; expected {_SHAPES}")
    if shape[1:3] != (IMAGE_SIZE, IMAGE_SIZE):
        raise FedBiCrossError(
            f"{path}: {name} holds images of {shape[1]}x{shape[2]} pixels; resize them to "
            f"{IMAGE_SIZE}x{IMAGE_SIZE}"
        )
    count = read_header(path, f"{split}_labels").shape[:1]
    if count != shape[:1]:
        raise FedBiCrossError(
            f"{path}: {shape[0]} {name} but {count[0] if count else 'a single'} {split}_labels; there must "
            "be one label an image"
        )
    return 1 if len(shape) == 3 else shape[3]


def read_labels(path: Path, split: str) -> NDArray[np.int64]:
    name = f"{split}_labels"
    header = read_header(path, name)
    if header.dtype.kind not in "iu":
        raise FedBiCrossError(f"{path}: {name} is {header.dtype.name}; labels must be integers 0, 1, 2, ...")
    if len(header.shape) != 1 and header.shape[1:] != (1,):
        raise FedBiCrossError(
            f"{path}: {name} has shape {header.shape}; expected (n,) or (n, 1): one label an image "
            "(multi-label sets are not supported)"
        )
    values = read_array(path, name).reshape(-1)
    for value in (values.min(), values.max()) if values.size else ():
        if not 0 <= int(value) <= np.iinfo(np.int64).max:
            raise FedBiCrossError(f"{path}: {name} holds the label {value}; labels must be 0, 1, 2, ...")
    return values.astype(np.int64)


def read_class_names(path: Path) -> tuple[str, ...]:
    array = read_array(path, "class_names")
    if array.dtype.kind != "U" or array.ndim != 1:
        raise FedBiCrossError(
            f"{path}: class_names is {array.dtype.name} of shape {array.shape}; expected a one-dimensional "
            "array of strings"
        )
    try:
        names = tuple(composed(str(name)) for name in array)
    except (ValueError, SystemError) as error:  # NumPy's, where a number is no letter's
        raise FedBiCrossError(f"{path}: class_names cannot be read ({error}); save it anew") from None
    if problem := class_names_problem(names):
        raise FedBiCrossError(f"{path}: {problem}; name every class once, in UTF-8")
    return names


def check_classes(
    where: Path, train: NDArray[np.int64], test: NDArray[np.int64], names: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the class names after checking that training data has every class, and test data no other.

    Raises
    ------
    FedBiCrossError
        No training image, a single class, a class without a training image, or a label without a class.
    """
    if not train.size:
        raise FedBiCrossError(f"{where}: there is no training image")
    highest = int(train.max())
    count = len(names) if names is not None else highest + 1
    if highest >= count:
        raise FedBiCrossError(
            f"{where}: training label {highest} but class_names lists {count} classes (0..{count - 1})"
        )
    if count < 2:
        raise FedBiCrossError(f"{where}: training data has a single class; at least two are needed")
    present = np.unique(train)
    if len(present) < count:
        # The gap is found among the present labels, since a stray huge label would make 0..count-1 huge.
        gap = next(label for label in range(count) if label >= len(present) or present[label] != label)
        named = f" ({names[gap]})" if names is not None else ""
        raise FedBiCrossError(
            f"{where}: class {gap}{named} has no training image, though {count} classes are expected; number "
            "the labels 0, 1, 2, ... without gaps"
        )
    if test.size and int(test.max()) >= count:
        raise FedBiCrossError(
            f"{where}: test label {int(test.max())} does not occur in the training data (0..{count - 1})"
        )
    return tuple(names) if names is not None else tuple(f"class {label}" for label in range(count))
