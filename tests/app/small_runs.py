"""Runs of a few seconds, and what is compared between them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbicross_flwr import server
from fedbicross_flwr.artifacts import digest, read_tensors
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.in_process import run_in_process
from fedbicross_flwr.progress import EventLog

TINY: dict[str, Any] = {
    "data.phantom_train": 96,
    "data.phantom_test": 24,
    "partition.clients": 3,
    "partition.alpha": float("inf"),
    "model.width": 2,
    "client.epochs": 2,
    "client.batch_size": 16,
    "clustering.clusters": 2,
    "clustering.num_probes": 16,
    "clustering.n_init": 2,
    "inversion.iterations": 4,
    "inversion.batch_size": 12,
    "cross_cluster.sweeps": 1,
    "personal.epochs": 1,
    "runtime.precision": "float32",
    "runtime.server_threads": 1,
    "runtime.device": "cpu",
}
"""Equal shares, since dealing unequal ones imports Flower Datasets, which takes longer than the run."""


@dataclass
class Answer:
    """How a command ended."""

    status: object
    output: str
    error: str

    def is_refusal(self, *words: str) -> None:
        """One line on standard error that holds all the words, status 2, and nothing that was run."""
        lines = self.error.strip().splitlines()
        assert self.status == 2, self
        assert len(lines) == 1 and lines[0].startswith("error: "), self
        for word in words:
            assert word in lines[0], (word, lines[0])
        assert "Traceback" not in self.output + self.error


def tiny(**changes: Any) -> RunConfig:
    """The small configuration; ``client__epochs=3`` stands for ``client.epochs``."""
    return RunConfig.from_flat(TINY | {key.replace("__", "."): value for key, value in changes.items()})


@cache
def _room() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fedbicross-tests-")


@cache
def reference() -> Path:
    """The folder of one uninterrupted run in process; tests only read it."""
    folder = Path(_room().name) / "reference"
    run_in_process(tiny(), folder)
    return folder


@contextmanager
def without_report() -> Iterator[None]:
    """Runs leave an empty page instead of the report, whose figures take longer than all else."""

    def write_page(folder: Path) -> Path:
        (folder / "report.html").write_text("no report")
        return folder / "report.html"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "write_report", write_page)
        yield


def run_tiny(folder: Path, config: RunConfig | None = None) -> Path:
    """Run in process, without the report."""
    with without_report():
        run_in_process(config or tiny(), folder)
    return folder


def outcome(folder: Path) -> dict[str, str]:
    """What a run comes to, bit for bit: scores, cluster models, personal models."""
    models = sorted([*folder.glob("models/*.safetensors"), *folder.glob("sites/*/*.safetensors")])
    found = {str(path.relative_to(folder)): digest(read_tensors(path)[0]) for path in models}
    return {**found, "metrics": (folder / "metrics.json").read_text()}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def checksums(folder: Path) -> dict[str, str]:
    """A checksum of every file in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flip_byte(path: Path, position: int = -1) -> None:
    """Damage a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x55
    path.write_bytes(content)


Step = tuple[str, int | None, int]
"""Stage, client, and how many of its steps are done."""


class Watch:
    """Sees every step that is reported, and raises `KeyboardInterrupt` at one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, stop: Step | None = None) -> None:
        self.steps: list[Step] = []
        report = EventLog.advance

        def advance(log: EventLog, stage: str, done: int, total: int, *, client: int | None = None) -> None:
            report(log, stage, done, total, client=client)
            self.steps.append((stage, client, done))
            if self.steps[-1] == stop:
                raise KeyboardInterrupt

        patch.setattr(EventLog, "advance", advance)

    @property
    def work(self) -> set[tuple[str, int | None]]:
        """Stages that were worked on, and by which client."""
        return {(stage, client) for stage, client, _ in self.steps}


def save_site(path: Path, train: int = 36, test: int = 12, classes: int = 3, **arrays: Any) -> Path:
    """Write random images in MedMNIST's layout; `arrays` replaces or adds some, None leaves one out."""
    generator = np.random.default_rng(0)
    content: dict[str, Any] = {}
    for split, size in (("train", train), ("test", test)):
        content[f"{split}_images"] = generator.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        content[f"{split}_labels"] = (np.arange(size) % classes).astype(np.uint8)[:, None]
    content |= arrays
    np.savez(path, **{name: array for name, array in content.items() if array is not None})
    return path
