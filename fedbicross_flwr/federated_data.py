"""Who holds which images: a data set dealt to simulated clients, or sites that bring their own.

The server reads a `Federation`. Of a simulation it knows the images, of sites nothing but what was agreed on.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedbicross_flwr.client import ClientImages
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.data.partition import Partition, dirichlet_partition
from fedbicross_flwr.data.registry import open_source
from fedbicross_flwr.data.site import SITE_LICENCE
from fedbicross_flwr.data.source import IMAGE_SIZE, DatasetInfo, ImageSource, Part, normalise
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import expanded
from fedbicross_flwr.labelled_images import LabelledImages
from fedbicross_flwr.models import check_model_name
from fedbicross_flwr.site.store import short_hash


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
        root=expanded(Path(data.root)) if data.root else None,
        path=expanded(Path(data.path)) if data.path else None,
        download=data.download,
        phantom_train=data.phantom_train,
        phantom_test=data.phantom_test,
        phantom_channels=data.phantom_channels,
        seed=config.seed,
    )


def refuse_sites(config: RunConfig) -> None:
    """Refuse, for a simulation, settings of a deployment.

    Raises
    ------
    FedBiCrossError
        When the settings name sites: their data are not here.
    """
    if config.is_deployment:
        raise FedBiCrossError(
            f"deployment.sites = {config.deployment.sites!r} names sites, which hold their own data; "
            "start such a run with deploy/start-run, or leave deployment.sites empty for a simulation"
        )


def check_federation(config: RunConfig, info: DatasetInfo) -> None:
    """Find, before a folder is taken, what otherwise the first client or the server's stages would find.

    Raises
    ------
    FedBiCrossError
        When the network is unknown, no client could have as many classes as it must, or the device is not
        here.
    """
    check_model_name(config.model.name)
    wanted = config.client.min_classes
    if wanted > info.num_classes:
        raise FedBiCrossError(
            f"client.min_classes = {wanted} is more than the {info.num_classes} classes that there are, so "
            "that no client could take part; lower it"
        )
    Compute.of(config.runtime)


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


def sizes(source: ImageSource) -> dict[str, int]:
    """Return how many images each part has."""
    return {"train": len(source.labels("train")), "test": len(source.labels("test"))}


class Federation(Protocol):
    """What a server knows of its clients' data before any upload."""

    @property
    def info(self) -> DatasetInfo:
        """Return the classes and channels that all clients share, and where the images come from."""
        ...

    @property
    def num_clients(self) -> int:
        """Return the number of clients N."""
        ...

    def client_facts(self, client: int) -> dict[str, Any]:
        """Return what ``run.json`` says of a client besides what it sent."""
        ...


@dataclass(frozen=True)
class SiteFederation:
    """Sites whose images the server never sees; a `Federation`.

    Parameters
    ----------
    names : tuple of str
        The sites' names; client i is the i-th.
    info : DatasetInfo
        The classes and channels that were agreed on.
    """

    names: tuple[str, ...]
    info: DatasetInfo

    @classmethod
    def of(cls, config: RunConfig) -> SiteFederation:
        """Return the federation of a deployment's settings."""
        deployment = config.deployment
        info = DatasetInfo(
            "sites", deployment.classes, deployment.channels, IMAGE_SIZE, SITE_LICENCE, "the sites", False
        )
        return cls(deployment.site_names, info)

    @property
    def num_clients(self) -> int:
        """Return the number of sites."""
        return len(self.names)

    def client_facts(self, client: int) -> dict[str, Any]:
        """Return the site's name: how many images of a class it has never leaves it."""
        return {"site": self.names[client]}


@dataclass(frozen=True)
class FederatedData:
    """A source with its partition, a `Federation`; several threads may read, one after another."""

    source: ImageSource
    partition: Partition
    _reading: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def info(self) -> DatasetInfo:
        """Return the facts about the data set."""
        return self.source.info

    @property
    def num_clients(self) -> int:
        """Return the number of clients N."""
        return self.partition.num_clients

    def client_facts(self, client: int) -> dict[str, Any]:
        """Return how many training images of each class the client was dealt."""
        counts = self.partition.counts(self.source.labels("train"), self.info.num_classes)
        return {"class_counts": counts[client].tolist()}

    def client(self, client: int) -> ClientImages:
        """Read one client's images, and no other client's training images."""
        train, test = self.partition.train[client], self.partition.test[client]
        tests = {
            "global": self.test_images(),
            "local": self.read("test", test),
        }
        # How images are dealt follows from settings and seed only as long as NumPy draws the same.
        dealt = short_hash(f"{train.tolist()}/{test.tolist()}")
        return ClientImages(self.read("train", train), tests, f"{self.source.fingerprint()}/{dealt}")

    def test_images(self) -> LabelledImages:
        """Read the whole test split, which the global protocol scores on."""
        return self.read("test", np.arange(len(self.source.labels("test"))))

    def read(self, part: Part, rows: NDArray[np.int64]) -> LabelledImages:
        """Read images and labels of some rows."""
        with self._reading:
            labels, images = self.source.labels(part)[rows], self.source.images(part, rows)
        return LabelledImages(normalise(images), torch.from_numpy(labels))
