"""Deals a data set to clients: a Dirichlet partition of the training part, and the test part alike.

The partition is Flower Datasets' `DirichletPartitioner` run on labels alone, so no image is loaded: class by
class, shares drawn from Dir(alpha) (paper, Section IV-A). It cuts a class in the order in which the source
holds it, where FedISCA's code mixes it first: clients whose images are neighbours may differ by more than
their classes (``docs/data.md``).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import write_bytes
from fedbicross_flwr.seeds import derive_seed, numpy_generator

Indices = NDArray[np.int64]

_REDRAWS: Final = 10
"""Fresh partitioners tried for the minimum; each draws up to 11 times itself."""


@dataclass(frozen=True)
class Partition:
    """Which image belongs to which client.

    Parameters
    ----------
    train, test : tuple of (m,) int64
        One array of indices a client, into the training and the test part.
    """

    train: tuple[Indices, ...]
    test: tuple[Indices, ...]

    @property
    def num_clients(self) -> int:
        """Number of clients N."""
        return len(self.train)

    def counts(self, labels: NDArray[np.int64], num_classes: int) -> Indices:
        """Return how many training images of each class each client holds, (N, C) int64.

        Parameters
        ----------
        labels : (n,) int64
            Labels of the training part.
        num_classes : int
            Number of classes C.
        """
        return _counts(self.train, labels, num_classes)

    def save(self, path: Path) -> None:
        """Write the partition as JSON; the file appears only when complete."""
        content = {part: [rows.tolist() for rows in getattr(self, part)] for part in ("train", "test")}
        write_bytes(path, (json.dumps(content, separators=(",", ":")) + "\n").encode())

    @classmethod
    def load(
        cls, path: Path, clients: int | None = None, images: Mapping[str, int] | None = None
    ) -> Partition:
        """Read a partition that `save` wrote.

        Parameters
        ----------
        path : Path
            The file.
        clients : int, optional
            How many clients there are.
        images : mapping, optional
            How many images there are in the parts ``train`` and ``test``.

        Raises
        ------
        FedBiCrossError
            The file is missing, is no partition, or is that of other clients or images.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            train, test = (tuple(map(_as_indices, content[part])) for part in ("train", "test"))
        except FileNotFoundError:
            raise FedBiCrossError(f"{path}: no such partition file") from None
        except (ValueError, KeyError, TypeError) as error:
            raise FedBiCrossError(f"{path}: is not a partition ({error!r}); delete it to deal anew") from None
        if len(train) != len(test) or not train:
            raise FedBiCrossError(
                f"{path}: is not a partition: training images for {len(train)} clients, test images for "
                f"{len(test)}; delete it to deal anew"
            )
        if clients not in (None, len(train)):
            raise FedBiCrossError(
                f"{path}: deals to {len(train)} clients, and there are {clients}; delete it to deal anew"
            )
        for part, shares in {"train": train, "test": test}.items():
            highest = max(int(rows.max(initial=-1)) for rows in shares)
            if images is not None and highest >= images[part]:
                raise FedBiCrossError(
                    f"{path}: deals image {highest} of the {part} part, which has {images[part]}; delete it "
                    "to deal anew"
                )
        return cls(train, test)


def _as_indices(rows: object) -> Indices:
    values = np.asarray(rows if rows else np.empty(0, np.int64))
    if values.ndim == 1 and values.dtype.kind in "iu":
        # What is too large becomes negative.
        indices = values.astype(np.int64)
        if indices.min(initial=0) >= 0:
            return indices
    raise ValueError("indices must be lists of whole numbers from 0")


def _counts(shares: tuple[Indices, ...], labels: NDArray[np.int64], num_classes: int) -> Indices:
    return np.stack([np.bincount(labels[rows], minlength=num_classes) for rows in shares]).astype(np.int64)


def dirichlet_partition(
    train_labels: NDArray[np.int64],
    test_labels: NDArray[np.int64],
    *,
    clients: int,
    alpha: float,
    min_samples: int = 10,
    balance: bool = True,
    seed: int,
) -> Partition:
    """Deal both parts to clients, with label skew set by `alpha`.

    Parameters
    ----------
    train_labels, test_labels : (n,) int64
        Labels of the two parts.
    clients : int
        Number of clients N.
    alpha : float
        Concentration of the Dirichlet distribution, above 0: small is skewed. ``inf`` deals every class in
        equal shares (independent and identically distributed clients).
    min_samples : int
        Least number of training images a client must get (default 10, FedISCA's); the shares are redrawn
        up to 110 times until it holds.
    balance : bool
        A client that already holds more than n/N images takes no more of the later classes (default True,
        FedISCA's). Without effect at ``alpha = inf``.
    seed : int
        The run's seed.

    Returns
    -------
    Partition
        Every training and test index once. Each client's indices are in a seeded random order, so that its
        first tenth, the local validation split, is no sorted slice.

    Raises
    ------
    FedBiCrossError
        A setting is out of range, or the minimum cannot be met.
    """
    _check(len(train_labels), clients, alpha, min_samples)
    if np.isinf(alpha):
        shares = _equal_shares(train_labels, clients, seed)
        if min(map(len, shares)) < min_samples:
            raise _infeasible(alpha, clients, min_samples)
    else:
        shares = _dirichlet_shares(train_labels, clients, alpha, min_samples, balance, seed)
    train = tuple(
        numpy_generator(seed, "partition/order", client).permutation(rows)
        for client, rows in enumerate(shares)
    )
    return Partition(train, deal_test(train_labels, test_labels, train, seed=seed))


