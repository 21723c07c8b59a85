"""Reads a run folder into a `RunRecord`, and checks that its files agree with each other.

``run.json`` and ``config.toml`` must be there; each other file may be absent, and its part of the record
is then None. A file that is there and broken is an error that names it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.report.json_node import Node
from fedbicross_flwr.report.record import (
    Client,
    Clustering,
    Dataset,
    Inversion,
    ResultRow,
    Results,
    RunRecord,
    Score,
    SyntheticImages,
    SyntheticQuality,
    WeightHistory,
)
from fedbicross_flwr.settings import Scalar, convert, read_toml, walk

PROTOCOLS = ("global", "local")
KINDS = ("control", "baseline", "ours", "ceiling")
STATUSES = ("ok", "failed")


def load_run(folder: Path) -> RunRecord:
    """Read everything that a run wrote.

    Parameters
    ----------
    folder : Path
        ``runs/<id>``.

    Raises
    ------
    FedBiCrossError
        When the folder is no run folder, or a file in it is damaged or contradicts another.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise FedBiCrossError(f"{folder} is not a run folder (there is no run.json in it); name one of runs/")
    run = Node.read(folder / "run.json")
    dataset = _dataset(run["dataset"])
    clients = tuple(_client(node, len(dataset.class_names)) for node in run["clients"].list())
    known = {client.client for client in clients}
    clustering = _optional(folder / "clustering.json")
    inversion = _optional(folder / "inversion.json")
    weights = _optional(folder / "weights.json")
    metrics = _optional(folder / "metrics.json")
    quality = _optional(folder / "synthetic.json")
    return RunRecord(
        folder=folder,
        id=run["id"].text(),
        finished=run["finished"].flag(),
        runner=run["runner"].text(),
        resumed=told.flag() if (told := run.get("resumed")) else False,
        versions=_texts(run["versions"]),
        hardware=_texts(run["hardware"]),
        seconds={stage: node.number(low=0) for stage, node in run["seconds"].members()},
        dataset=dataset,
        clients=clients,
        config=_settings(folder / "config.toml"),
        clustering=_clustering(clustering, known) if clustering else None,
        inversion=tuple(_inversion(node) for node in inversion.list()) if inversion else None,
        weights=_weights(weights) if weights else None,
        synthetic=_synthetic(folder / "synthetic.safetensors", len(dataset.class_names)),
        quality=_quality(quality) if quality else None,
        results=_results(metrics, known) if metrics else None,
        files=_model_files(folder),
    )


def failure_of(folder: Path) -> str | None:
    """Return why a run of a comparison failed, as its folder says; None if it does not.

    Raises
    ------
    FedBiCrossError
        When the file that says it is damaged.
    """
    noted = _optional(folder / "failed.json")
    return None if noted is None else noted["error"].text()


def _settings(file: Path) -> dict[str, Scalar]:
    """Return a run's settings, which may be another version's; those that are known have their types."""
    known = {key: declared for key, declared, _ in walk(RunConfig())}
    flat = read_toml(file)
    try:
        return {
            key: convert(key, value, known[key]) if key in known else value for key, value in flat.items()
        }
    except FedBiCrossError as error:
        raise FedBiCrossError(f"{file}: {error}; the file is damaged: restore it") from error


def _optional(file: Path) -> Node | None:
    return Node.read(file) if file.exists() else None


def _texts(node: Node) -> dict[str, str]:
    """Return an object's members as texts; null means absent and is left out."""
    return {key: str(member.value) for key, member in node.members() if member.value is not None}


def _one_of(node: Node, known: tuple[str, ...]) -> str:
    return node.text() if node.text() in known else node.fail(f"one of {', '.join(known)}")


def _known_client(node: Node, known: set[int]) -> int:
    return node.integer() if node.integer() in known else node.fail("a client of run.json")


def _dataset(node: Node) -> Dataset:
    return Dataset(
        name=node["name"].text(),
        class_names=tuple(name.text() for name in node["class_names"].list()),
        channels=node["channels"].integer(low=1),
        licence=node["licence"].text(),
        source=node["source"].text(),
        fingerprint=told.text() if (told := node.get("fingerprint")) else "",
    )


def _client(node: Node, classes: int) -> Client:
    samples, counts = node.get("num_samples"), node.get("class_counts")
    accuracy = node.get("local_validation_accuracy")
    site, flags = node.get("site"), node.get("flags")
    return Client(
        client=node["client"].integer(),
        ok=_one_of(node["status"], STATUSES) == "ok",
        reason=node["reason"].text(),
        num_samples=samples.integer() if samples else None,
        class_counts=tuple(count.integer() for count in counts.list(classes)) if counts else None,
        local_validation_accuracy=accuracy.number(0, 1) if accuracy else None,
        bytes_sent=node["bytes_sent"].integer(),
        bytes_received=node["bytes_received"].integer(),
        site=site.text() if site else "",
        flags=tuple(flag.text() for flag in flags.list()) if flags else (),
    )


