"""Runs of a few seconds whose folders the tools read, and the command line in this process."""

from __future__ import annotations

import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import Answer
from small_runs import tiny as small

from fedbicross_flwr import cli, server
from fedbicross_flwr.data.partition import Partition
from fedbicross_flwr.federated_data import open_data
from fedbicross_flwr.in_process import run_in_process


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