def _check(count: int, clients: int, alpha: float, min_samples: int) -> None:
    if clients < 1:
        raise FedBiCrossError(f"partition.clients = {clients}: at least one client is needed")
    if not alpha > 0:
        raise FedBiCrossError(
            f"partition.alpha = {alpha}: must be above 0 (small is skewed, inf is equal shares)"
        )
    if min_samples < 1:
        raise FedBiCrossError(f"partition.min_samples = {min_samples}: a client needs at least one image")
    if count < clients * min_samples:
        raise FedBiCrossError(
            f"partition.clients = {clients} with partition.min_samples = {min_samples} need "
            f"{clients * min_samples} training images, the data has {count}; lower one of the two"
        )


def _infeasible(alpha: float, clients: int, min_samples: int) -> FedBiCrossError:
    return FedBiCrossError(
        f"partition.min_samples = {min_samples} could not be met for {clients} clients at partition.alpha = "
        f"{alpha:g}; lower partition.min_samples or partition.clients, or raise partition.alpha"
    )


def _dirichlet_shares(
    labels: NDArray[np.int64], clients: int, alpha: float, min_samples: int, balance: bool, seed: int
) -> tuple[Indices, ...]:
    # Imported here since it pulls in `datasets`, pandas and pyarrow: about 10 seconds that whoever reads a
    # saved partition need not wait. The partitioner itself neither downloads nor reports anything
    # (`FederatedDataset` would), and rows are only numbered, so no progress bar is drawn either.
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner

    rows = Dataset.from_dict({"idx": np.arange(len(labels)), "label": labels})
    for attempt in range(_REDRAWS):
        partitioner = DirichletPartitioner(
            num_partitions=clients,
            partition_by="label",
            alpha=float(alpha),
            min_partition_size=min_samples,
            self_balancing=balance,
            shuffle=False,
            seed=derive_seed(seed, "partition", round=attempt) % 2**32,
        )
        partitioner.dataset = rows
        try:
            # It warns at each redraw, and at a tiny alpha divides zero by zero; both are dealt with below.
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                dealt = [partitioner.load_partition(client)["idx"] for client in range(clients)]
        except ValueError:
            continue
        shares = tuple(np.asarray(indices, dtype=np.int64) for indices in dealt)
        if np.array_equal(np.sort(np.concatenate(shares)), np.arange(len(labels))):
            return shares
    raise _infeasible(alpha, clients, min_samples)


def _equal_shares(labels: NDArray[np.int64], clients: int, seed: int) -> tuple[Indices, ...]:
    """Deal round-robin, class after class without starting over, so that sizes differ by 1 at most."""
    generator = numpy_generator(seed, "partition/equal")
    order = np.concatenate(
        [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    )
    return tuple(order[client::clients] for client in range(clients))


def deal_test(
    train_labels: NDArray[np.int64],
    test_labels: NDArray[np.int64],
    train: tuple[Indices, ...],
    *,
    seed: int,
) -> tuple[Indices, ...]:
    """Deal the test part with the training partition's own class proportions (the ``local`` protocol).

    Class by class, client i gets the share n_ic / n_c of the test images that it holds of the training
    images, rounded by largest remainder; ties go to the lower client. Every test image is dealt exactly once.

    Parameters
    ----------
    train_labels, test_labels : (n,) int64
        Labels of the two parts; the test part may be empty, and has no class that training has not.
    train : tuple of (m,) int64
        The training indices of each client.
    seed : int
        The run's seed.

    Returns
    -------
    tuple of (m,) int64
        The test indices of each client, in a seeded random order.
    """
    num_classes = int(train_labels.max()) + 1
    counts = _counts(train, train_labels, num_classes)
    generator = numpy_generator(seed, "partition/test")
    pieces: list[list[Indices]] = [[] for _ in train]
    for label in range(num_classes):
        rows = generator.permutation(np.flatnonzero(test_labels == label))
        if not len(rows):
            continue
        # In whole numbers throughout: n_test * n_ic = quotient * n_c + remainder.
        quotient, remainder = np.divmod(len(rows) * counts[:, label], counts[:, label].sum())
        quotient[np.argsort(-remainder, kind="stable")[: len(rows) - quotient.sum()]] += 1
        for client, piece in enumerate(np.split(rows, np.cumsum(quotient)[:-1])):
            pieces[client].append(piece)
    empty = np.empty(0, dtype=np.int64)
    return tuple(generator.permutation(np.concatenate([empty, *dealt])) for dealt in pieces)
