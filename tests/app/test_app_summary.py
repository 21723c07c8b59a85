"""The commands that look at finished runs: ``fedbicross report`` and ``fedbicross summary``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_runs import reference
from typer.testing import CliRunner

from fedbicross_flwr.cli import app
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.report import load_run, results_table
from fedbicross_flwr.report.units import percent


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_report_draws_a_finished_run_anew(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reference(), folder)
    (folder / "report.html").unlink()
    assert str(folder / "report.html") in run("report", str(folder)).replace("\n", "")
    assert (folder / "report.html").stat().st_size > 10_000


def test_summary_names_every_row_and_its_mean() -> None:
    printed = run("summary", str(reference()))
    record = load_run(reference())
    assert record.results is not None
    for row in results_table(record).rows:
        (line,) = [
            line for line in printed.splitlines() if line.startswith((f"| {row.name} |", f"| {row.name} ("))
        ]
        mean = row.values["global", "accuracy"].statistic("mean")
        assert mean is not None and line.split("|")[2].strip(" *") == percent(mean)


def test_summary_of_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(FedBiCrossError, match=r"is not a run folder"):
        CliRunner().invoke(app, ["summary", str(tmp_path)], catch_exceptions=False)
