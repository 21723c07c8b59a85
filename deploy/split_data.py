"""Deal one data set unequally to sites, an .npz file each: what the demo's hospitals would bring along.

Site i gets about 1/2, 1/3, ... as many images as the first, and of every class c with c mod N = i three times
as large a share, so that the sites differ in size and in mix. No image goes to two sites.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedbicross_flwr.data.partition import Partition
from fedbicross_flwr.data.source import ImageSource, Part
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.seeds import numpy_generator

Indices = NDArray[np.int64]
#: How much larger a site's share of its own classes is.
PREFERENCE = 3.0


def deal_unequally(source: ImageSource, sites: int, seed: int = 0) -> Partition:
    """Deal the images; each site has at least one training image of every class.

    Raises
    ------
    FedBiCrossError
        When a class has fewer training images than there are sites.
    """
    labels = {part: source.labels(part) for part in ("train", "test")}
    train = shares(labels["train"], sites, "train", seed)
    if any(len(np.unique(labels["train"][rows])) < source.info.num_classes for rows in train):
        raise FedBiCrossError(
            f"{source.info.source}: every site needs an image of every class, and a class has fewer than "
            f"{sites}; give a larger data set"
        )
    return Partition(train, shares(labels["test"], sites, "test", seed))


def shares(labels: Indices, sites: int, part: Part, seed: int) -> tuple[Indices, ...]:
    """Return the rows of each site, shuffled."""
    generator = numpy_generator(seed, f"deploy/{part}")
    pieces: list[list[Indices]] = [[] for _ in range(sites)]
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        weights = 1.0 / np.arange(1, sites + 1)
        weights[int(label) % sites] *= PREFERENCE
        # One for each site first, then by weight; the last cut is the end, so all are dealt.
        spare = max(len(rows) - sites, 0)
        cuts = np.arange(1, sites + 1) + np.rint(np.cumsum(weights) / weights.sum() * spare).astype(np.int64)
        for site, piece in enumerate(np.split(rows, cuts[:-1])):
            pieces[site].append(piece)
    return tuple(generator.permutation(np.concatenate(piece)) for piece in pieces)


def write_sites(source: ImageSource, partition: Partition, files: list[Path]) -> None:
    """Write each site's images to its file, in MedMNIST's layout with the names of the classes."""
    for site, file in enumerate(files):
        arrays: dict[str, NDArray[np.generic]] = {"class_names": np.asarray(source.info.class_names)}
        rows: dict[Part, Indices] = {"train": partition.train[site], "test": partition.test[site]}
        for part, chosen in rows.items():
            arrays[f"{part}_images"] = source.images(part, chosen)
            arrays[f"{part}_labels"] = source.labels(part)[chosen]
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # takes any of them for allow_pickle
