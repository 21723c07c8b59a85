"""The paper's figures as they are kept, and its tables with ours beside them."""

from __future__ import annotations

import csv
import io
import re
import statistics
from pathlib import Path

import pytest
from comparison_builder import build_cell_run, build_comparison, set_accuracies, set_config
from run_builder import edit

from fedbicross_flwr.compare.collect import collect
from fedbicross_flwr.compare.commands import table_text
from fedbicross_flwr.compare.lines import PERSONAL, SHIPPED, line_of, lines_of
from fedbicross_flwr.compare.paired import NOT_INDEPENDENT, paired_tests
from fedbicross_flwr.compare.paper import load_paper
from fedbicross_flwr.compare.paper_tables import paper_table
from fedbicross_flwr.compare.plan import SCALES, scale_file
from fedbicross_flwr.compare.scale import settings_of
from fedbicross_flwr.compare.variants import VARIANTS
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.settings import read_toml


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
    settings = {**settings_of("paper"), "inversion.iterations": 6, "inversion.tv_weight": 5.0}
    run = out / "phantom-N20-alpha0.3" / "fedbicross" / "seed-0"
    set_config(run, **{key.replace(".", "__"): value for key, value in settings.items()})
    text = table_text("3", out, "markdown")
    assert "| FedAvg-1 | - | - | 12.95 |" in text
    assert "phantom is not a data set of the paper" in text
    assert "- FedBiCross: inversion.iterations 6 (500), tv_weight 5.0 (2.5e-05).\n" in text
    assert "DermaMNIST, N = 15" in text and "phantom, N = 20 (not in the paper)" in text
    assert "Nothing of this table has been run." in table_text("I", out, "markdown")
    assert len(paper_table("iii", collect(out)).blocks) == 5
    latex = table_text("III", out, "latex")
    assert latex.count(r"\begin{table*}") == 5 and "%" not in re.sub(r"\\%|^%.*|\{%$", "", latex, flags=re.M)


def test_a_scale_takes_its_own_runs_alone(tmp_path: Path) -> None:
    """K, data set and partition are no part of a scale, nor is what a method does not read."""
    folder = bloodmnist(tmp_path, ("fedavg", "fedbicross", "fedbicross-K2"), (0,))
    others = {
        "data.name": "bloodmnist",
        "data.phantom_train": 999,
        "partition.alpha": 0.1,
        "partition.balance": False,
        "clustering.clusters": 2,
        "dense.lr": 0.5,
    }
    for name, scale in (("fedavg", "quick"), ("fedbicross", "paper"), ("fedbicross-K2", "paper")):
        settings = RunConfig.from_flat(read_toml(scale_file(scale))).flat()
        method = VARIANTS[name].overrides["method"]
        set_config(folder / name / "seed-0", **{**settings, **others, "method": method, "out": ""})
    set_config(folder / "fedbicross-K2" / "seed-0", **{"inversion.iterations": 7})
    quick, paper = (table_text("bloodmnist-N5-alpha0.1", tmp_path, "markdown", scale) for scale in SCALES)
    assert re.search(r"\| FedAvg-1 \| \S*\d", quick) and "| FedBiCross (of another scale) |" in quick
    assert re.search(r"\| FedBiCross \| \S*\d", paper) and "| FedAvg-1 (of another scale) |" in paper
    assert "fedbicross-K2/seed-0: of another scale: inversion.iterations is 7 and not 500" in paper
    table = table_text("I", tmp_path, "markdown", "quick")
    assert "of another scale" in line_with(table, "Ours (K = 2)")
    with pytest.raises(FedBiCrossError, match="--scale 'papr' is not one of quick, paper"):
        table_text("I", tmp_path, "markdown", "papr")


def test_a_scale_leaves_the_rounds_of_a_strategy_open(tmp_path: Path) -> None:
    """``compare --rounds 10`` asks for them at any scale, and tables name them."""
    folder = bloodmnist(tmp_path, ("flower:FedAvg",))
    settings = RunConfig.from_flat(read_toml(scale_file("quick"))).flat()
    place = {"data.name": "bloodmnist", "partition.alpha": 0.1, "method": "flower:FedAvg", "out": ""}
    run = folder / "flower:FedAvg" / "seed-0"
    set_config(run, **{**settings, **place, "flower.rounds": 10})
    text = table_text(folder.name, tmp_path, "markdown", "quick")
    assert re.search(r"\| FedAvg \(5 rounds\) \| \S*\d", text) and "of another scale" not in text
    set_config(run, client__epochs=30)
    assert "of another scale" in table_text(folder.name, tmp_path, "markdown", "quick")


