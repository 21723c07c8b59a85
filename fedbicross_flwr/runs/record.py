"""The JSON that a run leaves behind: who took part, what was learned, what was scored.

`fedbicross_flwr.report` reads these files.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from fedbicross_flwr.artifacts import write_tensors
from fedbicross_flwr.compute import Compute, server_threads
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.evaluation import METRICS, PROTOCOLS, Scores
from fedbicross_flwr.federated_data import Federation
from fedbicross_flwr.inversion import DIAGNOSTICS
from fedbicross_flwr.methods import Findings
from fedbicross_flwr.rows import Row
from fedbicross_flwr.runs.code_version import code_fingerprint
from fedbicross_flwr.site.store import RowScores

if TYPE_CHECKING:
    from fedbicross_flwr.runs.folder import RunFolder

PACKAGES = (
    "fedbicross",
    "flwr",
    "flwr-datasets",
    "ray",
    "torch",
    "torchvision",
    "numpy",
    "scikit-learn",
    "medmnist",
)


@dataclass
class ClientRecord:
    """What the server knows of one client.

    `reason` says why the run went on without it; `flags` in which way its upload is unlike the others';
    `scores` is row -> protocol -> metrics.
    """

    client: int
    num_samples: int = 0
    validation_accuracy: float | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    reason: str = ""
    flags: list[str] = field(default_factory=list)
    scores: RowScores = field(default_factory=dict)


def write_findings(folder: RunFolder, clients: Sequence[int], findings: Findings) -> None:
    """Write what a method learned on the way."""
    clustering = findings.clustering
    if clustering is not None:
        folder.write_json(
            "clustering.json",
            {
                "clients": list(clients),
                "assignment": list(clustering.assignment),
                "similarity": clustering.similarity.tolist(),
                "silhouette": clustering.silhouette,
                "clusters": clustering.clusters,
            },
        )
    folder.write_json("inversion.json", [inversion_entry(one) for one in findings.inversions])
    if findings.weights is not None:
        weights = findings.weights
        content = {
            "clusters": weights.shape[1],
            "steps": list(range(len(weights))),
            "weights": weights.tolist(),
        }
        folder.write_json("weights.json", content)
    tensors = {}
    for cluster, (images, labels) in enumerate(findings.synthetic):
        tensors[f"images.{cluster}"], tensors[f"labels.{cluster}"] = images, labels
    write_tensors(folder.path / "synthetic.safetensors", tensors)


def inversion_entry(inversion: Any) -> dict[str, Any]:
    """Return one inversion's curves by name."""
    curves = dict(zip(DIAGNOSTICS, inversion.curves.T.tolist(), strict=True))
    curves["classes_covered"] = [int(count) for count in curves["classes_covered"]]
    return {"round": inversion.round, "cluster": inversion.cluster, **curves}


def write_metrics(
    folder: RunFolder,
    rows: Mapping[str, Row],
    clients: Sequence[ClientRecord],
    model_bytes: int,
    models: int,
) -> None:
    """Write ``metrics.json``: every row, every client, both protocols, and what a row costs to send.

    A row that nobody scored, and in a row a client that has no test images, are left out.

    Parameters
    ----------
    rows : mapping of str to Row
        The rows by their key in the clients' scores, in the order of the table.
    clients : sequence of ClientRecord
        Those that finished.
    model_bytes : int
        Size of one model as it travels.
    models : int
        Clients that uploaded one.
    """
    written = []
    for key, row in rows.items():
        scored = [one for one in sorted(clients, key=lambda one: one.client) if one.scores.get(key)]
        if not scored:
            continue
        down = models if row.models_down < 0 else row.models_down
        written.append(
            {
                "name": row.name,
                "kind": row.kind,
                "note": row.note,
                "bytes_up": row.models_up * model_bytes + row.more_up,
                "bytes_down": down * model_bytes + row.more_down,
                "clients": [
                    {"client": one.client, **{p: tidy_scores(s) for p, s in one.scores[key].items()}}
                    for one in scored
                ],
            }
        )
    present = {protocol for one in clients for scores in one.scores.values() for protocol in scores}
    folder.write_json("metrics.json", {"protocols": [p for p in PROTOCOLS if p in present], "rows": written})


def tidy_scores(scores: Scores) -> dict[str, Any]:
    """Return scores as JSON has them: whole numbers of samples, null for an AUC that is not defined."""
    values = {name: None if math.isnan(scores[name]) else scores[name] for name in METRICS}
    return {**values, "samples": int(scores["samples"])}


def write_run(
    folder: RunFolder,
    config: RunConfig,
    federation: Federation,
    clients: Sequence[ClientRecord],
    seconds: Mapping[str, float],
    runner: str,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write ``run.json``, which says that the run is finished; `extra` are more members of it."""
    info = federation.info
    compute = Compute.of(config.runtime)
    content = {
        "id": folder.path.name,
        "finished": True,
        "runner": runner,
        "versions": versions(),
        "hardware": {
            "device": device_name(compute),
            "cpu": cpu_name(),
            "threads": server_threads(config.runtime),
            "precision": compute.precision,
        },
        "seconds": dict(seconds),
        "dataset": {
            "name": info.name,
            "class_names": list(info.class_names),
            "channels": info.channels,
            "licence": info.licence,
            "source": info.source,
            "fingerprint": folder.data,
        },
        "clients": [client_entry(one, federation.client_facts(one.client)) for one in clients],
        **(extra or {}),
    }
    folder.write_json("run.json", content)


def client_entry(record: ClientRecord, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return one client as ``run.json`` lists it, with the `facts` that the federation knows of it."""
    entry = asdict(record)
    del entry["scores"]
    if not record.flags:  # as in every simulation
        del entry["flags"]
    accuracy = entry.pop("validation_accuracy")
    entry["local_validation_accuracy"] = None if accuracy is None or math.isnan(accuracy) else accuracy
    return {**entry, "status": "failed" if record.reason else "ok", **facts}


def versions() -> dict[str, str | None]:
    """Return the versions that a result may depend on; ``code`` is this package's own, to the letter."""
    found: dict[str, str | None] = {"code": code_fingerprint(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def device_name(compute: Compute) -> str:
    """Return the accelerator's product name, or ``cpu``."""
    if compute.device.type == "cuda":
        return torch.cuda.get_device_name(compute.device)
    return compute.device.type


def cpu_name() -> str:
    """Return the processor's product name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123  # a pseudo-file of Linux
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
