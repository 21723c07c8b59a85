"""The table over seeds: sample standard deviations of runs that differ in nothing but the seed."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import pytest
from run_builder import MakeRun, edit

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.report import load_run, results_table, seeds_table
from fedbicross_flwr.report.record import RunRecord
from fedbicross_flwr.report.seeds_table import COLUMNS


def folders(make_run: MakeRun, seeds: tuple[int, ...] = (2, 0, 1)) -> list[Path]:
    return [make_run(f"seed-{seed}", seed=seed) for seed in seeds]


def test_mean_and_sample_deviation(make_run: MakeRun) -> None:
    runs = [load_run(folder) for folder in folders(make_run)]
    table = seeds_table(runs)
    assert table.seeds == (0, 1, 2)
    for index, row in enumerate(table.rows):
        for title, protocol, metric, statistic in COLUMNS:
            found = [
                results_table(run).rows[index].values[protocol, metric].statistic(statistic) for run in runs
            ]
            numbers = [number for number in found if number is not None]
            spread = row.values[title]
            assert spread is not None
            assert spread.mean == pytest.approx(statistics.fmean(numbers))
            assert spread.deviation == pytest.approx(statistics.stdev(numbers))


def test_markdown_states_the_seeds_and_marks_no_ceiling(make_run: MakeRun) -> None:
    text = seeds_table([load_run(folder) for folder in folders(make_run)]).markdown()
    assert "3 seeds (n = 3: 0, 1 and 2)" in text
    ceiling = next(line for line in text.splitlines() if "(ceiling)" in line)
    assert "**" not in ceiling
    assert ceiling.count("±") == len(COLUMNS)
    assert text.count("**") == 2 * len(COLUMNS)


def test_a_seed_that_lost_a_client_is_told(make_run: MakeRun) -> None:
    whole = folders(make_run, (0, 1))
    short = make_run("seed-2", seed=2, failed=(1,))
    text = seeds_table([load_run(folder) for folder in (*whole, short)]).markdown()
    assert text.endswith(
        "\n\nSeed 2 is without client 1 (no reply within 600 s): its means are over the others.\n"
    )
    assert "is without" not in seeds_table([load_run(folder) for folder in whole]).markdown()


def test_one_seed_has_no_deviation(make_run: MakeRun) -> None:
    text = seeds_table([load_run(make_run())]).markdown()
    assert "n = 1: 0" in text
    assert "±" not in text.splitlines()[2]


def test_a_deployment_leaves_the_global_columns_empty(make_run: MakeRun) -> None:
    table = seeds_table([load_run(make_run(deployment=True))])
    assert table.rows[0].values["Global accuracy"] is None
    assert table.rows[0].values["Local accuracy"] is not None
    assert "| – |" in table.markdown()


def test_runs_of_different_settings_are_refused(make_run: MakeRun) -> None:
    one, two = folders(make_run, (0, 1))
    config = two / "config.toml"
    config.write_text(config.read_text().replace("alpha = 0.3", "alpha = 0.1"))
    with pytest.raises(FedBiCrossError, match=r"differ in partition\.alpha \(0\.3 and 0\.1\)"):
        seeds_table([load_run(one), load_run(two)])


def test_a_setting_that_is_younger_than_a_run_has_its_default_there(make_run: MakeRun) -> None:
    one, two = (load_run(folder) for folder in folders(make_run, (0, 1)))
    default = RunConfig().client.batch_size

    def with_batches(size: int) -> RunRecord:
        return dataclasses.replace(two, config={**two.config, "client.batch_size": size})

    without = {key: value for key, value in one.config.items() if key != "client.batch_size"}
    older = dataclasses.replace(one, config=without)
    assert seeds_table([older, with_batches(default)]).seeds == (0, 1)
    with pytest.raises(FedBiCrossError, match=rf"differ in client\.batch_size \({default} and 7\)"):
        seeds_table([older, with_batches(7)])


def test_runs_of_different_versions_are_told(make_run: MakeRun) -> None:
    runs = [load_run(folder) for folder in folders(make_run, (0, 1))]
    made = [dataclasses.replace(run, versions={"code": f"c0de{run.seed}"}) for run in runs]
    assert (
        seeds_table(made)
        .markdown()
        .endswith(
            "\n\nThe runs were made by different versions of this program: c0de0 (seed 0, ...) and c0de1 "
            "(seed 1, ...).\n"
        )
    )
    same = [made[0], dataclasses.replace(runs[1], versions=made[0].versions)]
    assert "versions" not in seeds_table(same).markdown()


def test_runs_may_differ_in_what_their_method_does_not_read(make_run: MakeRun) -> None:
    one, two = folders(make_run, (0, 1))
    with (two / "config.toml").open("a") as config:
        config.write("\n[dense]\nepochs = 3\n")
    assert seeds_table([load_run(one), load_run(two)]).seeds == (0, 1)


def test_a_file_that_changed_between_the_seeds_is_refused(make_run: MakeRun) -> None:
    runs = [load_run(one) for one in folders(make_run, (0, 1))]
    known = [
        dataclasses.replace(run, dataset=dataclasses.replace(run.dataset, fingerprint=f"f{run.seed}"))
        for run in runs
    ]
    with pytest.raises(FedBiCrossError, match=r"the images of .* are not the same, .* on the same data"):
        seeds_table(known)
    assert seeds_table([runs[0], known[1]]).seeds == (0, 1), "a run of before does not tell"
    phantoms = [dataclasses.replace(run, config={**run.config, "data.name": "phantom"}) for run in known]
    assert seeds_table(phantoms).seeds == (0, 1), "a phantom is another one with each seed"


def test_runs_on_other_data_are_refused(make_run: MakeRun) -> None:
    runs = [load_run(one) for one in folders(make_run, (0, 1))]
    changes: tuple[dict[str, Any], ...] = ({"name": "others"}, {"class_names": ("a", "b")}, {"channels": 1})
    for change in changes:
        dataset = dataclasses.replace(runs[1].dataset, **change)
        with pytest.raises(FedBiCrossError, match="takes runs on the same data"):
            seeds_table([runs[0], dataclasses.replace(runs[1], dataset=dataset)])


def test_where_a_run_was_computed_may_differ(make_run: MakeRun) -> None:
    one, two = folders(make_run, (0, 1))
    config = two / "config.toml"
    config.write_text(config.read_text() + '\n[runtime]\ndevice = "cuda"\n')
    assert seeds_table([load_run(one), load_run(two)]).seeds == (0, 1)


def test_a_seed_that_comes_twice_is_refused(make_run: MakeRun) -> None:
    with pytest.raises(FedBiCrossError, match="both have seed 0"):
        seeds_table([load_run(make_run("a")), load_run(make_run("b"))])


def test_different_methods_are_refused(make_run: MakeRun) -> None:
    one, two = folders(make_run, (0, 1))
    edit(two / "metrics.json", lambda content: content["rows"].pop())
    with pytest.raises(FedBiCrossError, match="different methods"):
        seeds_table([load_run(one), load_run(two)])


def test_no_run_is_refused() -> None:
    with pytest.raises(FedBiCrossError, match="at least one run"):
        seeds_table([])
