"""The one typed configuration of a run: every setting, its default, its bounds and its source.

Flower hands an app a flat mapping (``{"inversion.batch_size": 96, ...}``). `RunConfig.from_flat` turns it
into frozen dataclasses and checks it; every complaint names the key. Defaults are this project's own
preset at a size for two CPU cores; ``configs/paper.toml`` holds the paper's values (Section IV-A).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedbicross_flwr.config_baselines import (
    CoBoostingConfig,
    DaflConfig,
    DenseConfig,
    FedAvgConfig,
    FedIscaConfig,
    FlowerConfig,
)
from fedbicross_flwr.config_deployment import UPLOAD_SETTINGS, DeploymentConfig, check_deployment
from fedbicross_flwr.config_fedbicross import (
    ClusteringConfig,
    CrossClusterConfig,
    InversionConfig,
    PersonalConfig,
    TeacherConfig,
    split_sizes,
)
from fedbicross_flwr.config_readers import UPLOAD_SECTIONS, reads
from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.files import expanded
from fedbicross_flwr.settings import Scalar, check_value, convert, setting, walk


@dataclass(frozen=True)
class DataConfig:
    """Which images."""

    name: str = setting("phantom", "`phantom`, a MedMNIST name such as `bloodmnist`, or `site`")
    path: str = setting(
        "", "an `.npz` in MedMNIST's layout or a folder of images; implies `site`", shapes_result=False
    )
    root: str = setting("", "where MedMNIST files are looked for and kept", shapes_result=False)
    download: bool = setting(True, "fetch an absent MedMNIST file", shapes_result=False)
    phantom_train: int = setting(6000, "phantom: training images", low=16)
    phantom_test: int = setting(1500, "phantom: test images", low=8)
    phantom_channels: int = setting(3, "phantom: 3 (RGB) or 1 (grayscale)", low=1, high=3)

    def __post_init__(self) -> None:
        # A path implies the name, which shapes what runs are known by: however own data were asked for, their
        # runs compare and share what they keep.
        if self.path and self.name == "phantom":
            object.__setattr__(self, "name", "site")


@dataclass(frozen=True)
class PartitionConfig:
    """How a simulation deals the images to clients."""

    clients: int = setting(5, "clients N", low=1, source="IV-A: 5, 10, 20")
    alpha: float = setting(
        0.3,
        "Dirichlet concentration; smaller is more skewed, `inf` deals evenly",
        above=0.0,
        infinite=True,
        source="IV-A",
    )
    balance: bool = setting(
        True, "a client that already holds 1/N of all images takes no more", source="FedISCA"
    )
    min_samples: int = setting(10, "redraw until each client has this many images", low=1, source="FedISCA")


@dataclass(frozen=True)
class ModelConfig:
    """The network of clients, cluster models and students."""

    name: str = setting("resnet18", "architecture", source="IV-A")
    width: int = setting(
        16, "channels of the first stage; the stages have 1, 2, 4 and 8 times as many", low=1, high=1024
    )
    stem: str = setting(
        "small",
        "`small`: 3x3 convolution with stride 1; `imagenet`: 7x7 with stride 2 and max-pooling",
        choices=("small", "imagenet"),
        source="FedISCA",
    )


@dataclass(frozen=True)
class ClientConfig:
    """Round 1: a client's supervised training."""

    epochs: int = setting(10, "passes over the client's images", low=1, source="IV-A: 100")
    lr: float = setting(0.02, "learning rate of SGD", above=0.0, source="IV-A: 1e-3")
    momentum: float = setting(0.9, "momentum of SGD", low=0.0, high=0.9999, source="FedISCA")
    weight_decay: float = setting(5e-4, "weight decay of SGD", low=0.0, source="FedISCA")
    schedule: str = setting(
        "cosine",
        "`step`: x0.1 after 50 % and x0.01 after 75 % of the epochs; `cosine`; `constant`",
        choices=("step", "cosine", "constant"),
        source="FedISCA: step",
    )
    batch_size: int = setting(64, "images a step", low=2, source="IV-A: 128")
    augment: bool = setting(False, "random crops (padding 4) and horizontal flips")
    validation_fraction: float = setting(
        0.1,
        "first part of the client's own images, kept for choosing the epoch",
        low=0.0,
        high=0.5,
        source="FedISCA",
    )
    min_classes: int = setting(
        2, "a client with images of fewer classes is refused; 1 lets it in", low=1, source="IV-A: 1"
    )
    checkpoint: str = setting(
        "best",
        "upload the epoch with the `best` local validation accuracy, or the `last`",
        choices=("best", "last"),
    )
    initial_weights: str = setting(
        "shared",
        "all clients start from the same random weights, or each from its own",
        choices=("shared", "independent"),
        source="FedISCA: independent",
    )


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how a run is computed."""

    device: str = setting("auto", "`auto`, `cpu`, or a PyTorch device such as `cuda:0`")
    precision: str = setting(
        "auto",
        "arithmetic of convolutions and of the last layer: `bfloat16` (autocast) or `float32`; `auto`: "
        "bfloat16 where it is fast",
        choices=("auto", "float32", "bfloat16"),
    )
    compile: str = setting(
        "auto",
        "whether `torch.compile` fuses the operations of networks that train or answer, but not of "
        "generators, inverted teachers (DENSE's and DAFL's too) and forward-mode passes: a minute or more "
        "for each process, then faster steps; `auto`: off, as no run is known to be long enough "
        "(docs/performance.md)",
        choices=("auto", "on", "off"),
    )
    client_threads: int = setting(
        1, "CPU threads of one client; part of the result, as sums depend on it", low=1, high=1024
    )
    server_threads: int = setting(
        0,
        "CPU cores of the server, each for one cluster at a time; 0 takes all",
        low=0,
        shapes_result=False,
    )
    server_tasks: int = setting(
        1,
        "clusters that the server works on at once as tasks of Ray, each with an accelerator where there are "
        "any; 1: in its own process; 0: as many as there are accelerators",
        low=0,
        shapes_result=False,
    )
    reply_timeout: float = setting(
        86400.0, "seconds that the server waits for a round's replies", above=0.0, shapes_result=False
    )
    tracker: str = setting(
        "none",
        "where a finished run is logged besides its folder: `tensorboard` (in the run's folder) or `mlflow`",
        choices=("none", "tensorboard", "mlflow"),
        shapes_result=False,
    )


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run is; see the sections for their settings.

    `seed` is the root of all randomness; `out` is the run's folder (empty: ``runs/<id>``).
    """

    method: str = setting(
        "fedbicross",
        "`fedbicross`, `fedavg`, `dafl`, `dense`, `fedisca`, `coboosting`, a method of your own, or one of "
        "Flower's strategies, such as `flower:FedAvg`",
    )
    seed: int = setting(0, "root of all randomness", low=0, high=2**31 - 1)
    out: str = setting("", "folder of the run; empty takes `runs/` and the run's id", shapes_result=False)
    cache: str = setting(
        "",
        "folder that runs share: a client's own model is kept there, by all that shaped it, and used again; "
        "empty keeps it in the run's folder",
        shapes_result=False,
    )
    data: DataConfig = field(default_factory=DataConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    clustering: ClusteringConfig = field(default_factory=ClusteringConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    inversion: InversionConfig = field(default_factory=InversionConfig)
    cross_cluster: CrossClusterConfig = field(default_factory=CrossClusterConfig)
    personal: PersonalConfig = field(default_factory=PersonalConfig)
    fedavg: FedAvgConfig = field(default_factory=FedAvgConfig)
    dafl: DaflConfig = field(default_factory=DaflConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    fedisca: FedIscaConfig = field(default_factory=FedIscaConfig)
    coboosting: CoBoostingConfig = field(default_factory=CoBoostingConfig)
    flower: FlowerConfig = field(default_factory=FlowerConfig)
    deployment: DeploymentConfig = field(default_factory=DeploymentConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        for key, declared, value in walk(self):
            check_value(key, value, declared)
        check_together(self)

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> RunConfig:
        """Build and check a configuration from flat ``section.key`` settings; absent ones are defaults.

        Raises
        ------
        FedBiCrossError
            For an unknown key (the near ones are named), a wrong type, or a value out of range.
        """
        known = {key: declared for key, declared, _ in walk(cls())}
        unknown = [key for key in flat if key not in known]
        if unknown:
            key = unknown[0]
            raise FedBiCrossError(
                f"unknown setting {key!r}{near_names(key, known)}; docs/configuration.md lists all"
            )
        sections: dict[str, dict[str, Any]] = {}
        top: dict[str, Any] = {}
        for key, value in flat.items():
            section, _, name = key.rpartition(".")
            converted = convert(key, value, known[key])
            (sections.setdefault(section, {}) if section else top)[name] = converted
        for declared in dataclasses.fields(cls):
            if declared.name in sections:
                kind = declared.default_factory
                assert kind is not dataclasses.MISSING
                top[declared.name] = kind(**sections[declared.name])
        return cls(**top)

    def flat(self) -> dict[str, Scalar]:
        """Return all settings as ``section.key -> value``, in order of declaration."""
        return {key: value for key, _, value in walk(self)}

    def fingerprint(self) -> str:
        """Return a hash of the settings that shape the result; equal runs may resume one another."""
        return hash_settings(self.shaping())

    def upload_fingerprint(self) -> str:
        """Return a hash of the settings that shape a client's upload, and of no other."""
        relevant = {
            key: v
            for key, v in self.shaping().items()
            if key == "seed" or key.split(".")[0] in UPLOAD_SECTIONS or key in UPLOAD_SETTINGS
        }
        return hash_settings(relevant)

    def shaping(self) -> dict[str, Scalar]:
        """Return the settings that shape the result.

        Sites bring their own images, dealt by nobody; what concerns sites does not touch a simulation; and
        what other methods read alone does not touch this method's run, which stays valid when it changes.
        """
        idle = ("data", "partition") if self.is_deployment else ("deployment",)
        return {
            key: value
            for key, declared, value in walk(self)
            if declared.metadata["shapes_result"]
            and key.split(".")[0] not in idle
            and reads(self.method, key)
        }

    @property
    def needs_subspaces(self) -> bool:
        """Return whether clients send directions of their images besides the model, as PACFL asks."""
        return asks_for_subspaces(self.method, self.clustering.by)

    @property
    def is_deployment(self) -> bool:
        """Return whether the clients are sites with data of their own."""
        return bool(self.deployment.site_names)

    @property
    def num_clients(self) -> int:
        """Return the number of clients N: the sites, or what a simulation deals its images to."""
        return len(self.deployment.site_names) or self.partition.clients


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return a configuration that means the same from any working directory: Flower runs in its own.

    Raises
    ------
    FedBiCrossError
        When a path names a user who is unknown.
    """

    def absolute(path: str) -> str:
        return str(expanded(Path(path)).resolve()) if path else ""

    data = dataclasses.replace(config.data, path=absolute(config.data.path), root=absolute(config.data.root))
    return dataclasses.replace(config, data=data, cache=absolute(config.cache))


def asks_for_subspaces(method: str, by: object) -> bool:
    """Return whether clients of a method send subspaces when ``clustering.by`` is `by`."""
    return by == "pacfl" and reads(method, "clustering.by")


def hash_settings(settings: Mapping[str, Scalar]) -> str:
    """Return a short hash of settings, whatever their order."""
    return hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:16]


def check_together(config: RunConfig) -> None:
    """Hold settings against each other."""
    check_deployment(config.deployment)
    if config.is_deployment and config.clustering.by == "pacfl":
        raise FedBiCrossError(
            "clustering.by = 'pacfl' has clients send directions of their images, which are the images "
            "themselves where a class has few: it is for simulations; choose another for a deployment"
        )
    if reads(config.method, "clustering"):
        check_clusters(config)
        check_similarity(config)
    if reads(config.method, "inversion.teachers"):
        check_images_at_once(config.inversion)
    if reads(config.method, "cross_cluster.activations"):
        check_recomputed(config)
    if config.data.phantom_channels == 2:
        raise FedBiCrossError("data.phantom_channels = 2: a phantom has 3 channels (RGB) or 1 (grayscale)")
    device, tasks = config.runtime.device, config.runtime.server_tasks
    if tasks != 1 and device.partition(":")[2] not in ("", "0"):
        raise FedBiCrossError(
            f"runtime.device = {device!r} names one accelerator, and runtime.server_tasks = {tasks} gives "
            "each cluster one of its own; set auto, or the device without a number, or server_tasks = 1"
        )


def check_similarity(config: RunConfig) -> None:
    """Refuse weights by the similarity of centroids where the clusters have none."""
    if config.needs_subspaces and config.cross_cluster.weights == "similarity":
        raise FedBiCrossError(
            "cross_cluster.weights = 'similarity' compares the clusters' centroids, and clustering.by = "
            "'pacfl' has distances alone; choose other weights or another clustering"
        )


def check_images_at_once(inversion: InversionConfig) -> None:
    """Refuse a number of images that nothing would heed."""
    if inversion.images_at_once and inversion.teachers != "in_turn":
        raise FedBiCrossError(
            f"inversion.images_at_once = {inversion.images_at_once} needs inversion.teachers = 'in_turn': "
            f"{inversion.teachers!r} keeps what all images leave in all models; set that or 0"
        )


def check_recomputed(config: RunConfig) -> None:
    """Refuse compiled networks whose activations are to be recomputed: PyTorch cannot do both here."""
    if config.cross_cluster.activations == "recomputed" and config.runtime.compile == "on":
        raise FedBiCrossError(
            "cross_cluster.activations = 'recomputed' does not go with runtime.compile = 'on'; set "
            "activations = 'kept' or compile = 'auto'"
        )


def check_clusters(config: RunConfig) -> None:
    """Hold against each other what FedBiCross alone reads."""
    clusters, clients = config.clustering.clusters, config.num_clients
    if isinstance(clusters, int) and clusters > clients:
        found = f"partition.clients = {clients}"
        if config.is_deployment:
            found = f"the {clients} site(s) of deployment.sites"
        raise FedBiCrossError(
            f"clustering.clusters = {clusters} is more than {found}: "
            "every cluster needs a client; lower the one or raise the other"
        )
    if config.cross_cluster.batch_size == 1:
        raise FedBiCrossError(
            "cross_cluster.batch_size = 1: BatchNorm needs two images; set 2 or more, or 0 for all of them"
        )
    size = config.inversion.batch_size
    if min(split_sizes(size, config.cross_cluster.train_fraction)) < 2:
        raise FedBiCrossError(
            f"inversion.batch_size = {size} leaves fewer than two images on one side of "
            f"cross_cluster.train_fraction = {config.cross_cluster.train_fraction:g}; BatchNorm needs two"
        )
