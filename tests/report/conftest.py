"""Fixtures of the report's tests: run folders in a temporary directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_builder import MakeRun, build_run

from fedbicross_flwr.report import write_report


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(name: str = "20261121-a1b2", **options: Any) -> Path:
        return build_run(tmp_path / "runs" / name, **options)

    return make


@pytest.fixture
def run_folder(make_run: MakeRun) -> Path:
    return make_run()


@pytest.fixture(scope="session")
def reported_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run folder with its report, shared by tests that only look at it."""
    folder = build_run(tmp_path_factory.mktemp("runs") / "20261121-a1b2")
    write_report(folder)
    return folder
