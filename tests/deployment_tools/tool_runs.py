"""Runs of a few seconds whose folders the tools read, and the command line in this process."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbicross_flwr import cli, server
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.data.partition import Partition
from fedbicross_flwr.federated_data import open_data
from fedbicross_flwr.in_process import run_in_process

SMALL: dict[str, Any] = {
    "data.phantom_train": 96, "data.phantom_test": 24, "partition.clients": 3,
    "partition.alpha": float("inf"), "model.width": 2, "client.epochs": 2, "client.batch_size": 16,
    "clustering.clusters": 2, "clustering.num_probes": 16, "clustering.n_init": 2,
    "inversion.iterations": 4, "inversion.batch_size": 12, "cross_cluster.sweeps": 1, "personal.epochs": 1,
    "runtime.precision": "float32", "runtime.server_threads": 1, "runtime.device": "cpu",
}  # fmt: skip


def small(**changes: Any) -> RunConfig:
    """The small configuration; ``client__epochs=3`` stands for ``client.epochs``."""
    return RunConfig.from_flat(SMALL | {key.replace("__", "."): value for key, value in changes.items()})


@cache
def _room() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fedbicross-tests-")


@cache
def finished(**changes: Any) -> Path:
    """The folder of a finished run in process; tests only read it. Without a report, which takes longest."""
    folder = Path(_room().name) / ("-".join(f"{key}-{value}" for key, value in changes.items()) or "run")

    def write_page(path: Path) -> Path:
        (path / "report.html").write_text("no report")
        return path / "report.html"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "write_report", write_page)
        run_in_process(small(**changes), folder)
    return folder


def save_share(run: Path, client: int, path: Path, *, test: bool = True, names: bool = True) -> Path:
    """Write a simulated client's images as a site would have them."""
    source = open_data(small())
    partition = Partition.load(run / "partition.json")
    arrays: dict[str, Any] = {"class_names": np.array(source.info.class_names)} if names else {}
    for part, rows in (("train", partition.train[client]), ("test", partition.test[client])):
        if part == "train" or test:
            arrays[f"{part}_images"] = source.images(part, rows)  # type: ignore[arg-type]
            arrays[f"{part}_labels"] = source.labels(part)[rows]  # type: ignore[arg-type]
    np.savez(path, **arrays)
    return path


@dataclass
class Answer:
    """How a command ended."""

    status: object
    output: str
    error: str

    def is_refusal(self, *words: str) -> None:
        """One line on standard error that holds all the words, status 2, and nothing else."""
        lines = self.error.strip().splitlines()
        assert self.status == 2, self
        assert len(lines) == 1 and lines[0].startswith("error: "), self
        for word in words:
            assert word in lines[0], (word, lines[0])
        assert "Traceback" not in self.output + self.error


class Fedbicross:
    """``fedbicross`` with some words; whatever it prints is caught."""

    def __init__(self, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.patch = patch
        self.capsys = capsys

    def __call__(self, *words: str | Path | int) -> Answer:
        self.patch.setattr(sys, "argv", ["fedbicross", *map(str, words)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        caught = self.capsys.readouterr()
        return Answer(left.value.code or 0, caught.out, caught.err)