def differences(text: str) -> list[str]:
    """Return the lines of a table that say where its runs' settings are not the paper's."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if "are not at the paper’s scale" in line), len(lines))
    return [line for line in lines[start + 1 :] if re.match(r"- [^:]*: [a-z_]+\.\w+ ", line)]


def test_the_settings_in_which_our_runs_differ_are_told_by_method(tmp_path: Path) -> None:
    cell = bloodmnist(tmp_path, ("fedavg", "dafl", "fedbicross", "fedbicross-intra", "fedbicross-parameters"))
    paper = RunConfig.from_flat(read_toml(scale_file("paper"))).flat()
    own = {"client.epochs": 10, "data.name": "bloodmnist", "partition.alpha": 0.1, "out": "", "dense.lr": 0.5}
    changes: dict[str, dict[str, object]] = {
        "fedavg": {"inversion.tv_weight": 5.0, "dafl.epochs": 3},
        "dafl": {"dafl.epochs": 16, "dafl.steps": 20, "inversion.tv_weight": 7.0},
        "fedbicross": {"personal.replay": 0.5, "inversion.tv_weight": 50.0},
        "fedbicross-intra": {"personal.replay": 0.25, "cross_cluster.weights": "intra"},
        # It has no row in the paper's tables.
        "fedbicross-parameters": {"clustering.by": "parameters", "model.width": 8},
    }
    for name, change in changes.items():
        settings = {**paper, **own, "method": VARIANTS[name].overrides["method"], **change}
        set_config(cell / name / "seed-0", **settings)
    assert differences(table_text("I", tmp_path, "markdown")) == [
        "- All methods: client.epochs 10 (100).",
        "- DAFL: dafl.epochs 16 (2000), steps 20 (120).",
        "- FedBiCross: inversion.tv_weight 2.5e-05 and 50.0 (2.5e-05); personal.replay 0.25 and 0.5 (0.0).",
    ]
    latex = table_text("I", tmp_path, "latex")
    assert latex.count("DAFL: dafl.epochs 16 (2000), steps 20 (120).") == 1, "below what was run alone"
    set_config(cell / "dafl" / "seed-0", client__epochs=20, dafl__epochs=2000, dafl__steps=120)
    found = differences(table_text("I", tmp_path, "markdown"))
    assert found[:2] == [
        "- FedAvg-1 and FedBiCross: client.epochs 10 (100).",
        "- DAFL: client.epochs 20 (100).",
    ]


def test_runs_at_the_papers_scale_are_said_to_differ_in_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = bloodmnist(tmp_path, ("fedavg",))
    paper = RunConfig.from_flat(read_toml(scale_file("paper"))).flat()
    own = {"data.name": "bloodmnist", "partition.alpha": 0.1, "method": "fedavg", "out": ""}
    set_config(cell / "fedavg" / "seed-0", **{**paper, **own, "inversion.tv_weight": 5.0})
    assert "paper’s scale" not in table_text("I", tmp_path, "markdown")
    set_config(cell / "fedavg" / "seed-0", model__width=16)
    text = table_text("I", tmp_path, "markdown")
    assert differences(text) == ["- FedAvg-1: model.width 16 (64)."]

    def no_checkout() -> Path:
        raise FedBiCrossError("this is not a checkout")

    monkeypatch.setattr("fedbicross_flwr.compare.plan.find_app", no_checkout)
    text = table_text("I", tmp_path, "markdown")
    assert "Where our settings are not the paper’s is not told: this is not a checkout." in text


def test_the_scale_of_the_paper_is_that_of_section_iv_a() -> None:
    said = {
        "model.name": "resnet18", "model.width": 64, "client.epochs": 100, "client.lr": 1e-3,
        "client.batch_size": 128, "clustering.num_probes": 256, "inversion.iterations": 500,
        "inversion.batch_size": 256, "inversion.lr": 0.05, "inversion.tv_weight": 2.5e-5,
        "inversion.bn_weight": 10.0, "cross_cluster.train_fraction": 0.8, "cross_cluster.temperature": 20.0,
        "teacher.noise_momentum": 0.9, "personal.gamma": 0.5, "personal.delta": 0.3, "personal.epochs": 10,
    }  # fmt: skip
    assert said.items() <= settings_of("paper").items()


def bloodmnist(
    out: Path, variants: tuple[str, ...], seeds: tuple[int, ...] = (0,), alpha: float = 0.1
) -> Path:
    """Build a cell of Table I, and return its folder."""
    build_comparison(out, [("bloodmnist", 5, alpha)], variants, seeds)
    return out / f"bloodmnist-N5-alpha{alpha:g}"


def equal(folder: Path, name: str, value: float) -> None:
    """Give all clients of one row this global accuracy."""
    set_accuracies(folder, name, "global", dict.fromkeys(range(5), value))


def csv_rows(out: Path, alpha: str = "0.1") -> dict[str, dict[str, str]]:
    rows = csv.DictReader(io.StringIO(table_text("I", out, "csv")))
    return {row["method"]: row for row in rows if (row["data"], row["alpha"]) == ("bloodmnist", alpha)}


def line_with(text: str, method: str) -> str:
    """Return the first row of a method: BloodMNIST comes first."""
    return next(line for line in text.splitlines() if line.startswith((f"| {method} |", f"{method} &")))


def test_the_clusters_of_the_ablations_are_said(tmp_path: Path) -> None:
    bloodmnist(tmp_path, ("fedbicross-no-clustering", "fedbicross-K2"), (0,))
    assert "Ablations, w/o Clus apart" not in table_text("I", tmp_path, "markdown")
    bloodmnist(tmp_path, ("fedbicross-intra",), (0,))
    assert "Ablations, w/o Clus apart, ran with K = 3." in table_text("I", tmp_path, "markdown")


def test_the_best_of_each_column_is_marked_in_all_formats(tmp_path: Path) -> None:
    cell = bloodmnist(tmp_path, ("fedavg", "dense", "fedbicross", "fedbicross-K2", "central"))
    equal(cell / "fedavg" / "seed-0", "FedAvg-1", 0.7004)
    equal(cell / "dense" / "seed-0", "DENSE", 0.7002)
    equal(cell / "fedbicross" / "seed-0", "FedBiCross", 0.65)
    # A control and another K are better, and take no mark.
    equal(cell / "fedbicross-K2" / "seed-0", "FedBiCross", 0.99)
    for variant in ("fedavg", "dense", "fedbicross", "fedbicross-K2"):
        equal(cell / variant / "seed-0", "local-only", 0.98)
    rows = csv_rows(tmp_path)
    assert {name: row["best"] for name, row in rows.items() if row["best"]} == {
        "FedAvg-1": "ours_global",
        "DENSE": "ours_global",
        "Ours (K = 3)": "ours_local",
    }
    text = table_text("I", tmp_path, "markdown")
    assert line_with(text, "FedAvg-1").startswith("| FedAvg-1 | **70.0** | ")
    assert "| **70.0** |" in line_with(text, "DENSE")
    assert "**" not in line_with(text, "Ours (K = 2)")
    local = float(rows["Ours (K = 3)"]["ours_local_mean"])
    assert f"| 65.0 | **{local:.1f}** | 83.31 |" in line_with(text, "Ours (K = 3)")
    latex = table_text("I", tmp_path, "latex")
    assert line_with(latex, "FedAvg-1").startswith(r"FedAvg-1 & \textbf{70.0} & ")
    assert r"\textbf{" not in line_with(latex, "Ours (K = 2)")
    for shown in (text, latex):
        assert "Bold: the best of our one-shot methods" in shown and "not run" in shown


def test_one_method_alone_and_one_with_fewer_seeds_take_no_mark(tmp_path: Path) -> None:
    cell = bloodmnist(tmp_path, ("fedavg",), (0, 1))
    assert not any(row["best"] for row in csv_rows(tmp_path).values())
    bloodmnist(tmp_path, ("dense",), (0, 1))
    bloodmnist(tmp_path, ("fedbicross",), (0,))
    equal(cell / "fedbicross" / "seed-0", "FedBiCross", 0.99)
    rows = csv_rows(tmp_path)
    assert {name for name, row in rows.items() if row["best"]} == {"DENSE"}
    assert (rows["Ours (K = 3)"]["seeds"], rows["Ours (K = 3)"]["cell_seeds"]) == ("1", "2")
    text = table_text("I", tmp_path, "markdown")
    assert "| 99.0 (1 of 2 seeds) | " in line_with(text, "Ours (K = 3)")
    assert line_with(text, "Ours (K = 3)").count("(1 of 2 seeds)") == 2
    assert "seeds)" not in line_with(text, "DENSE")
    assert "99.0 (1 of 2 seeds) &" in line_with(table_text("I", tmp_path, "latex"), "Ours (K = 3)")


def test_the_plain_run_stands_for_its_k_and_the_studys_only_with_more_seeds(tmp_path: Path) -> None:
    cell = bloodmnist(tmp_path, ("dense", "fedbicross"), (0, 1))
    study = cell / "fedbicross-K3"
    build_cell_run(study / "seed-0", "fedbicross-K2", 0, "bloodmnist", 5, 0.1)
    set_config(study / "seed-0", clustering__clusters=3)
    assert csv_rows(tmp_path)["Ours (K = 3)"]["best"] == "ours_global ours_local"
    for seed in (1, 2):
        build_cell_run(study / f"seed-{seed}", "fedbicross-K2", seed, "bloodmnist", 5, 0.1)
        set_config(study / f"seed-{seed}", clustering__clusters=3)
    row = csv_rows(tmp_path)["Ours (K = 3)"]
    assert (row["seeds"], row["best"]) == ("3", "")


def test_what_failed_or_is_not_finished_says_so(tmp_path: Path) -> None:
    cell = bloodmnist(tmp_path, ("fedavg",))
    for variant in ("dense", "fedbicross-K4", "fedbicross"):
        folder = cell / variant / "seed-0"
        folder.mkdir(parents=True)
        (folder / "failed.json").write_text('{"error": "no memory"}')
    (cell / "dafl" / "seed-0").mkdir(parents=True)
    # The plain run's folder says which K it was to have.
    (cell / "fedbicross" / "seed-0" / "config.toml").write_text("[clustering]\nclusters = 2\n")
    states = {name: row["state"] for name, row in csv_rows(tmp_path).items()}
    assert {name: state for name, state in states.items() if state != "not run"} == {
        "FedAvg-1": "done",
        "DENSE": "failed",
        "DAFL": "not finished",
        "Ours (K = 2)": "failed",
        "Ours (K = 4)": "failed",
        "w/o PKD": "failed",
    }
    text = table_text("I", tmp_path, "markdown")
    assert line_with(text, "DENSE").startswith("| DENSE | failed | failed | 42.34 | - | - |")
    assert line_with(text, "DAFL").startswith("| DAFL | not finished | not finished | 13.42 |")
    assert line_with(text, "Ours (K = 3)").startswith("| Ours (K = 3) | - | - | ")
    assert line_with(table_text("I", tmp_path, "latex"), "DENSE").startswith("DENSE & failed & failed &")


def test_runs_that_do_not_compare_and_clients_that_are_left_out_are_said(tmp_path: Path) -> None:
    cell = bloodmnist(tmp_path, ("dense", "fedbicross"), (0, 1))
    assert "is without" not in table_text("I", tmp_path, "markdown")
    change = {"status": "failed", "reason": "it diverged"}
    edit(cell / "dense" / "seed-0" / "run.json", lambda found: found["clients"][3].update(change))
    config = cell / "fedbicross" / "seed-1" / "config.toml"
    config.write_text(config.read_text().replace("tv_weight = 5.0", "tv_weight = 1.0"))
    text = table_text("I", tmp_path, "markdown")
    assert "bloodmnist-N5-alpha0.1: Seed 0 is without client 3 (it diverged) in dense." in text
    assert "do not compare: they differ in inversion.tv_weight (" in text


def test_the_paired_tests_of_each_cell_are_among_the_notes(tmp_path: Path) -> None:
    variants = ("coboosting", "fedbicross")
    bloodmnist(tmp_path, variants, (0, 1))
    bloodmnist(tmp_path, variants, (0,), alpha=0.3)
    bloodmnist(tmp_path, ("fedavg",), (0,), alpha=0.5)
    build_comparison(tmp_path, [("bloodmnist", 10, 0.3)], variants, (0,))
    text = table_text("I", tmp_path, "markdown")
    notes = [line for line in text.splitlines() if line.startswith("- BloodMNIST, N = 5, α = ")]
    assert [note.split(". ")[0].split("α = ")[1] for note in notes] == ["0.1", "0.3"]
    cells = {cell.cell.name: cell for cell in collect(tmp_path).cells}
    for note, name in zip(notes, ("bloodmnist-N5-alpha0.1", "bloodmnist-N5-alpha0.3"), strict=True):
        tests = paired_tests(lines_of(cells[name]))
        assert len(tests) == 6
        assert all(test.sentence in note for test in tests)
    assert text.count(NOT_INDEPENDENT) == 1
    latex = table_text("I", tmp_path, "latex")
    first, second = latex.split(r"\end{table*}")[:2]
    assert "Wilcoxon" in first and "Wilcoxon" not in second
    assert "not independent" in first and "not independent" not in second
    assert NOT_INDEPENDENT not in table_text("III", tmp_path, "markdown")
