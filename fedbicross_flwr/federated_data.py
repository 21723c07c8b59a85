"""A data set dealt to simulated clients: who holds which images, for training and for both protocols."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedbicross_flwr.client import ClientImages
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.data.partition import Partition, dirichlet_partition
from fedbicross_flwr.data.registry import open_source
from fedbicross_flwr.data.source import ImageSource, Part, normalise
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.training import LabelledImages


def open_data(config: RunConfig) -> ImageSource:
    """Open the configured data set; reads labels and headers, no images.

    Raises
    ------
    FedBiCrossError
        When the data set is unknown, absent or broken.
    """
    data = config.data
    return open_source(
        data.name,
        root=Path(data.root).expanduser() if data.root else None,
        path=Path(data.path).expanduser() if data.path else None,
        download=data.download,
        phantom_train=data.phantom_train,
        phantom_test=data.phantom_test,
        phantom_channels=data.phantom_channels,
        seed=config.seed,
    )


def deal(source: ImageSource, config: RunConfig) -> Partition:
    """Deal a data set to clients as configured (Section IV-A).

    Raises
    ------
    FedBiCrossError
        When there is no test split, or the partition's minimum cannot be met.
    """
    if not source.info.has_test:
        raise FedBiCrossError(
            f"{source.info.source} has no test images, and a simulation is scored on them; "
            "add a test split (test_images and test_labels, or a folder test/)"
        )
    settings = config.partition
    return dirichlet_partition(
        source.labels("train"),
        source.labels("test"),
        clients=settings.clients,
        alpha=settings.alpha,
        min_samples=settings.min_samples,
        balance=settings.balance,
        seed=config.seed,
    )


@dataclass(frozen=True)
class FederatedData:
    """A source with its partition; several threads may read, one after another."""

    source: ImageSource
    partition: Partition
    _reading: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def client(self, client: int) -> ClientImages:
        """Read one client's images, and no other client's training images."""
        tests = {
            "global": self.read("test", np.arange(len(self.source.labels("test")))),
            "local": self.read("test", self.partition.test[client]),
        }
        return ClientImages(
            self.read("train", self.partition.train[client]), tests, self.source.fingerprint()
        )

    def read(self, part: Part, rows: NDArray[np.int64]) -> LabelledImages:
        """Read images and labels of some rows."""
        with self._reading:
            labels, images = self.source.labels(part)[rows], self.source.images(part, rows)
        return LabelledImages(normalise(images), torch.from_numpy(labels))
