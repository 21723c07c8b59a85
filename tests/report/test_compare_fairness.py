"""Which runs of a cell do not compare: by settings that both read, and by the clients that they had."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from comparison_builder import build_comparison, set_accuracies, set_config
from run_builder import edit

from fedbicross_flwr.compare.checks import fairness_notes, reads, shaping_keys
from fedbicross_flwr.compare.collect import collect
from fedbicross_flwr.compare.commands import table_text
from fedbicross_flwr.compare.latex import escape
from fedbicross_flwr.compare.variants import VARIANTS
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.config_readers import STRATEGIES_THAT_READ
from fedbicross_flwr.flower_names import NOTES, PREFIX
from fedbicross_flwr.settings import walk

CELL = "phantom-N5-alpha0.3"
SETTINGS = {
    "client.epochs": 10,
    "client.initial_weights": "shared",
    "data.phantom_train": 600,
    "personal.epochs": 5,
    "personal.gamma": 0.5,
    "flower.rounds": 5,
    "flower.adam_lr": 0.1,
    "inversion.tv_weight": 5.0,
}
PLAIN = {key.replace(".", "__"): value for key, value in SETTINGS.items()}


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of all kinds with the same settings; tests copy it."""
    out = tmp_path_factory.mktemp("alike")
    variants = ("fedavg", "central", "flower:FedAvg", "flower:FedAdam")
    build_comparison(out, variants=variants, seeds=(0,))
    for variant in variants:
        set_config(out / CELL / variant / "seed-0", **PLAIN)
    return out


@pytest.fixture
def out(alike: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(alike, tmp_path / "out"))


def notes(out: Path) -> tuple[str, ...]:
    (cell,) = collect(out).cells
    return fairness_notes(cell)


def test_runs_of_other_images_of_the_same_name_do_not_compare(out: Path) -> None:
    """A file that was replaced between two calls: its runs have the same settings."""
    for variant, fingerprint in (("fedavg", "aa11"), ("central", "bb22"), ("flower:FedAvg", "aa11")):
        edit(
            out / CELL / variant / "seed-0" / "run.json",
            lambda content, found=fingerprint: content["dataset"].update(fingerprint=found),
        )
    assert notes(out) == (
        "Seed 0: fedavg and central do not compare: their images are not the same "
        "(fingerprints aa11 and bb22).",
    )


def change(out: Path, variant: str, **settings: Any) -> None:
    set_config(out / CELL / variant / "seed-0", **settings)


def test_runs_with_the_same_settings_compare(out: Path) -> None:
    assert notes(out) == ()


@pytest.mark.parametrize(
    ("variant", "key", "value"),
    [
        ("flower:FedAvg", "client.epochs", 20),
        ("flower:FedAvg", "personal.epochs", 9),
        ("flower:FedAvg", "data.phantom_train", 700),
        ("central", "client.epochs", 20),
        ("central", "data.phantom_train", 700),
        ("central", "client.initial_weights", "independent"),
        ("fedavg", "personal.epochs", 9),
    ],
)
def test_a_setting_that_both_read_is_named_below_the_table(
    out: Path, variant: str, key: str, value: Any
) -> None:
    build_comparison(out, variants=("dense",), seeds=(0,))
    change(out, "dense", **PLAIN)
    change(out, variant, **{key.replace(".", "__"): value})
    one, other = ("fedavg", variant) if variant != "fedavg" else ("fedavg", "dense")
    values = (SETTINGS[key], value) if variant != "fedavg" else (value, SETTINGS[key])
    differ = f"they differ in {key} ({values[0]} and {values[1]})."
    wanted = f"{one} seed 0 and {other} seed 0 do not compare: {differ}"
    assert wanted in notes(out)
    assert f"- {wanted}" in table_text(CELL, out, "markdown")
    assert escape(wanted) in table_text(CELL, out, "latex")


@pytest.mark.parametrize(
    ("variant", "key", "value"),
    [
        ("flower:FedAvg", "personal.gamma", 0.1),
        ("flower:FedAvg", "inversion.tv_weight", 1.0),
        ("flower:FedAvg", "client.initial_weights", "independent"),
        ("flower:FedAvg", "flower.adam_lr", 0.5),
        ("central", "personal.epochs", 9),
        ("central", "flower.rounds", 9),
        ("fedavg", "flower.rounds", 9),
        ("fedavg", "inversion.tv_weight", 1.0),
        ("fedavg", "personal.gamma", 0.1),
    ],
)
def test_a_setting_that_one_of_them_does_not_read_is_ignored(
    out: Path, variant: str, key: str, value: Any
) -> None:
    build_comparison(out, variants=("dense",), seeds=(0,))
    change(out, "dense", **PLAIN)
    change(out, variant, **{key.replace(".", "__"): value})
    assert notes(out) == ()


def test_a_setting_that_is_younger_than_a_run_has_its_default_there(out: Path) -> None:
    default = RunConfig().client.batch_size
    change(out, "central", client__batch_size=default)
    assert notes(out) == ()
    change(out, "central", client__batch_size=default + 1)
    (note,) = notes(out)
    assert note.endswith(f"they differ in client.batch_size ({default} and {default + 1}).")


def test_an_ablation_is_held_to_what_it_does_not_change_itself(out: Path) -> None:
    variants = ("fedbicross", "fedbicross-uniform", "fedbicross-parameters")
    build_comparison(out, variants=variants, seeds=(0,))
    for variant in variants:
        change(out, variant, **PLAIN, clustering__by="classifier_norms", clustering__clusters=2)
    change(out, "fedbicross-uniform", clustering__clusters=4)
    change(out, "fedbicross-parameters", clustering__by="parameters")
    (note,) = notes(out)
    assert note == (
        "fedbicross seed 0 and fedbicross-uniform seed 0 do not compare: they differ in clustering.clusters "
        "(2 and 4)."
    )


def test_strategies_are_held_to_each_others_rounds(out: Path) -> None:
    change(out, "flower:FedAdam", flower__rounds=2, client__epochs=12)
    one, two = notes(out)
    assert one == (
        "fedavg seed 0 and flower:FedAdam seed 0 do not compare: they differ in client.epochs (10 and 12)."
    )
    assert two == (
        "flower:FedAvg seed 0 and flower:FedAdam seed 0 do not compare: "
        "they differ in flower.rounds (5 and 2)."
    )


def test_a_strategy_whose_clients_are_others_is_named(out: Path) -> None:
    set_accuracies(out / CELL / "flower:FedAvg" / "seed-0", "local-only", "global", {2: 0.0})
    (note,) = notes(out)
    assert note.startswith(
        "Seed 0: fedavg and flower:FedAvg do not have the same clients (local-only differs"
    )
    # These start from other weights, so that their own models say nothing.
    change(out, "flower:FedAvg", client__initial_weights="independent")
    assert notes(out) == ()


def test_every_setting_of_a_strategy_says_itself_who_reads_it() -> None:
    said = {
        key: frozenset(declared.metadata["doc"].partition(":")[0].split(", "))
        for key, declared, _ in walk(RunConfig())
        if key.startswith("flower.")
        and declared.metadata["doc"].partition(":")[0].startswith(("F", "K", "Q"))
    }
    assert said == STRATEGIES_THAT_READ
    assert frozenset.union(*STRATEGIES_THAT_READ.values()) <= set(NOTES)
    for strategy in NOTES:
        read = {key for key in shaping_keys() if reads(VARIANTS[PREFIX + strategy], key)}
        assert "flower.rounds" in read and "client.lr" in read and not any("cross_" in key for key in read)
