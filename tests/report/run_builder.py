"""Builds run folders as a run writes them: plausible numbers from a seeded generator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import save_file

CLASSES = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocytes",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)
ROWS = (
    ("local-only", "control", "Each client's own model.", 0.50, 0.70, 0, 0),
    ("local-only, same budget", "control", "Its own model, trained 10 epochs longer.", 0.52, 0.75, 0, 0),
    ("FedAvg-1", "baseline", "One average of all uploads.", 0.27, 0.31, 2_800_000, 2_800_000),
    ("ensemble of all uploads", "ceiling", "Every upload at once.", 0.74, 0.78, 2_800_000, 14_000_000),
    (
        "FedBiCross without personal distillation",
        "ours",
        "The cluster model.",
        0.55,
        0.66,
        2_800_000,
        2_800_000,
    ),
    ("FedBiCross", "ours", "Distilled at the client.", 0.63, 0.77, 2_800_000, 2_800_000),
)
QUALITY = {"images": 24, "agreement": 0.75, "classes": 7, "learned": 0.5, "most_frequent": 0.25}


class MakeRun(Protocol):
    def __call__(
        self,
        name: str = ...,
        *,
        clients: int = ...,
        clusters: int = ...,
        classes: tuple[str, ...] = ...,
        steps: int = ...,
        seed: int = ...,
        rounds: int = ...,
        channels: int = ...,
        failed: tuple[int, ...] = ...,
        deployment: bool = ...,
        alpha: float = ...,
    ) -> Path: ...


def build_run(
    folder: Path,
    *,
    clients: int = 5,
    clusters: int = 3,
    classes: tuple[str, ...] = CLASSES,
    steps: int = 80,
    seed: int = 0,
    rounds: int = 2,
    channels: int = 3,
    failed: tuple[int, ...] = (),
    deployment: bool = False,
    alpha: float = 0.3,
) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    alive = [client for client in range(clients) if client not in failed]
    dump(
        folder / "run.json",
        {
            "id": folder.name,
            "finished": True,
            "versions": {
                "fedbicross": "0.1.0",
                "python": "3.11.7",
                "torch": "2.13.0",
                "flwr": None if deployment else "1.41.0",
            },
            "hardware": {"device": "cpu", "cpu": "AMD EPYC", "threads": 2, "precision": "bfloat16"},
            "runner": "flower",
            "seconds": {
                "upload round": 141.2,
                "clustering": 0.9,
                "synthesis": 212.5,
                "cross-cluster optimisation": 188.0,
                "personalisation round": 61.3,
                "evaluation": 35.1,
                "total": 640.4,
            },
            "dataset": {
                "name": "site" if deployment else "bloodmnist",
                "class_names": list(classes),
                "channels": channels,
                "licence": "CC BY 4.0",
                "source": "MedMNIST v2, https://medmnist.com",
            },
            "clients": [client_entry(c, rng, len(classes), c in failed, deployment) for c in range(clients)],
        },
    )
    data = "site" if deployment else "bloodmnist"
    (folder / "config.toml").write_text(
        f'seed = {seed}\nout = "{folder.name}"\n\n[data]\nname = "{data}"\n\n'
        f"[partition]\nclients = {clients}\nalpha = {alpha}\nbalance = true\n\n"
        f"[clustering]\nclusters = {clusters}\n\n[inversion]\niterations = {steps}\ntv_weight = 5.0\n",
        encoding="utf-8",
    )
    dump(folder / "clustering.json", clustering(alive, clusters, rng))
    dump(
        folder / "inversion.json",
        [inversion(r, k, steps, len(classes), rng) for r in range(rounds) for k in range(clusters)],
    )
    dump(folder / "weights.json", weights(clusters, rng))
    save_file(synthetic(clusters, len(classes), channels, rng), folder / "synthetic.safetensors")
    dump(folder / "synthetic.json", QUALITY)
    protocols = ["local"] if deployment else ["global", "local"]
    dump(folder / "metrics.json", {"protocols": protocols, "rows": rows(alive, protocols, rng)})
    models = folder / "models"
    models.mkdir()
    for cluster in range(clusters):
        save_file({"w": np.zeros(500, np.float32)}, models / f"cluster-{cluster}.safetensors")
    return folder


def dump(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def edit(file: Path, change: Any) -> None:
    """Change a JSON file in place with a function of its content."""
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    dump(file, content)


def client_entry(
    client: int, rng: np.random.Generator, classes: int, failed: bool, deployment: bool
) -> dict[str, Any]:
    counts = (rng.dirichlet(np.full(classes, 0.35)) * 2400).astype(int)
    return {
        "client": client,
        "status": "failed" if failed else "ok",
        "reason": "no reply within 600 s" if failed else "",
        "num_samples": int(counts.sum()),
        "class_counts": None if deployment else counts.tolist(),
        "local_validation_accuracy": None if failed else float(rng.uniform(0.7, 0.95)),
        "bytes_sent": 0 if failed else 2_803_412 + client,
        "bytes_received": 5_601_220,
    }


def clustering(alive: list[int], clusters: int, rng: np.random.Generator) -> dict[str, Any]:
    assignment = [index % clusters for index in range(len(alive))]
    same = np.equal.outer(assignment, assignment)
    similarity = np.where(same, 0.75, -0.35) + rng.normal(0, 0.12, same.shape)
    similarity = np.clip((similarity + similarity.T) / 2, -1, 1)
    np.fill_diagonal(similarity, 1.0)
    return {
        "clients": alive,
        "assignment": assignment,
        "similarity": similarity.tolist(),
        "silhouette": 0.41,
        "clusters": clusters,
    }


def inversion(
    round_: int, cluster: int, steps: int, classes: int, rng: np.random.Generator
) -> dict[str, Any]:
    t = np.arange(1, steps + 1) / steps
    rise = (1 - np.exp(-(4 + cluster) * t)) * rng.uniform(0.8, 0.98)
    noise = rng.normal(0, 0.012, steps)
    return {
        "round": round_,
        "cluster": cluster,
        "cross_entropy": (2.1 * np.exp(-3 * t) + 0.1 + abs(noise)).tolist(),
        "batch_norm": (30 * np.exp(-2 * t) + 4 + cluster).tolist(),
        "total_variation": (0.6 * np.exp(-3 * t) + 0.02).tolist(),
        "agreement": np.clip(rise + noise, 0, 1).tolist(),
        "confidence": np.clip(rise * 0.9 + noise, 0, 1).tolist(),
        "classes_covered": np.ceil(rise * classes).astype(int).tolist(),
    }


def weights(clusters: int, rng: np.random.Generator) -> dict[str, Any]:
    steps = list(range(0, 161, 4))
    path = np.full((len(steps), clusters, clusters), 1 / clusters)
    for index in range(1, len(steps)):
        step = path[index - 1] + 0.012 * np.eye(clusters) + rng.normal(0, 0.008, (clusters, clusters))
        step = np.clip(step, 0, None)
        path[index] = step / step.sum(axis=1, keepdims=True)
    return {"clusters": clusters, "steps": steps, "weights": path.tolist()}


def synthetic(clusters: int, classes: int, channels: int, rng: np.random.Generator) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    for cluster in range(clusters):
        labels = np.arange(96, dtype=np.int64) % classes
        centre = rng.uniform(-0.3, 0.3, (96, 2, 1, 1))
        radius = 0.25 + 0.06 * labels.reshape(-1, 1, 1)
        blob = np.exp(-((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2) / radius**2)
        colour = rng.uniform(-1.2, 1, (96, channels, 1, 1))
        images = 0.7 - blob[:, None] * (0.9 + colour) + rng.normal(0, 0.1, (96, channels, 28, 28))
        tensors[f"images.{cluster}"] = images.astype(np.float32)
        tensors[f"labels.{cluster}"] = labels
    return tensors


def rows(alive: list[int], protocols: list[str], rng: np.random.Generator) -> list[dict[str, Any]]:
    made = []
    for name, kind, note, global_level, local_level, up, down in ROWS:
        level = {"global": global_level, "local": local_level}
        entries = [
            {"client": c, **{protocol: score(level[protocol], rng) for protocol in protocols}} for c in alive
        ]
        made.append(
            {
                "name": name,
                "kind": kind,
                "note": note,
                "bytes_up": up,
                "bytes_down": down,
                "clients": entries,
            }
        )
    return made


def score(level: float, rng: np.random.Generator) -> dict[str, Any]:
    accuracy = float(np.clip(level + rng.normal(0, 0.06), 0, 1))
    return {
        "samples": 3421,
        "accuracy": accuracy,
        "balanced_accuracy": float(np.clip(accuracy - rng.uniform(0.02, 0.12), 0, 1)),
        "auc": float(np.clip(accuracy + 0.18, 0, 0.99)),
        "ece": float(rng.uniform(0.04, 0.3)),
    }
