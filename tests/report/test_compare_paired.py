"""Is one method better than another: the paired test against SciPy, its pairs, and when there is none."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from comparison_builder import build_comparison, set_config
from run_builder import edit
from scipy import stats

from fedbicross_flwr.compare.collect import collect
from fedbicross_flwr.compare.commands import against_text, table
from fedbicross_flwr.compare.lines import PERSONAL, Line, SeedScores, line_of, lines_of
from fedbicross_flwr.compare.paired import MEASURES, MIN_PAIRS, NAMED, paired_test, paired_tests
from fedbicross_flwr.compare.tables import comparison_table
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.report.record import Score


def line(name: str, seeds: dict[int, dict[int, float]], group: str = "one-shot") -> Line:
    """Return a line with these accuracies, by seed and client, under both protocols."""
    scored = {
        seed: {client: Score(100, value, value, value, 0.1) for client, value in clients.items()}
        for seed, clients in seeds.items()
    }
    rows = {seed: SeedScores({"global": s, "local": s}, 1, 1, 1.0) for seed, s in scored.items()}
    return Line(name, PERSONAL, name, group, rows)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_paired_test_is_scipys(tmp_path: Path, measure: str) -> None:
    out = build_comparison(tmp_path, variants=("fedavg", "coboosting", "fedbicross"))
    table = comparison_table(collect(out).cells[0])
    test = next(t for t in table.tests if t.measure == measure and "strongest" in t.reason)
    protocols = ("global", "local") if measure == "both" else (measure,)
    assert test.other == "Co-Boosting, fine-tuned"
    folder = out / "phantom-N5-alpha0.3"
    values = []
    for variant, name in (("fedbicross", "FedBiCross"), ("coboosting", "Co-Boosting, fine-tuned")):
        found = []
        for seed in range(3):
            rows = json.loads((folder / variant / f"seed-{seed}" / "metrics.json").read_text())["rows"]
            (entry,) = [row for row in rows if row["name"] == name]
            found += [
                statistics.fmean(client[protocol]["accuracy"] for protocol in protocols)
                for client in entry["clients"]
            ]
        values.append(found)
    differences = [round(a - b, 9) for a, b in zip(*values, strict=True)]
    assert test.p == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert test.difference == pytest.approx(statistics.fmean(a - b for a, b in zip(*values, strict=True)))
    assert (test.pairs, test.seeds) == (15, 3)
    assert test.ahead == sum(a > b for a, b in zip(*values, strict=True))
    assert (
        f"n = 15 pairs (3 seeds), higher in {test.ahead}; Wilcoxon signed-rank, two-sided, p = "
        in test.sentence
    )


def test_any_method_of_a_cell_can_be_tested_against(tmp_path: Path) -> None:
    out, cell = (
        build_comparison(tmp_path, variants=("fedbicross", "fedbicross-uniform")),
        "phantom-N5-alpha0.3",
    )
    lines = lines_of(collect(out).cells[0])
    ours, other = (line_of(lines, name, PERSONAL) for name in ("fedbicross", "fedbicross-uniform"))
    assert ours and other
    expected = [paired_test(ours, other, measure).sentence for measure in MEASURES]
    text = against_text(cell, out, "fedbicross-uniform")
    assert text == "\n".join(f"- {one}" for one in expected) + f"\n\n{NAMED}"
    assert "not independent" in NAMED and "strongest" not in NAMED
    assert "FedBiCross minus FedBiCross, uniform weights is" in expected[0]
    with pytest.raises(FedBiCrossError, match=r"has no seeds of it .*did you mean fedbicross-uniform"):
        against_text(cell, out, "fedbicross-unifrom")
    with pytest.raises(FedBiCrossError, match=r"is no cell of .*did you mean phantom-N5-alpha0\.3"):
        against_text("phantom-N5-alpha.3", out, "fedbicross-uniform")


def test_what_limits_a_test_is_said_below_it(tmp_path: Path) -> None:
    out = build_comparison(tmp_path, variants=("fedbicross", "fedbicross-uniform", "dense"), seeds=(0,))
    cell = "phantom-N5-alpha0.3"
    for variant, epochs in (("fedbicross-uniform", 7), ("dense", 9)):
        set_config(out / cell / variant / "seed-0", client__epochs=epochs)
    lost = out / cell / "fedbicross" / "seed-0" / "run.json"
    edit(lost, lambda content: content["clients"][2].update(status="failed", reason="too few images"))
    build_comparison(out, variants=("fedbicross",), seeds=(1,))
    edit(
        out / cell / "fedbicross" / "seed-1" / "run.json",
        lambda content: content["clients"][3].update(status="failed", reason="late"),
    )
    said = against_text(cell, out, "fedbicross-uniform").split("\n\n")[2].splitlines()
    assert any(
        "fedbicross-uniform seed 0 do not compare: they differ in client.epochs" in one for one in said
    )
    assert "- Seed 0 is without client 2 (too few images) in fedbicross." in said
    assert not any("dense" in one or "Seed 1" in one for one in said), "they have no part in the test"


def test_tests_against_a_method_are_markdown_alone(tmp_path: Path) -> None:
    with pytest.raises(
        FedBiCrossError, match="--format latex: the tests of --against are written as markdown"
    ):
        table("phantom-N5-alpha0.3", tmp_path, format="latex", against="dense")
    with pytest.raises(FedBiCrossError, match="--format 'csvv' is unknown"):
        table("phantom-N5-alpha0.3", tmp_path, format="csvv", against="dense")


def test_too_few_pairs_get_no_p() -> None:
    other = line("other", {0: dict.fromkeys(range(MIN_PAIRS), 0.5)})
    five = line("ours", {0: {client: 0.6 + client / 100 for client in range(MIN_PAIRS - 1)}})
    six = line("ours", {0: {client: 0.6 + client / 100 for client in range(MIN_PAIRS)}})
    test = paired_test(five, other, "both")
    assert (test.p, test.pairs, test.ahead) == (None, 5, 5)
    assert "too few pairs" in test.sentence and "p =" not in test.sentence
    assert paired_test(six, other, "both").p == pytest.approx(2 / 2**MIN_PAIRS)
    equal = paired_test(other, other, "global")
    assert equal.p is None and equal.difference == 0 and "±0.0 points" in equal.sentence


def test_the_ranks_say_who_is_ahead_and_the_sentence_where_the_mean_says_otherwise() -> None:
    other = line("other", {0: dict.fromkeys(range(20), 0.05)})
    ours = line("ours", {0: {client: 0.04 if client else 0.95 for client in range(20)}})
    test = paired_test(ours, other, "global")
    assert test.p is not None and test.p < 0.05
    assert test.difference > 0 and test.verdict == "behind, though not in the mean"
    assert paired_test(other, ours, "global").verdict == "ahead, though not in the mean"


def test_equal_differences_are_ties_though_not_in_their_last_bit() -> None:
    starts = [1 / 3, 2 / 3, 0.1, 0.7, 0.3, 0.5, 0.9, 0.6]
    steps = [0.1, 0.1, -0.1, 0.1, 0.1, 0.1, -0.1, 0.1]
    other = line("other", {0: dict(enumerate(starts))})
    moved = {client: value + steps[client] for client, value in enumerate(starts)}
    found = paired_test(line("ours", {0: moved}), other, "global")
    unrounded = [moved[client] - value for client, value in enumerate(starts)]
    expected = stats.wilcoxon(steps).pvalue
    assert stats.wilcoxon(unrounded).pvalue != pytest.approx(expected), "or there is nothing to round"
    assert found.p == pytest.approx(expected)


def test_pairs_are_of_the_same_seed_and_client() -> None:
    ours = line("fedbicross", {0: {0: 0.9, 1: 0.8}, 1: {0: 0.7}, 2: {0: 0.1}})
    other = line("dense", {1: {0: 0.6, 1: 0.9}, 0: {1: 0.6, 2: 0.9}})
    test = paired_test(ours, other, "local")
    assert (test.pairs, test.seeds, test.ahead) == (2, 2, 2)
    assert test.difference == pytest.approx((0.2 + 0.1) / 2)


def test_the_strongest_other_is_no_ablation_and_absent_methods_give_no_test() -> None:
    ours, weak, strong = (
        line(name, {0: {0: value}}) for name, value in (("fedbicross", 0.5), ("dafl", 0.3), ("dense", 0.4))
    )
    ablation = line("fedbicross-intra", {0: {0: 0.9}}, "ablation")
    assert {test.other for test in paired_tests([ours, weak, strong, ablation])} == {"dense"}
    assert paired_tests([weak, strong]) == ()


def test_a_method_with_fewer_seeds_is_not_the_strongest_other_by_an_easy_one() -> None:
    ours = line("fedbicross", {0: {0: 0.5}, 1: {0: 0.9}})
    whole, easy = line("fedavg", {0: {0: 0.4}, 1: {0: 0.8}}), line("dense", {1: {0: 0.85}})
    assert {test.other for test in paired_tests([ours, whole, easy])} == {"fedavg"}


def test_there_is_no_test_of_seeds_that_only_one_has() -> None:
    ours = line("fedbicross", {0: {0: 0.5}})
    assert paired_tests([ours, line("dafl", {1: {0: 0.3}})]) == ()
