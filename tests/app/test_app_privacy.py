"""A client's images stay with it: who reads which rows, and what the server ever reads."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_grid import LocalGrid, run_app
from numpy.typing import NDArray
from small_runs import tiny, without_report

from client_app import app as client_module
from fedbicross_flwr import in_process, server
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.data.partition import Partition
from fedbicross_flwr.data.source import DatasetInfo, ImageSource, Part
from fedbicross_flwr.federated_data import open_data
from fedbicross_flwr.runs import opening as run_opening

SERVER = -1


@dataclass
class Readings:
    """Which rows were read, by whoever is at work."""

    reader: int = SERVER
    rows: dict[tuple[int, Part], set[int]] = field(default_factory=dict)

    def of(self, reader: int, part: Part) -> set[int]:
        return self.rows.get((reader, part), set())


@dataclass
class WatchedSource:
    """A source that notes which images were read."""

    inner: ImageSource
    readings: Readings

    @property
    def info(self) -> DatasetInfo:
        return self.inner.info

    def labels(self, part: Part) -> NDArray[np.int64]:
        return self.inner.labels(part)

    def images(self, part: Part, indices: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        chosen = np.arange(len(self.labels(part))) if indices is None else indices
        self.readings.rows.setdefault((self.readings.reader, part), set()).update(map(int, chosen))
        return self.inner.images(part, indices)

    def fingerprint(self) -> str:
        return self.inner.fingerprint()


class WatchedGrid(LocalGrid):
    """Says whose ClientApp is at work."""

    readings: Readings

    def deliver(self, message, client):  # type: ignore[no-untyped-def]
        self.readings.reader = client
        reply = super().deliver(message, client)
        self.readings.reader = SERVER
        return reply


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Readings]]:
    """A run under Flower whose every reading of images was noted."""
    folder = tmp_path_factory.mktemp("privacy") / "run"
    readings = Readings()

    def watched(config: RunConfig) -> WatchedSource:
        return WatchedSource(open_data(config), readings)

    config = dataclasses.replace(tiny(), out=str(folder))
    grid = WatchedGrid(config, 3)
    grid.readings = readings
    with pytest.MonkeyPatch.context() as patch, without_report():
        patch.setattr(run_opening, "open_data", watched)
        patch.setattr(client_module, "open_data", watched)
        run_app(config, grid)
    yield folder, readings


def test_a_client_reads_its_own_training_images_and_no_others(finished: tuple[Path, Readings]) -> None:
    folder, readings = finished
    partition = Partition.load(folder / "partition.json")
    for client, rows in enumerate(partition.train):
        assert readings.of(client, "train") == set(rows.tolist())
    assert sum(len(readings.of(client, "train")) for client in range(3)) == 96


def test_the_server_reads_test_images_only(finished: tuple[Path, Readings]) -> None:
    readings = finished[1]
    assert readings.of(SERVER, "train") == set()
    assert readings.of(SERVER, "test") == set(range(24))


def test_in_process_a_client_s_work_reads_no_other_client_s_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = Readings()
    monkeypatch.setattr(run_opening, "open_data", lambda config: WatchedSource(open_data(config), readings))
    for name in ("upload", "personal"):
        work = getattr(in_process, name)

        def watched(run: server.Server, client: int, *rest: Any, work: Any = work) -> Any:
            readings.reader = client
            try:
                return work(run, client, *rest)
            finally:
                readings.reader = SERVER

        monkeypatch.setattr(in_process, name, watched)
    with without_report():
        in_process.run_in_process(tiny(), tmp_path / "run")
    partition = Partition.load(tmp_path / "run" / "partition.json")
    for client, rows in enumerate(partition.train):
        assert readings.of(client, "train") == set(rows.tolist())
    assert readings.of(SERVER, "train") == set()


def test_a_client_s_directory_is_its_own(finished: tuple[Path, Readings]) -> None:
    for site in (finished[0] / "sites").iterdir():
        assert {re.sub("controls-[0-9a-f]{16}", "controls", file.name) for file in site.iterdir()} == {
            "controls.json",
            "local.safetensors",
            "personal.safetensors",
            "scores.json",
        }
