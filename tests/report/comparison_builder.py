"""Builds comparison folders, ``<out>/<cell>/<variant>/seed-<s>/``, of runs with known levels of accuracy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from run_builder import CLASSES, build_run, dump, edit, score

from fedbicross_flwr.compare.variants import AUTOMATIC, VARIANTS
from fedbicross_flwr.flower_names import FLOWER_NAMES
from fedbicross_flwr.settings import read_toml

MODEL = 2_800_000

LEVELS: dict[str, tuple[float, float, float, float]] = {
    "fedavg": (0.20, 0.25, 0.44, 0.70),
    "dafl": (0.24, 0.27, 0.45, 0.71),
    "dense": (0.38, 0.41, 0.50, 0.73),
    "fedisca": (0.45, 0.48, 0.54, 0.74),
    "coboosting": (0.47, 0.50, 0.56, 0.75),
    "fedbicross": (0.55, 0.66, 0.63, 0.80),
    "fedbicross-intra": (0.50, 0.62, 0.59, 0.78),
    "fedbicross-uniform": (0.52, 0.60, 0.60, 0.77),
    "fedbicross-similarity": (0.53, 0.63, 0.61, 0.78),
    "fedbicross-no-clustering": (0.46, 0.49, 0.55, 0.75),
    "fedbicross-balanced": (0.55, 0.66, 0.67, 0.79),
    "fedbicross-parameters": (0.53, 0.64, 0.61, 0.79),
    "fedbicross-hierarchical": (0.52, 0.65, 0.61, 0.78),
    "fedbicross-pacfl": (0.55, 0.66, 0.62, 0.80),
    "fedbicross-K2": (0.52, 0.60, 0.60, 0.78),
    "fedbicross-K4": (0.53, 0.68, 0.61, 0.81),
    AUTOMATIC: (0.56, 0.67, 0.65, 0.815),
}
"""Global and local accuracy as shipped, and of the personal model."""

CHOSEN_CLUSTERS = (2, 3, 3)
"""What the silhouette chooses, by seed, where K is automatic."""

SECONDS = {"fedavg": 0.0, "dafl": 95.0, "dense": 240.0, "fedisca": 310.0, "coboosting": 410.0}
CENTRAL = (0.86, 0.87)

ROUNDS = 5
FLOWER_LEVELS: dict[str, tuple[float, float, float, float]] = {
    "flower:FedAvg": (0.78, 0.79, 0.76, 0.84),
    "flower:FedProx": (0.74, 0.76, 0.75, 0.83),
    "flower:FedAdam": (0.60, 0.62, 0.66, 0.78),
    "flower:Krum": (0.42, 0.50, 0.52, 0.72),
}
FLOWER_LEVELS |= {name: (0.50, 0.55, 0.57, 0.75) for name in FLOWER_NAMES if name not in FLOWER_LEVELS}
"""As `LEVELS`, of strategies that take `ROUNDS` rounds; they are built when they are named."""


def build_comparison(
    out: Path,
    cells: Sequence[tuple[str, int, float]] = (("phantom", 5, 0.3),),
    variants: Sequence[str] = tuple(LEVELS),
    seeds: Sequence[int] = (0, 1, 2),
    classes: tuple[str, ...] = CLASSES,
) -> Path:
    for data, clients, alpha in cells:
        for variant in variants:
            for seed in seeds:
                folder = out / f"{data}-N{clients}-alpha{alpha:g}" / variant / f"seed-{seed}"
                build_cell_run(folder, variant, seed, data, clients, alpha, classes)
    return out


def build_cell_run(
    folder: Path,
    variant: str,
    seed: int = 0,
    data: str = "phantom",
    clients: int = 5,
    alpha: float = 0.3,
    classes: tuple[str, ...] = CLASSES,
) -> Path:
    number = variant.partition("-K")[2]
    clusters = int(number) if number else 1 if variant.endswith("no-clustering") else 3
    if variant == AUTOMATIC:
        clusters = CHOSEN_CLUSTERS[seed]
    build_run(
        folder, clients=clients, clusters=clusters, steps=6, rounds=1, seed=seed, alpha=alpha, classes=classes
    )
    config = folder / "config.toml"
    config.write_text(config.read_text(encoding="utf-8").replace("bloodmnist", data), encoding="utf-8")
    if variant == AUTOMATIC:
        text = config.read_text(encoding="utf-8").replace(f"clusters = {clusters}", 'clusters = "auto"')
        config.write_text(text, encoding="utf-8")
    server = SECONDS.get(variant, 520.0) * (1 + 0.03 * seed)
    seconds = {"upload round": 140.0, "synthesis": server, "evaluation": 30.0, "total": 900.0}
    edit(folder / "run.json", lambda content: content.update(seconds=seconds))
    edit(
        folder / "clustering.json",
        lambda content: content.update(silhouette=0.2 + 0.06 * (4 - abs(clusters - 3))),
    )
    if variant == "fedavg" or variant in FLOWER_LEVELS:
        (folder / "synthetic.safetensors").unlink()
        (folder / "synthetic.json").unlink()
    if variant in FLOWER_LEVELS:
        level = FLOWER_LEVELS[variant][0]
        said = {"rounds": ROUNDS, "accuracy": [level * number / ROUNDS for number in range(ROUNDS + 1)]}
        edit(folder / "run.json", lambda content: content.update(flower=said))
    dump(
        folder / "metrics.json",
        {"protocols": ["global", "local"], "rows": rows(variant, seed, clients, alpha)},
    )
    return folder


def rows(variant: str, seed: int, clients: int, alpha: float) -> list[dict[str, Any]]:
    shift = 0.25 * (alpha - 0.3)
    # What all runs of a seed share must be the same in each of them; the rest is the variant's own.
    shared = np.random.default_rng(seed)
    own = np.random.default_rng([seed, *variant.encode()])
    common = [
        row("local-only", "control", (0.50, 0.70), clients, shared, shift, 0, 0),
        row("local-only, same budget", "control", (0.52, 0.73), clients, shared, shift, 0, 0),
        row("FedAvg-1", "baseline", (0.20, 0.25), clients, shared, shift, MODEL, MODEL),
        row(
            "ensemble of all uploads", "ceiling", (0.74, 0.78), clients, shared, shift, MODEL, clients * MODEL
        ),
    ]
    if variant == "central":
        return [row("central model on pooled data", "ceiling", CENTRAL, clients, own, shift, 0, MODEL)]
    if variant in FLOWER_LEVELS:
        name, level, sizes = (
            f"{variant}, 5 rounds",
            FLOWER_LEVELS[variant],
            (ROUNDS * MODEL, (ROUNDS + 1) * MODEL),
        )
        return [
            *common[:2],
            row(name, "baseline", level[:2], clients, own, shift, *sizes),
            row(f"{name}, fine-tuned", "baseline", level[2:], clients, own, shift, *sizes),
        ]
    if variant == "fedavg":
        del common[2]
    title = VARIANTS[variant].title if variant in VARIANTS else variant
    ours = variant.startswith("fedbicross")
    names = (
        ("FedBiCross without personal distillation", "FedBiCross")
        if ours
        else (title, f"{title}, fine-tuned")
    )
    level = LEVELS[variant]
    kind = "ours" if ours else "baseline"
    return [
        *common,
        row(names[0], kind, level[:2], clients, own, shift, MODEL, MODEL),
        row(names[1], kind, level[2:], clients, own, shift, MODEL, MODEL),
    ]


def row(
    name: str,
    kind: str,
    levels: tuple[float, ...],
    clients: int,
    rng: np.random.Generator,
    shift: float,
    up: int,
    down: int,
) -> dict[str, Any]:
    scores = [
        {"client": client, "global": score(levels[0] + shift, rng), "local": score(levels[1] + shift, rng)}
        for client in range(clients)
    ]
    return {"name": name, "kind": kind, "note": "", "bytes_up": up, "bytes_down": down, "clients": scores}


def log_work(
    folder: Path,
    seconds: Mapping[str, float],
    trained: Sequence[int] = (),
    personal: Sequence[int] = (),
    lasted: float = 0.0,
) -> None:
    """Give a run these seconds, and a log in which these clients trained and made their personal models."""
    work = [("training", client) for client in trained] + [("fine-tuning", client) for client in personal]
    times = [100.0 + lasted * index / max(len(work) - 1, 1) for index in range(len(work))]
    events = [
        {"time": time, "stage": stage, "done": 2, "total": 2, "client": client, "text": ""}
        for time, (stage, client) in zip(times, work, strict=True)
    ]
    # A note may come at any time, long after the work.
    events.append({"time": 1e6, "stage": "note", "done": 1, "total": 1, "client": None, "text": "a note"})
    (folder / "progress.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    edit(folder / "run.json", lambda content: content.update(seconds=dict(seconds)))


def set_config(folder: Path, **settings: Any) -> None:
    """Give one run these settings; ``client__lr=0.1`` stands for ``client.lr``."""
    flat = {**read_toml(folder / "config.toml"), **{k.replace("__", "."): v for k, v in settings.items()}}
    # TOML takes a key with dots for one in a table.
    lines = [f"{key} = {json.dumps(value)}" for key, value in flat.items()]
    (folder / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def set_accuracies(folder: Path, name: str, protocol: str, values: Mapping[int, float]) -> None:
    """Give clients of one row of one run these accuracies under one protocol."""

    def change(content: dict[str, Any]) -> None:
        found = next(row for row in content["rows"] if row["name"] == name)
        for entry in found["clients"]:
            if entry["client"] in values:
                entry[protocol]["accuracy"] = values[entry["client"]]

    edit(folder / "metrics.json", change)