def _clustering(node: Node, known: set[int]) -> Clustering:
    clients = tuple(_known_client(client, known) for client in node["clients"].list())
    clusters = node["clusters"].integer(low=1)
    assignment = tuple(cluster.integer() for cluster in node["assignment"].list(len(clients)))
    if any(cluster >= clusters for cluster in assignment):
        node["assignment"].fail(f"a list of cluster ids below {clusters}")
    silhouette = node.get("silhouette")
    return Clustering(
        clients=clients,
        assignment=assignment,
        similarity=node["similarity"].array(len(clients), len(clients)),
        silhouette=silhouette.number(-1, 1) if silhouette else None,
        clusters=clusters,
    )


def _inversion(node: Node) -> Inversion:
    steps = len(node["cross_entropy"].list())
    return Inversion(
        round=node["round"].integer(),
        cluster=node["cluster"].integer(),
        cross_entropy=node["cross_entropy"].array(steps),
        batch_norm=node["batch_norm"].array(steps),
        total_variation=node["total_variation"].array(steps),
        agreement=node["agreement"].array(steps),
        confidence=node["confidence"].array(steps),
        classes_covered=node["classes_covered"].array(steps),
    )


def _weights(node: Node) -> WeightHistory:
    steps, clusters = node["steps"].array(None), node["clusters"].integer(low=1)
    return WeightHistory(steps, node["weights"].array(len(steps), clusters, clusters))


def _results(node: Node, known: set[int]) -> Results:
    protocols = tuple(_one_of(protocol, PROTOCOLS) for protocol in node["protocols"].list())
    rows = tuple(_row(row, protocols, known) for row in node["rows"].list())
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        node["rows"].fail("a list of rows with different names")
    return Results(protocols, rows)


def _row(node: Node, protocols: tuple[str, ...], known: set[int]) -> ResultRow:
    scores: dict[str, dict[int, Score]] = {protocol: {} for protocol in protocols}
    for entry in node["clients"].list():
        for protocol in protocols:
            # A client whose share of the test images is empty has no score under that protocol.
            if (score := entry.get(protocol)) is not None:
                scores[protocol][_known_client(entry["client"], known)] = _score(score)
    return ResultRow(
        name=node["name"].text(),
        kind=_one_of(node["kind"], KINDS),
        note=node["note"].text(),
        bytes_up=node["bytes_up"].integer(),
        bytes_down=node["bytes_down"].integer(),
        scores=scores,
    )


def _score(node: Node) -> Score:
    auc = node.get("auc")
    return Score(
        samples=node["samples"].integer(),
        accuracy=node["accuracy"].number(0, 1),
        balanced_accuracy=node["balanced_accuracy"].number(0, 1),
        auc=auc.number(0, 1) if auc else None,
        ece=node["ece"].number(0, 1),
    )


def _synthetic(file: Path, classes: int) -> tuple[SyntheticImages, ...]:
    if not file.exists():
        return ()
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise FedBiCrossError(
            f"{file} is not a readable safetensors file ({error}); run again or remove it"
        ) from error
    numbers = (name.removeprefix("images.") for name in tensors if name.startswith("images."))
    clusters = sorted(int(number) for number in numbers if number.isdecimal())
    found = []
    for cluster in clusters:
        images, labels = tensors[f"images.{cluster}"], tensors.get(f"labels.{cluster}")
        if labels is None or images.ndim != 4 or images.shape[1] not in (1, 3) or len(labels) != len(images):
            raise FedBiCrossError(
                f"{file}: images.{cluster} of shape {images.shape} needs the shape (B, 1 or 3, H, W) "
                f"and labels.{cluster} of shape (B,); the file is damaged"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise FedBiCrossError(f"{file}: labels.{cluster} holds labels outside 0..{classes - 1}")
        found.append(SyntheticImages(cluster, images.astype(np.float32), labels.astype(np.int64)))
    return tuple(found)


def _quality(node: Node) -> SyntheticQuality:
    agreement = node.get("agreement")
    return SyntheticQuality(
        images=node["images"].integer(1),
        agreement=agreement.number(0, 1) if agreement else None,
        classes=node["classes"].integer(),
        learned=node["learned"].number(0, 1),
        most_frequent=node["most_frequent"].number(0, 1),
    )


def _model_files(folder: Path) -> dict[str, int]:
    """Return the sizes of all models in the folder, by their path relative to it."""
    files = sorted([*folder.glob("models/*.safetensors"), *folder.glob("sites/*/*.safetensors")])
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
