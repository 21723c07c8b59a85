"""Tables of a comparison: means, marks and tests against values by hand; runs that failed or are absent."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from comparison_builder import (
    MODEL,
    build_cell_run,
    build_comparison,
    log_work,
    set_accuracies,
    set_config,
)
from hypothesis import given
from hypothesis import strategies as st
from run_builder import edit

from fedbicross_flwr.compare.collect import DONE, FAILED, UNFINISHED, UNREADABLE, CellName, collect
from fedbicross_flwr.compare.commands import figure, table_text
from fedbicross_flwr.compare.latex import escape, latex_table
from fedbicross_flwr.compare.lines import PERSONAL, SHIPPED
from fedbicross_flwr.compare.pages import write_comparison
from fedbicross_flwr.compare.paired import NOT_INDEPENDENT
from fedbicross_flwr.compare.plan import cell_name
from fedbicross_flwr.compare.tables import (
    BY_KEY,
    COLUMNS,
    ComparisonRow,
    ComparisonTable,
    comparison_table,
)
from fedbicross_flwr.compare.variants import ASKED_FOR, VARIANTS, Variant
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.methods import METHODS
from fedbicross_flwr.report.seeds_table import Spread
from fedbicross_flwr.rows import rows_of

CELL = "phantom-N5-alpha0.3"
FEW = ("fedavg", "coboosting", "fedbicross", "fedbicross-intra")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that tests only look at."""
    return build_comparison(tmp_path_factory.mktemp("shared"), variants=(*FEW, "central"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A comparison of two methods and two seeds that tests may change."""
    return build_comparison(tmp_path, variants=("fedavg", "fedbicross"), seeds=(0, 1))


def table_of(out: Path) -> ComparisonTable:
    (cell,) = collect(out).cells
    return comparison_table(cell)


def row_of(table: ComparisonTable, variant: str, role: str = PERSONAL) -> ComparisonRow:
    return next(row for row in table.rows if (row.line.variant, row.line.role) == (variant, role))


def test_mean_and_deviation_by_hand(out: Path) -> None:
    # Means over clients .60 and .70 global, .80 and .86 local.
    for seed, level in ((0, 0.60), (1, 0.70)):
        folder = out / CELL / "fedbicross" / f"seed-{seed}"
        spread = {0: level - 0.1, 1: level - 0.05, 2: level, 3: level + 0.05, 4: level + 0.1}
        set_accuracies(folder, "FedBiCross", "global", spread)
        set_accuracies(
            folder, "FedBiCross", "local", dict.fromkeys(range(1, 5), 0.8 + 0.06 * seed) | {0: 0.3}
        )
    row = row_of(table_of(out), "fedbicross")
    found = row.values["global_accuracy"]
    assert found is not None and found.deviation is not None
    assert found.mean == pytest.approx(0.65)
    assert found.deviation == pytest.approx(0.1 / 2**0.5)
    local = [(0.3 + 4 * 0.8) / 5, (0.3 + 4 * 0.86) / 5]
    both = row.values["mean_accuracy"]
    assert both is not None
    assert both.mean == pytest.approx(statistics.fmean([(0.6 + local[0]) / 2, (0.7 + local[1]) / 2]))
    worst = row.values["local_worst"]
    assert worst is not None and worst.mean == pytest.approx(0.3) and worst.deviation == pytest.approx(0)


@pytest.mark.parametrize(
    "key",
    [
        *("global_accuracy", "global_balanced_accuracy", "global_auc", "global_ece"),
        *("local_accuracy", "local_balanced_accuracy"),
    ],
)
def test_every_column_is_of_its_own_metric_and_protocol(shared: Path, key: str) -> None:
    protocol, _, metric = key.partition("_")
    means = []
    for seed in range(3):
        rows = json.loads((shared / CELL / "fedbicross" / f"seed-{seed}" / "metrics.json").read_text())[
            "rows"
        ]
        (found,) = [row for row in rows if row["name"] == "FedBiCross"]
        means.append(statistics.fmean(client[protocol][metric] for client in found["clients"]))
    shown = row_of(table_of(shared), "fedbicross").values[key]
    assert shown is not None and shown.mean == pytest.approx(statistics.fmean(means))
    assert shown.deviation == pytest.approx(statistics.stdev(means))


def test_what_differs_in_stage_3_alone_repeats_nothing_of_the_server(tmp_path: Path) -> None:
    variants = ("fedbicross", "fedbicross-uniform", "fedbicross-balanced")
    table = table_of(build_comparison(tmp_path, variants=variants, seeds=(0,)))
    rows = [(row.line.variant, row.line.role) for row in table.rows if row.line.seeds]
    shipped = [variant for variant, role in rows if role == SHIPPED]
    assert shipped == ["fedbicross", "fedbicross-uniform"]
    assert [variant for variant, role in rows if role == PERSONAL] == list(variants)
    assert [one.title for one in table.images] == [VARIANTS[name].title for name in shipped]


def test_bytes_and_the_servers_own_seconds(out: Path) -> None:
    table = table_of(out)
    row = row_of(table, "fedbicross")
    # The builder gives 520 s and 3 % more with each seed; rounds of clients and the evaluation do not count.
    assert row.values["server_seconds"] is not None
    assert row.values["server_seconds"].mean == pytest.approx((520 + 535.6) / 2)
    for key in ("bytes_sent", "bytes_received"):
        assert (size := row.values[key]) is not None and size.mean == MODEL
    control = row_of(table, "local-only", "control")
    assert control.values["server_seconds"] is None
    assert control.values["bytes_sent"] is not None and control.values["bytes_sent"].mean == 0


def test_every_line_stands_in_order(shared: Path) -> None:
    lines = [row.line for row in table_of(shared).rows]
    ran = [(one.variant, one.role) for one in lines if one.seeds]
    assert ran == [
        ("local-only", "control"),
        ("same-budget", "control"),
        *((variant, role) for variant in FEW for role in (SHIPPED, PERSONAL)),
        ("ensemble", "ceiling"),
        ("central", SHIPPED),
    ]
    absent = {one.variant for one in lines if one.state == "not run"}
    assert absent == {name for name, v in VARIANTS.items() if v.group not in ASKED_FOR} - {*FEW, "central"}


def test_fedavgs_own_row_is_not_taken_for_the_common_one(shared: Path) -> None:
    row = row_of(table_of(shared), "fedavg", SHIPPED)
    assert row.line.title == "FedAvg-1"
    assert row_of(table_of(shared), "fedavg").line.title == "FedAvg-1, fine-tuned"
    assert row_of(table_of(shared), "coboosting", SHIPPED).line.seeds[0].scores["global"].keys() == set(
        range(5)
    )


@pytest.mark.parametrize(
    ("shipped", "personal", "titles"),
    [
        ("Own", "Own, with a head of its own", ["Own", "Own, with a head of its own"]),
        ("Own", "A head of one's own", ["Own", "A head of one's own"]),
        ("Own without heads", "Own", ["Own without heads", "Own"]),
    ],
)
def test_a_method_of_ones_own_names_its_personal_model_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shipped: str, personal: str, titles: list[str]
) -> None:
    method = dataclasses.replace(METHODS["dense"], title=shipped, personal_title=personal)
    variant = Variant("own", "Own", "one-shot", {"method": "own"}, "")
    monkeypatch.setitem(METHODS, "own", method)
    monkeypatch.setitem(VARIANTS, "own", variant)
    run = build_cell_run(tmp_path / CELL / "own" / "seed-0", "dense")
    own = [rows_of("own")[key].name for key in ("cluster-model", "personal")]

    def rename(content: dict[str, Any]) -> None:
        for row, name in zip(content["rows"][-2:], own, strict=True):
            row["name"] = name

    edit(run / "metrics.json", rename)
    lines = [row.line for row in table_of(tmp_path).rows if row.line.variant == "own"]
    assert [(line.role, line.title) for line in lines] == list(zip((SHIPPED, PERSONAL), titles, strict=True))


def test_the_rows_of_a_variant_have_its_title_in_place_of_its_methods(tmp_path: Path) -> None:
    out = build_comparison(tmp_path, variants=("fedbicross", "fedbicross-K2"), seeds=(0,))
    lines = [row.line for row in table_of(out).rows]
    assert [line.title for line in lines if line.seeds and line.role in (SHIPPED, PERSONAL)] == [
        "FedBiCross without personal distillation",
        "FedBiCross",
        "FedBiCross, K = 2, without personal distillation",
        "FedBiCross, K = 2",
    ]


def test_a_strategy_is_titled_with_its_rounds_and_does_not_compete(out: Path) -> None:
    build_comparison(out, variants=("flower:FedAvg",), seeds=(0,))
    rows = [row for row in table_of(out).rows if row.line.variant == "flower:FedAvg"]
    assert [row.line.remark for row in rows] == ["5 rounds", "5 rounds"]
    assert not any(row.line.competes for row in rows)
    text = table_text(CELL, out, "markdown")
    assert "| FedAvg (5 rounds, 1 of 2 seeds) |" in text
    assert "| FedAvg, fine-tuned (5 rounds, 1 of 2 seeds) |" in text
    # 78 % of the whole test set, far above all others: no mark, and not named a ceiling.
    assert re.search(r"\| FedAvg \(5 rounds[^\n]*\*\*", text) is None
    assert "rounds, ceiling" not in text and "(ceiling, 5" not in text
    assert "| ensemble of all uploads (ceiling) |" in text
    build_comparison(out, variants=("flower:FedAvg",), seeds=(1,))
    run = out / CELL / "flower:FedAvg" / "seed-1" / "run.json"
    edit(run, lambda content: content.update(flower={"rounds": 2, "accuracy": [0.1, 0.2, 0.3]}))
    assert "| FedAvg (many rounds) |" in table_text(CELL, out, "markdown")
    assert table_text(CELL, out, "latex").count(r"\midrule") == 4
    shutil.rmtree(out / CELL / "flower:FedAvg" / "seed-1")
    failed = out / CELL / "flower:FedAvg" / "seed-0"
    (failed / "run.json").unlink()
    (failed / "failed.json").write_text('{"error": "no node"}')
    assert "| FedAvg (many rounds, failed) |" in table_text(CELL, out, "markdown")


def test_rounds_with_the_clients_by_hand(out: Path) -> None:
    build_comparison(out, variants=("flower:FedAvg", "central", "fedbicross-K2"), seeds=(0, 1))
    table = table_of(out)
    found = {
        (row.line.variant, row.line.role): None if value is None else value.mean
        for row in table.rows
        if row.line.seeds
        for value in [row.values["rounds"]]
    }
    assert found == {
        ("local-only", "control"): 0,
        ("same-budget", "control"): 0,
        **{
            (variant, role): 2
            for variant in ("fedavg", "fedbicross", "fedbicross-K2")
            for role in (SHIPPED, PERSONAL)
        },
        ("ensemble", "ceiling"): 2,
        ("central", SHIPPED): None,
        # Five rounds, and one in which the last model is sent.
        ("flower:FedAvg", SHIPPED): 6,
        ("flower:FedAvg", PERSONAL): 6,
    }
    run = out / CELL / "flower:FedAvg" / "seed-1" / "run.json"
    edit(run, lambda content: content.update(flower={"rounds": 2, "accuracy": [0.1, 0.2, 0.3]}))
    assert "| 4.5 ± 2.1 |" in table_text(CELL, out, "markdown")
    edit(run, lambda content: content.pop("flower"))
    assert row_of(table_of(out), "flower:FedAvg").values["rounds"] is None
    edit(run, lambda content: content.update(flower={"rounds": 2, "accuracy": [0.1]}))
    assert any("seed-1: unreadable" in problem for problem in collect(out).problems)


def test_rounds_and_wall_time_stand_in_all_formats(out: Path) -> None:
    seconds = {"upload round": 100.0, "personalisation round": 20.0, "total": 123.45}
    log_work(out / CELL / "fedavg" / "seed-0", seconds, range(5), range(5), lasted=120.0)
    shutil.rmtree(out / CELL / "fedavg" / "seed-1")
    for format, end in (("markdown", r"\|"), ("latex", r"\\\\")):
        lines = table_text(CELL, out, format).splitlines()
        header = next(line for line in lines if "Rounds" in line and "Wall seconds" in line)
        separator = "|" if format == "markdown" else "&"
        place = [title.strip(" \\") for title in header.strip("|").split(separator)].index("Rounds")
        line = next(line for line in lines if "FedAvg-1 (1 of 2 seeds)" in line)
        assert line.strip("|").split(separator)[place].strip() == "2"
        assert re.search(rf"123\.5 {end}$", line), line
    rows = list(csv.DictReader(table_text(CELL, out, "csv").splitlines()))
    (row,) = [row for row in rows if (row["variant"], row["row"]) == ("fedavg", SHIPPED)]
    assert (row["rounds_mean"], row["wall_seconds_mean"], row["wall_seconds_sd"]) == ("2.0", "123.45", "")
    (row,) = [row for row in rows if (row["variant"], row["row"]) == ("fedbicross", SHIPPED)]
    assert row["wall_seconds_mean"] == ""


def test_what_images_are_worth_by_hand(out: Path) -> None:
    for seed, (agreement, classes) in enumerate([(0.5, 7), (0.7, 8)]):
        folder = out / CELL / "fedbicross" / f"seed-{seed}"
        edit(
            folder / "synthetic.json",
            lambda content, a=agreement, c=classes: content.update(agreement=a, classes=c),
        )
    (one,) = table_of(out).images
    assert one.seeds == 2
    assert one.title == VARIANTS["fedbicross"].title and (one.images, one.classes) == (24, 7.5)
    deviation = statistics.stdev([0.5, 0.7])
    taken = one.measures[0]
    assert taken is not None
    assert (taken.mean, taken.deviation) == pytest.approx((0.6, deviation))
    assert one.measures[1:] == (Spread(0.5, 0.0), Spread(0.25, 0.0))
    line = next(line for line in table_text(CELL, out, "markdown").splitlines() if "| 24 |" in line)
    assert line == "| FedBiCross | 24 | 7.5 | 60.0 ± 14.1 | 50.0 ± 0.0 | 25.0 ± 0.0 |"
    edit(
        out / CELL / "fedbicross" / "seed-1" / "synthetic.json",
        lambda content: content.update(agreement=None),
    )
    assert "| FedBiCross | 24 | 7.5 | – | 50.0 ± 0.0 | 25.0 ± 0.0 |" in table_text(CELL, out, "markdown")
    (out / CELL / "fedbicross" / "seed-1" / "synthetic.json").unlink()
    assert "| FedBiCross (1 of 2 seeds) | 24 | 7.0 | 50.0 | 50.0 | 25.0 |" in table_text(
        CELL, out, "markdown"
    )
    (out / CELL / "fedbicross" / "seed-0" / "synthetic.json").unlink()
    assert "Synthetic images of" not in table_text(CELL, out, "markdown")


def test_the_best_is_marked_and_ceilings_controls_and_other_k_do_not_compete(tmp_path: Path) -> None:
    out = build_comparison(
        tmp_path, variants=("fedavg", "fedbicross", "fedbicross-K4", "central"), seeds=(0,)
    )
    for variant, name in (
        ("fedbicross-K4", "FedBiCross"),
        ("fedavg", "local-only"),
        ("fedbicross", "local-only"),
    ):
        set_accuracies(out / CELL / variant / "seed-0", name, "global", dict.fromkeys(range(5), 0.99))
    set_accuracies(
        out / CELL / "fedbicross-K4" / "seed-0", "local-only", "global", dict.fromkeys(range(5), 0.99)
    )
    table = table_of(out)
    column = BY_KEY["global_accuracy"]
    assert table.best(column) == {("fedbicross", PERSONAL)}
    assert table.controls_ahead(column) == {("local-only", "control")}
    ece = BY_KEY["global_ece"]
    shown = {
        (row.line.variant, row.line.role): round(100 * value.mean, 1)
        for row in table.rows
        if row.line.competes and (value := row.values["global_ece"]) is not None
    }
    assert table.best(ece) == {key for key, value in shown.items() if value == min(shown.values())}
    assert table.best(BY_KEY["server_seconds"]) == frozenset()


def test_equal_figures_share_the_mark_and_fewer_seeds_do_not_compete(out: Path) -> None:
    for seed in (0, 1):
        for variant, name in (("fedavg", "FedAvg-1, fine-tuned"), ("fedbicross", "FedBiCross")):
            values = dict.fromkeys(range(5), 0.91)
            set_accuracies(out / CELL / variant / f"seed-{seed}", name, "global", values)
    column = BY_KEY["global_accuracy"]
    assert table_of(out).best(column) == {("fedavg", PERSONAL), ("fedbicross", PERSONAL)}
    shutil.rmtree(out / CELL / "fedavg" / "seed-1")
    assert table_of(out).best(column) == {("fedbicross", PERSONAL)}
    assert "FedAvg-1, fine-tuned (1 of 2 seeds)" in table_text(CELL, out, "markdown")


def test_a_method_that_lost_a_client_does_not_compete(out: Path) -> None:
    column = BY_KEY["global_accuracy"]
    for seed in (0, 1):
        values = {client: 0.2 if client == 4 else 0.99 for client in range(5)}
        set_accuracies(out / CELL / "fedavg" / f"seed-{seed}", "FedAvg-1, fine-tuned", "global", values)

    def lose(content: dict[str, Any]) -> None:
        for row in content["rows"]:
            if row["name"] == "FedAvg-1, fine-tuned":
                row["clients"] = [one for one in row["clients"] if one["client"] != 4]

    edit(out / CELL / "fedavg" / "seed-0" / "metrics.json", lose)
    found = table_of(out)
    row = next(one for one in found.rows if (one.line.variant, one.line.role) == ("fedavg", PERSONAL))
    value = row.values["global_accuracy"]
    assert value is not None and value.mean > 0.85
    assert found.best(column) and ("fedavg", PERSONAL) not in found.best(column)


def test_methods_with_equally_many_but_other_seeds_share_no_best(out: Path) -> None:
    column = BY_KEY["global_accuracy"]
    assert table_of(out).best(column)
    shutil.rmtree(out / CELL / "fedavg" / "seed-1")
    shutil.rmtree(out / CELL / "fedbicross" / "seed-0")
    assert table_of(out).best(column) == frozenset()


def test_controls_are_those_of_the_run_with_most_clients(out: Path) -> None:
    whole = table_of(out)
    edit(
        out / CELL / "fedavg" / "seed-0" / "metrics.json",
        lambda found: found["rows"][0]["clients"].pop(),
    )
    key = "global_accuracy"
    assert table_of(out).rows[0].values[key] == whole.rows[0].values[key]
    notes = " ".join(table_of(out).notes)
    assert "Seed 0: fedavg and fedbicross do not have the same clients" in notes


def test_a_central_model_that_was_there_already_has_no_seconds_of_its_own(tmp_path: Path) -> None:
    out = build_comparison(tmp_path, variants=("fedavg", "central"), seeds=(0,))
    log = out / CELL / "central" / "seed-0" / "progress.jsonl"
    for trained in (True, False):
        event = {"time": 1.0, "stage": "training", "done": 1, "total": 1, "client": 0, "text": ""}
        log.write_text(json.dumps(event) + "\n" if trained else "")
        (central,) = [row for row in table_of(out).rows if row.line.variant == "central"]
        assert (central.values["server_seconds"] is not None) == trained


def test_alpha_is_held_to_the_name_of_its_folder_by_the_digits_that_it_has(out: Path) -> None:
    for config in (out / CELL).glob("*/seed-*/config.toml"):
        config.write_text(config.read_text().replace("alpha = 0.3\n", "alpha = 0.30000000000000004\n"))
    assert not collect(out).problems
    config.write_text(config.read_text().replace("alpha = 0.30000000000000004\n", "alpha = 0.3000001\n"))
    assert "partition.alpha = 0.3000001, its folder's name says 0.3" in " ".join(collect(out).problems)


def test_failed_unfinished_and_unreadable_runs_are_shown(out: Path) -> None:
    base = out / CELL
    (base / "dense" / "seed-0").mkdir(parents=True)
    (base / "dense" / "seed-0" / "failed.json").write_text('{"error": "no memory\\n left & 50 %"}')
    (base / "dafl" / "seed-0").mkdir(parents=True)
    (base / "fedbicross" / "seed-1" / "metrics.json").write_text("{")
    (comparison,) = collect(out).cells
    states = {(run.variant.name, run.seed): run.state for run in comparison.runs}
    assert states == {
        ("fedavg", 0): DONE,
        ("fedavg", 1): DONE,
        ("dafl", 0): UNFINISHED,
        ("dense", 0): FAILED,
        ("fedbicross", 0): DONE,
        ("fedbicross", 1): UNREADABLE,
    }
    problems = collect(out).problems
    assert len(problems) == 3 and not any("\n" in problem for problem in problems)
    text = table_text(CELL, out, "markdown")
    assert f"{base / 'dense' / 'seed-0'}: failed: no memory left & 50 %" in text
    assert re.search(r"seed-1: unreadable: .*metrics\.json is not valid JSON", text)
    assert "| DENSE (failed) | – |" in text
    assert "| DAFL (not finished) | – |" in text
    assert "| FedISCA (not run) | – |" in text
    assert "| FedBiCross (1 of 2 seeds) |" in text


def test_a_run_in_the_wrong_place_is_not_counted(out: Path) -> None:
    shutil.copytree(out / CELL / "fedavg" / "seed-0", out / CELL / "fedavg" / "seed-7")
    (problem,) = collect(out).problems
    assert "seed-7: unreadable: its config.toml has seed = 0, its folder's name says 7" in problem


@pytest.mark.parametrize(
    ("variant", "settings", "words"),
    [
        ("fedavg", {"method": "dense"}, "method = dense, its folder's name says fedavg"),
        ("fedbicross-K4", {"clustering__clusters": 3}, "clustering.clusters = 3, its folder's name says 4"),
        ("fedbicross-intra", {"cross_cluster__weights": "learned"}, "cross_cluster.weights = learned, its"),
        ("fedbicross", {"out": f"/a/{CELL}/fedbicross-intra/seed-0"}, "out = fedbicross-intra/seed-0, its"),
        ("fedavg", {"data__name": "bloodmnist"}, "data.name = bloodmnist, its folder's name says phantom"),
        ("fedavg", {"data__path": "/data/cells.npz"}, "data.path = cells, its folder's name says phantom"),
        ("fedavg", {"partition__clients": 7}, "partition.clients = 7, its folder's name says 5"),
    ],
)
def test_a_run_of_another_method_or_cell_is_not_counted(
    tmp_path: Path, variant: str, settings: dict[str, Any], words: str
) -> None:
    out = build_comparison(tmp_path, variants=(variant,), seeds=(0,))
    set_config(out / CELL / variant / "seed-0", **settings)
    (problem,) = collect(out).problems
    assert f"{variant}/seed-0: unreadable: its config.toml has {words}" in problem
    assert problem in table_text(CELL, out, "markdown")


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "fedbicross", "out": f"/elsewhere/{CELL}/fedbicross/seed-0"},
        {"out": f"/elsewhere/{CELL}/mine/seed-0"},
        {"out": "/runs/of/fedavg"},
        {"data__name": "site", "data__path": "/data/phantom.npz"},
        {"data__name": "site", "data__path": "phantom"},
    ],
)
def test_a_run_that_was_moved_with_its_comparison_counts(tmp_path: Path, settings: dict[str, Any]) -> None:
    out = build_comparison(tmp_path, variants=("fedbicross",), seeds=(0,))
    set_config(out / CELL / "fedbicross" / "seed-0", **settings)
    assert not collect(out).problems


def test_runs_of_other_uploads_or_settings_are_pointed_out(out: Path) -> None:
    assert not any("compare" in note or "same clients" in note for note in table_of(out).notes)
    set_accuracies(out / CELL / "fedbicross" / "seed-1", "local-only", "global", {2: 0.0})
    config = out / CELL / "fedbicross" / "seed-0" / "config.toml"
    config.write_text(config.read_text().replace("tv_weight = 5.0", "tv_weight = 1.0"))
    notes = " ".join(table_of(out).notes)
    differ = "do not compare: they differ in inversion.tv_weight (1.0 and 5.0)"
    assert f"fedbicross seed 0 and fedbicross seed 1 {differ}" in notes, "the other methods do not read it"
    assert "Seed 1: fedavg and fedbicross did not start from the same clients' models" in notes


def test_runs_of_different_versions_of_the_code_are_pointed_out(out: Path) -> None:
    files = sorted((out / CELL).glob("*/seed-*/run.json"))
    for file in files:
        edit(file, lambda run: run["versions"].update(code="0a0a"))
    assert not any("versions of this program" in note for note in table_of(out).notes)
    edit(files[-1], lambda run: run["versions"].update(code="1b1b"))
    (note,) = [note for note in table_of(out).notes if "versions of this program" in note]
    assert "0a0a (" in note and f"1b1b ({files[-1].parents[1].name} seed 1, ...)" in note


def test_a_client_that_failed_is_named_once_for_all_methods_without_it(out: Path) -> None:
    change = {"status": "failed", "reason": "too few images"}
    for run in ("fedavg/seed-0", "fedbicross/seed-0", "fedbicross/seed-1"):
        edit(out / CELL / run / "run.json", lambda found: found["clients"][3].update(change))
    notes = [note for note in table_of(out).notes if "is without" in note]
    assert sorted(notes) == [
        "Seed 0 is without client 3 (too few images) in fedavg, fedbicross.",
        "Seed 1 is without client 3 (too few images) in fedbicross.",
    ]


def test_a_central_model_counts_the_client_that_the_others_are_without(tmp_path: Path) -> None:
    out = build_comparison(tmp_path, variants=("fedavg", "central"), seeds=(0, 1))
    for seed in (0, 1):
        file = out / CELL / "fedavg" / f"seed-{seed}" / "run.json"
        edit(file, lambda found: found["clients"][3].update(status="failed", reason="too few images"))
    shutil.rmtree(out / CELL / "central" / "seed-1")
    notes = [note for note in table_of(out).notes if "is without" in note]
    assert notes == [
        "Seed 0 is without client 3 (too few images) in fedavg; "
        "the central model's figures count it all the same.",
        "Seed 1 is without client 3 (too few images) in fedavg.",
    ]


def test_a_label_of_latex_is_one_whatever_the_data_are_called() -> None:
    table = latex_table(["a"], [[["b"]]], "caption", "tab:my%da{ta}_2-N5-alpha0.3")
    assert r"\label{tab:my-da-ta-_2-N5-alpha0.3}" in table


def test_latex_of_names_in_other_scripts_says_what_it_needs_and_keeps_its_labels_apart() -> None:
    captions = ("cellules, résumé", "血液, N = 5, α = 0.1", "細胞, N = 5, α = 0.1")
    latin, blood, cells = (latex_table(["a"], [[["b"]]], text, f"tab:{text}") for text in captions)
    assert "XeLaTeX" not in latin and all("XeLaTeX" in table for table in (blood, cells))
    labels = [table.split(r"\label{")[1].split("}")[0] for table in (latin, blood, cells)]
    assert len(set(labels)) == 3 and all(label.isascii() for label in labels)


def test_all_files_are_written_and_csv_reads_back(shared: Path) -> None:
    page = write_comparison(shared)
    assert page == shared / "comparison.md"
    assert f"## {CELL}" in page.read_text()
    assert (shared / f"table-{CELL}.md").read_text().strip() in page.read_text()
    with (shared / f"table-{CELL}.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    table = table_of(shared)
    assert len(rows) == len(table.rows)
    for read, row in zip(rows, table.rows, strict=True):
        assert (read["variant"], read["row"], read["seeds"]) == (
            row.line.variant,
            row.line.role,
            str(len(row.line.seeds)),
        )
        for column in COLUMNS:
            value = row.values[column.key]
            assert read[f"{column.key}_mean"] == ("" if value is None else str(value.mean))
        best = {c.key for c in COLUMNS if (row.line.variant, row.line.role) in table.best(c)}
        assert set(read["best"].split()) == best
    assert {read["state"] for read in rows} == {"done", "not run"}


def test_latex_has_the_same_number_of_cells_in_every_row(shared: Path) -> None:
    text = table_text(CELL, shared, "latex")
    assert escape(NOT_INDEPENDENT) in text
    lines = [one for one in text.splitlines() if one.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", one)) for one in lines} == {len(COLUMNS)}
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert text.count(r"\midrule") == 3
    assert r"\textbf{" in text and "±" not in text and "†" not in text and "α" not in text


@given(st.text(alphabet="a_%&$#{}~^\\<> ±†"))
def test_nothing_in_escaped_text_means_anything_to_latex(text: str) -> None:
    plain = escape(text)
    for command in (r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}", r"\textless{}"):
        plain = plain.replace(command, "")
    plain = plain.replace(r"\textgreater{}", "").replace(r"$\pm$", "").replace(r"$^\dagger$", "")
    assert not re.search(r"(?<!\\)[&%$#_{}~^<>]", plain)
    assert not re.search(r"\\[^&%$#_{}]", plain)


def test_folders_of_other_names_are_passed_over(out: Path) -> None:
    (out / "cache").mkdir()
    (out / "figures").mkdir()
    assert [cell.cell.name for cell in collect(out).cells] == [CELL]
    assert CellName.named("my-data-N2-x-N12-alphainf") == CellName(
        "my-data-N2-x-N12-alphainf", "my-data-N2-x", 12, float("inf")
    )
    assert CellName.named("phantom-N5") is None


@pytest.mark.parametrize("alpha", [0.3, 1.0, 0.3333333, 0.1234567, math.inf])
def test_a_folder_s_name_says_alpha_in_full(alpha: float) -> None:
    name = cell_name(RunConfig.from_flat({"partition.alpha": alpha}))
    assert CellName.named(name) == CellName(name, "phantom", 5, alpha)


def test_a_control_of_more_seeds_is_not_said_to_be_ahead(tmp_path: Path) -> None:
    out = build_comparison(tmp_path, variants=("fedavg", "fedbicross"), seeds=(0, 1))
    for seed in (0, 1):
        for variant in ("fedavg", "fedbicross"):
            everyone = dict.fromkeys(range(5), 0.99)
            set_accuracies(out / CELL / variant / f"seed-{seed}", "local-only", "global", everyone)
    column = BY_KEY["global_accuracy"]
    assert table_of(out).controls_ahead(column) == {("local-only", "control")}
    shutil.rmtree(out / CELL / "fedbicross" / "seed-1")
    shutil.rmtree(out / CELL / "fedavg" / "seed-0")
    assert table_of(out).controls_ahead(column) == set()


def test_a_wrong_folder_or_name_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FedBiCrossError, match="is not a folder"):
        write_comparison(tmp_path / "nothing")
    with pytest.raises(FedBiCrossError, match="holds no comparison"):
        write_comparison(tmp_path)
    out = build_comparison(tmp_path / "out", variants=("fedavg",), seeds=(0,))
    with pytest.raises(FedBiCrossError, match=r"did you mean phantom-N5-alpha0.3\?\); .* III, and of this"):
        table_text("phantom-N5-alpha.3", out, "markdown")
    with pytest.raises(FedBiCrossError, match="no table 'IV'; the paper has I, II, III"):
        table_text("IV", out, "markdown")


@pytest.mark.parametrize("inside", [(), ("run.json", "metrics.json"), ("phantom-N5-alpha0.3/fedavg/x.txt",)])
def test_a_folder_that_holds_no_comparison_is_one_line(tmp_path: Path, inside: tuple[str, ...]) -> None:
    for name in inside:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    for name in ("I", CELL):
        with pytest.raises(FedBiCrossError, match=r"holds no comparison: .*; name with --out the folder"):
            table_text(name, tmp_path, "markdown")
    with pytest.raises(FedBiCrossError, match="holds no comparison"):
        figure("all", tmp_path)
    assert not (tmp_path / "figures").exists()
