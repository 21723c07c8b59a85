"""The results table: its numbers against the raw file, its marks, and its three forms."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from run_builder import MakeRun, edit

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.report import load_run, render_csv, render_markdown, render_terminal, results_table
from fedbicross_flwr.report.table import MEAN, METRICS, WORST, ResultsTable, TableRow, Value
from fedbicross_flwr.report.units import duration, human_bytes, points

ACCURACY, BALANCED, AUC, ECE = METRICS


def raw(folder: Path, row: str, protocol: str, metric: str) -> dict[int, float]:
    content = json.loads((folder / "metrics.json").read_text())
    entries = next(entry for entry in content["rows"] if entry["name"] == row)["clients"]
    return {entry["client"]: entry[protocol][metric] for entry in entries}


def set_scores(folder: Path, row: str, protocol: str, metric: str, values: list[float | None]) -> None:
    def change(content: Any) -> None:
        entries = next(entry for entry in content["rows"] if entry["name"] == row)["clients"]
        for entry, value in zip(entries, values, strict=True):
            entry[protocol][metric] = value

    edit(folder / "metrics.json", change)


def table_of(*rows: tuple[str, str, float | None], metric: str = "accuracy") -> ResultsTable:
    made = [
        TableRow(name, kind, "", 0, 0, {("global", metric): Value(value, value, 0, 1)})
        for name, kind, value in rows
    ]
    return ResultsTable(("global",), tuple(made), ())


@pytest.mark.parametrize("protocol", ["global", "local"])
@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.key)
def test_mean_and_worst_equal_an_independent_computation(
    run_folder: Path, protocol: str, metric: Any
) -> None:
    for row in results_table(load_run(run_folder)).rows:
        scores = raw(run_folder, row.name, protocol, metric.key)
        value = row.values[protocol, metric.key]
        assert value.mean == pytest.approx(np.mean(list(scores.values())))
        extreme = max if metric.key == "ece" else min
        assert value.worst == extreme(scores.values())
        assert value.worst_client is not None
        assert scores[value.worst_client] == value.worst
        assert value.clients == 5


def test_the_worst_calibration_is_the_highest(run_folder: Path) -> None:
    set_scores(run_folder, "FedBiCross", "local", "ece", [0.1, 0.4, 0.2, 0.3, 0.05])
    set_scores(run_folder, "FedBiCross", "local", "accuracy", [0.5, 0.9, 0.8, 0.4, 0.4])
    values = results_table(load_run(run_folder)).rows[-1].values
    assert (values["local", "ece"].worst, values["local", "ece"].worst_client) == (0.4, 1)
    assert (values["local", "accuracy"].worst, values["local", "accuracy"].worst_client) == (0.4, 3)


def test_a_ceiling_is_never_best() -> None:
    table = table_of(("a", "control", 0.5), ("top", "ceiling", 0.9), ("b", "ours", 0.6))
    assert table.best("global", ACCURACY, MEAN) == {"b"}


def test_a_control_that_wins_is_best() -> None:
    table = table_of(("a", "control", 0.7), ("b", "ours", 0.6))
    assert table.best("global", ACCURACY, MEAN) == {"a"}


def test_the_lowest_calibration_error_is_best() -> None:
    table = table_of(("a", "control", 0.2), ("b", "ours", 0.1), ("c", "ceiling", 0.01), metric="ece")
    assert table.best("global", ECE, WORST) == {"b"}


def test_rows_that_show_the_same_are_all_best() -> None:
    table = table_of(("a", "control", 0.60001), ("b", "ours", 0.60004), ("c", "baseline", 0.5))
    assert table.best("global", ACCURACY, MEAN) == {"a", "b"}


def test_one_row_alone_is_not_best() -> None:
    table = table_of(("a", "control", None), ("b", "ours", 0.1), ("c", "ceiling", 0.2))
    assert table.best("global", ACCURACY, MEAN) == frozenset()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_the_best_shows_no_less_than_any_other(values: list[float]) -> None:
    table = table_of(*((str(index), "ours", value) for index, value in enumerate(values)))
    best = table.best("global", ACCURACY, MEAN)
    assert best
    assert {f"{100 * values[int(name)]:.1f}" for name in best} == {f"{100 * max(values):.1f}"}


def test_a_failed_client_is_left_out_and_named(make_run: MakeRun) -> None:
    table = results_table(load_run(make_run(failed=(3,))))
    assert {value.clients for row in table.rows for value in row.values.values()} == {4}
    assert "Mean over 4 clients; every client counts the same." in table.notes
    assert "Left out, since they failed: client 3." in table.notes


def test_a_protocol_that_some_clients_have_no_test_images_for_is_told(run_folder: Path) -> None:
    def drop(content: dict[str, Any]) -> None:
        for row in content["rows"]:
            for client in row["clients"][3:]:
                del client["local"]

    edit(run_folder / "metrics.json", drop)
    notes = results_table(load_run(run_folder)).notes
    assert "Mean over 5 clients; every client counts the same." in notes
    assert "Under the local protocol means are over 3 clients: the others have no such test image." in notes


def test_rows_over_different_clients_are_pointed_out(run_folder: Path) -> None:
    edit(run_folder / "metrics.json", lambda content: content["rows"][-1]["clients"].pop())
    notes = " ".join(results_table(load_run(run_folder)).notes)
    assert "global protocol the rows do not all cover the same clients" in notes
    assert "local protocol the rows do not all cover the same clients" in notes


def test_an_undefined_auc_is_left_out_and_said(run_folder: Path) -> None:
    set_scores(run_folder, "FedBiCross", "local", "auc", [None, 0.8, 0.6, None, None])
    set_scores(run_folder, "local-only", "local", "auc", [None] * 5)
    table = results_table(load_run(run_folder))
    value = table.rows[-1].values["local", "auc"]
    assert value.mean == pytest.approx(0.7)
    assert (value.worst, value.clients) == (0.6, 2)
    assert table.rows[0].values["local", "auc"] == Value(None, None, None, 0)
    assert any(note.startswith("AUC under the local protocol leaves out 5 clients") for note in table.notes)
    assert "–" in render_markdown(table)


def test_a_deployment_has_the_local_protocol_only(make_run: MakeRun) -> None:
    table = results_table(load_run(make_run(deployment=True)))
    assert table.protocols == ("local",)
    assert "Global test" not in render_markdown(table)


def test_a_run_without_results_says_so(run_folder: Path) -> None:
    (run_folder / "metrics.json").unlink()
    with pytest.raises(FedBiCrossError, match=r"has no metrics\.json"):
        results_table(load_run(run_folder))


@pytest.mark.parametrize("width", [100, 120])
def test_the_terminal_table_fits_and_is_plain(run_folder: Path, width: int) -> None:
    table = results_table(load_run(run_folder))
    stream = io.StringIO()
    render_terminal(table, Console(file=stream, width=width))
    text = stream.getvalue()
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    for row in table.rows:
        for (_, metric), value in row.values.items():
            assert value.mean is not None, metric
            assert f"{100 * value.mean:.1f}" in text
    columns = 2 * 2 * len(METRICS)
    stars = sum(
        len(table.best(protocol, metric, statistic))
        for protocol in table.protocols
        for metric in METRICS
        for statistic in (MEAN, WORST)
    )
    assert stars >= columns
    assert len(re.findall(r"\d\*", text)) == stars


def test_csv_round_trip(run_folder: Path) -> None:
    table = results_table(load_run(run_folder))
    lines = list(csv.DictReader(io.StringIO(render_csv(table))))
    assert len(lines) == 12
    for line in lines:
        row = next(row for row in table.rows if row.name == line["method"])
        assert (int(line["bytes_sent"]), int(line["bytes_received"])) == (row.bytes_up, row.bytes_down)
        for metric in METRICS:
            value = row.values[line["protocol"], metric.key]
            assert float(line[f"{metric.key}_mean"]) == value.mean
            assert float(line[f"{metric.key}_worst"]) == value.worst
            assert int(line[f"{metric.key}_worst_client"]) == value.worst_client


def test_markdown_round_trip(run_folder: Path) -> None:
    table = results_table(load_run(run_folder))
    lines = [line for line in render_markdown(table).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(line) for line in cells} == {1 + 2 * len(METRICS) + 2}
    assert len(cells) == 2 * (2 + len(table.rows))
    local = cells[2 + len(table.rows) + 2 :]
    for row, line in zip(table.rows, local, strict=True):
        mean, worst = row.values["local", "accuracy"].mean, row.values["local", "accuracy"].worst
        assert mean is not None
        assert worst is not None
        assert line[1].strip("*") == f"{100 * mean:.1f}"
        assert line[2].strip("*") == f"{100 * worst:.1f}"
        assert line[1].startswith("**") == (row.name in table.best("local", ACCURACY, MEAN))
    assert local[3][0] == "ensemble of all uploads (ceiling)"
    assert local[3][-2:] == ["2.8 MB", "14.0 MB"]


def test_a_pipe_in_a_name_does_not_break_markdown(run_folder: Path) -> None:
    edit(run_folder / "metrics.json", lambda content: content["rows"][0].update(name="a|b"))
    assert "| a\\|b |" in render_markdown(results_table(load_run(run_folder)))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (44_800_000, "44.8 MB"),
        (999_960, "1.0 MB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (725, "12 min 5 s"), (12_000, "3 h 20 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_difference_agrees_with_the_figures_shown() -> None:
    assert points(0.63749, 0.26051) == "+37.6"  # 63.7 and 26.1; unrounded 37.698 would show 37.7
    assert points(0.5, 0.512) == "−1.2"
    assert points(0.50001, 0.50004) == "±0.0"
