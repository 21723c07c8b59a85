"""The paper's figures as they are kept, and its tables with ours beside them."""

from __future__ import annotations

import csv
import io
import re
import statistics
from pathlib import Path

import pytest
from comparison_builder import build_cell_run, build_comparison

from fedbicross_flwr.compare.collect import collect
from fedbicross_flwr.compare.commands import table_text
from fedbicross_flwr.compare.lines import PERSONAL, SHIPPED, line_of, lines_of
from fedbicross_flwr.compare.paper import load_paper
from fedbicross_flwr.compare.paper_tables import paper_table
from fedbicross_flwr.compare.variants import VARIANTS


def test_the_papers_figures_are_complete_and_agree_with_its_text() -> None:
    paper = load_paper()
    assert list(paper.tables) == ["I", "II", "III"]
    for table in paper.tables.values():
        assert len(table.rows) == 13 and table.page > 0
        for row in table.rows:
            assert row.variant in VARIANTS
            assert row.values.keys() == table.clients.keys() == paper.titles.keys()
            for values in row.values.values():
                assert len(values) == len(table.alphas) == 4
                assert all(0 <= value <= 100 for value in values)

    def figure(table: str, name: str, data: str, alpha: float) -> float:
        (row,) = [row for row in paper.tables[table].rows if row.name == name]
        return row.values[data][paper.tables[table].alphas.index(alpha)]

    # Section IV-B and IV-C quote these.
    assert figure("I", "Ours (K = 4)", "bloodmnist", 0.1) == 85.57
    assert figure("I", "Co-Boosting", "bloodmnist", 0.1) == 54.75
    assert figure("I", "Co-Boosting", "bloodmnist", 0.5) == 80.32
    assert figure("I", "Ours (K = 3)", "bloodmnist", 0.5) == 90.13
    assert figure("III", "Ours (K = 8)", "bloodmnist", 0.1) == 66.73
    assert figure("III", "Co-Boosting", "bloodmnist", 0.1) == 37.09
    assert [
        figure("I", name, "bloodmnist", 0.1) for name in ("Intra-cluster", "Uniform cross", "Sim-weighted")
    ] == [
        80.01,
        81.66,
        82.99,
    ]
    assert figure("II", "Ours (K = 4)", "dermamnist", 0.1) == 63.84
    assert figure("II", "w/o PKD", "dermamnist", 0.1) == 51.03
    assert figure("III", "Ours (K = 8)", "tissuemnist", 0.1) == 53.68
    assert figure("III", "w/o Clus", "tissuemnist", 0.1) == 48.72
    assert paper.tables["III"].clients["dermamnist"] == 15
    assert paper.figures["2"]["values"] is None


def test_table_one_puts_ours_beside_the_papers(tmp_path: Path) -> None:
    out = build_comparison(tmp_path, [("bloodmnist", 5, 0.1)], ("fedavg", "fedbicross"), (0, 1))
    build_comparison(tmp_path, [("phantom", 5, 0.3), ("phantom", 10, 0.3)], ("fedbicross",), (0,))
    build_cell_run(
        out / "bloodmnist-N5-alpha0.1" / "fedbicross-K2" / "seed-0", "fedbicross-K2", 0, "bloodmnist", 5, 0.1
    )
    rows = list(csv.DictReader(io.StringIO(table_text("I", out, "csv"))))
    found = {(row["data"], row["alpha"], row["method"]): row for row in rows}
    cell = next(c for c in collect(out).cells if c.cell.data == "bloodmnist")
    lines = lines_of(cell)
    for method, variant, role in (
        ("FedAvg-1", "fedavg", SHIPPED),
        ("Ours (K = 3)", "fedbicross", PERSONAL),
        ("w/o PKD", "fedbicross", SHIPPED),
        ("Ours (K = 2)", "fedbicross-K2", PERSONAL),
    ):
        ours = line_of(lines, variant, role)
        assert ours is not None
        means = [
            statistics.fmean(s.accuracy for s in one.scores["global"].values()) for one in ours.seeds.values()
        ]
        read = found["bloodmnist", "0.1", method]
        assert float(read["ours_global_mean"]) == pytest.approx(100 * statistics.fmean(means))
        assert read["seeds"] == str(len(means))
    assert found["bloodmnist", "0.1", "FedAvg-1"]["paper"] == "14.23"
    assert found["bloodmnist", "0.1", "Ours (K = 4)"]["ours_global_mean"] == ""
    assert found["bloodmnist", "0.2", "Ours (K = 3)"]["ours_global_mean"] == ""
    assert found["phantom", "0.3", "Ours (K = 3)"]["paper"] == ""
    assert {row["clients"] for row in rows} == {"5"}
    assert len(rows) == 13 * (4 * 4 + 1)


def test_what_is_not_run_is_a_dash_and_differences_are_said(tmp_path: Path) -> None:
    out = build_comparison(tmp_path, [("phantom", 20, 0.3)], ("fedbicross",), (0,))
    text = table_text("3", out, "markdown")
    assert "| FedAvg-1 | - | - | 12.95 |" in text
    assert "phantom is not a data set of the paper" in text
    assert "inversion.iterations is 6 (paper: 500)" in text
    assert "DermaMNIST, N = 15" in text and "phantom, N = 20 (not in the paper)" in text
    assert "Nothing of this table has been run." in table_text("I", out, "markdown")
    assert len(paper_table("iii", collect(out)).blocks) == 5
    latex = table_text("III", out, "latex")
    assert latex.count(r"\begin{table*}") == 5 and "%" not in re.sub(r"\\%|^%.*|\{%$", "", latex, flags=re.M)
