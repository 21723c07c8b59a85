"""What a run folder holds, as frozen dataclasses; `fedbicross_flwr.report.run_folder` fills them.

Clients keep their ids: one that failed stands in `RunRecord.clients` and is absent everywhere else.
Fractions are 0..1, times are in seconds, sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.settings import Scalar

Floats = NDArray[np.float64]

DEFAULTS: Final[Mapping[str, Scalar]] = RunConfig().flat()
"""What a setting was in runs that are older than it."""


@dataclass(frozen=True)
class Dataset:
    """The data set of a run; `fingerprint` is of its content, empty where a run does not tell."""

    name: str
    class_names: tuple[str, ...]
    channels: int
    licence: str
    source: str
    fingerprint: str = ""


@dataclass(frozen=True)
class Client:
    """One client: what it holds, whether it answered, and what it sent and received.

    Of a deployment `site` is its name, and `flags` say in which way its upload is unlike the others'.
    """

    client: int
    ok: bool
    reason: str
    num_samples: int | None
    class_counts: tuple[int, ...] | None
    local_validation_accuracy: float | None
    bytes_sent: int
    bytes_received: int
    site: str = ""
    flags: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Return what a sentence calls it."""
        return f"client {self.client} ({self.site})" if self.site else f"client {self.client}"


@dataclass(frozen=True, eq=False)
class Clustering:
    """Stage 1: `assignment[i]` is the cluster of `clients[i]`; `similarity` is (N, N), -1..1."""

    clients: tuple[int, ...]
    assignment: tuple[int, ...]
    similarity: Floats
    silhouette: float | None
    clusters: int

    def cluster_of(self, client: int) -> int | None:
        """Return the cluster of a client, or None for a client that was not clustered."""
        return dict(zip(self.clients, self.assignment, strict=True)).get(client)


@dataclass(frozen=True, eq=False)
class Inversion:
    """Diagnostics of one inversion (Eqs. 1-2), each an array of shape (T,)."""

    round: int
    cluster: int
    cross_entropy: Floats
    batch_norm: Floats
    total_variation: Floats
    agreement: Floats
    confidence: Floats
    classes_covered: Floats


@dataclass(frozen=True, eq=False)
class WeightHistory:
    """Cross-cluster weights (Eq. 8): `steps` (S,); `weights` (S, K, K), row target, column source."""

    steps: Floats
    weights: Floats


@dataclass(frozen=True, eq=False)
class SyntheticImages:
    """Final images of one cluster: (B, channels, H, W) about -1..1, and their labels (B,)."""

    cluster: int
    images: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class SyntheticQuality:
    """What the uploads and the models learned from them say of all final synthetic images.

    See `fedbicross_flwr.synthetic_quality`.
    """

    images: int
    agreement: float | None
    classes: int
    learned: float
    most_frequent: float


@dataclass(frozen=True)
class Score:
    """One model of one client under one protocol."""

    samples: int
    accuracy: float
    balanced_accuracy: float
    auc: float | None
    ece: float


@dataclass(frozen=True)
class ResultRow:
    """One method; `scores[protocol][client]` are its models' scores, the bytes are per client."""

    name: str
    kind: str
    note: str
    bytes_up: int
    bytes_down: int
    scores: Mapping[str, Mapping[int, Score]]


@dataclass(frozen=True)
class Results:
    """All methods under all protocols of the run (`global`, `local`, or one of them)."""

    protocols: tuple[str, ...]
    rows: tuple[ResultRow, ...]

    def row(self, name: str) -> ResultRow | None:
        """Return the row of that name, or None."""
        return next((row for row in self.rows if row.name == name), None)


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run folder. A part that the folder lacks is None (`synthetic` and `files`: empty).

    Of a run that was interrupted (`resumed`), the total of `seconds` is that of its last call.
    """

    folder: Path
    id: str
    finished: bool
    runner: str
    resumed: bool
    versions: Mapping[str, str]
    hardware: Mapping[str, str]
    seconds: Mapping[str, float]
    dataset: Dataset
    clients: tuple[Client, ...]
    config: Mapping[str, Scalar]
    clustering: Clustering | None
    inversion: tuple[Inversion, ...] | None
    weights: WeightHistory | None
    synthetic: tuple[SyntheticImages, ...]
    quality: SyntheticQuality | None
    results: Results | None
    files: Mapping[str, int]

    @property
    def seed(self) -> int:
        """The run's seed; 0, the default, when the configuration does not say."""
        return int(self.config.get("seed", 0))

    def setting(self, key: str) -> Scalar | None:
        """Return a setting, given as ``section.name``; one that is younger than the run has its default.

        None for a setting that neither the run nor this version has.
        """
        return self.config.get(key, DEFAULTS.get(key))

    @property
    def failed(self) -> tuple[Client, ...]:
        """The clients that gave no usable reply."""
        return tuple(client for client in self.clients if not client.ok)
