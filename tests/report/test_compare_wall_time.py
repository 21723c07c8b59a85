"""What a run would have taken alone: by hand, from what the runs say; and none where it cannot be told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from comparison_builder import build_comparison, log_work, set_config
from run_builder import edit

from fedbicross_flwr.compare.collect import collect
from fedbicross_flwr.compare.wall_time import wall_seconds

CLIENTS = range(5)
FIRST = {"upload round": 100.0, "personalisation round": 60.0, "evaluation": 5.0, "total": 170.0}
SECOND = {
    "upload round": 2.0,
    "synthesis": 30.0,
    "personalisation round": 40.0,
    "evaluation": 5.0,
    "total": 80.0,
}
CELL = "phantom-N5-alpha0.3"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two methods: the first trained the clients, the second found their models in the cache."""
    build_comparison(tmp_path, variants=("fedavg", "dense"), seeds=(0,))
    log_work(folder(tmp_path, "fedavg"), FIRST, CLIENTS, CLIENTS, lasted=160.0)
    log_work(folder(tmp_path, "dense"), SECOND, (), CLIENTS, lasted=70.0)
    return tmp_path


def folder(out: Path, variant: str) -> Path:
    return out / CELL / variant / "seed-0"


def found(out: Path) -> dict[str, float]:
    (cell,) = collect(out).cells
    return {variant: seconds for (variant, _), seconds in wall_seconds(cell).items()}


def test_a_run_that_trained_took_its_total_and_others_the_upload_round_besides(out: Path) -> None:
    assert found(out) == {"fedavg": 170.0, "dense": 80.0 + 100.0}


def test_stages_that_were_shared_count_as_where_they_were_made(out: Path) -> None:
    # 30 s of synthesis are not in a total of 50 s; 2 + 30 + 40 + 5 s are what it takes.
    log_work(folder(out, "dense"), SECOND | {"total": 50.0}, (), CLIENTS, lasted=45.0)
    assert found(out)["dense"] == 77.0 + 100.0


def other_settings(out: Path) -> None:
    set_config(folder(out, "fedavg"), client__epochs=3)


def other_code(out: Path) -> None:
    edit(folder(out, "fedavg") / "run.json", lambda run: run["versions"].update(code="0a0a"))


def other_machine(out: Path) -> None:
    edit(folder(out, "fedavg") / "run.json", lambda run: run["hardware"].update(threads=64))


def other_runner(out: Path) -> None:
    edit(folder(out, "fedavg") / "run.json", lambda run: run.update(runner="in-process"))


def partly_trained(out: Path) -> None:
    log_work(folder(out, "dense"), SECOND, (3,), CLIENTS, lasted=70.0)


def personal_models_of_another(out: Path) -> None:
    log_work(folder(out, "dense"), SECOND, (), (0, 1, 2), lasted=70.0)


def interrupted(out: Path) -> None:
    log_work(folder(out, "dense"), SECOND, (), CLIENTS, lasted=82.0)


def trainer_interrupted(out: Path) -> None:
    log_work(folder(out, "fedavg"), FIRST, CLIENTS, CLIENTS, lasted=172.0)


def log_gone(out: Path) -> None:
    (folder(out, "dense") / "progress.jsonl").unlink()


def subspaces_besides(out: Path) -> None:
    shutil.move(out / CELL / "fedavg", out / CELL / "fedbicross")
    set_config(folder(out, "fedbicross"), clustering__by="pacfl")


@pytest.mark.parametrize(
    "change",
    [
        other_settings,
        other_code,
        other_machine,
        other_runner,
        partly_trained,
        personal_models_of_another,
        interrupted,
        trainer_interrupted,
        log_gone,
        subspaces_besides,
    ],
    ids=lambda change: change.__name__,
)
def test_there_is_no_number_where_it_would_be_wrong(out: Path, change: Callable[[Path], None]) -> None:
    change(out)
    assert "dense" not in found(out)


def test_settings_that_shape_no_upload_do_not_matter(out: Path) -> None:
    set_config(folder(out, "fedavg"), inversion__tv_weight=1.0, clustering__by="pacfl")
    assert found(out)["dense"] == 180.0


def test_without_stage_3_there_is_no_personal_model_to_wait_for(out: Path) -> None:
    log_work(folder(out, "dense"), SECOND)
    assert "dense" not in found(out)
    set_config(folder(out, "dense"), personal__epochs=0)
    assert found(out)["dense"] == 180.0


def test_uploads_of_another_seed_are_others(out: Path) -> None:
    build_comparison(out, variants=("dense",), seeds=(1,))
    log_work(out / CELL / "dense" / "seed-1", SECOND, (), CLIENTS, lasted=70.0)
    (cell,) = collect(out).cells
    assert wall_seconds(cell).keys() == {("fedavg", 0), ("dense", 0)}


def test_central_models_and_strategies_take_their_own_time_or_have_none(tmp_path: Path) -> None:
    build_comparison(tmp_path, variants=("fedavg", "central", "flower:FedAvg", "flower:Krum"), seeds=(0,))
    log_work(folder(tmp_path, "fedavg"), FIRST, CLIENTS, CLIENTS, lasted=160.0)
    log_work(folder(tmp_path, "central"), {"training": 90.0, "evaluation": 2.0, "total": 92.0}, (-1,))
    rounds = {
        "upload round": 100.0,
        "strategy": 1.0,
        "personalisation round": 9.0,
        "evaluation": 0.1,
        "total": 115.0,
    }
    log_work(folder(tmp_path, "flower:FedAvg"), rounds, CLIENTS, CLIENTS, lasted=112.0)
    # A strategy trains its clients itself, so a log without that is not whole.
    log_work(folder(tmp_path, "flower:Krum"), rounds, (), CLIENTS, lasted=112.0)
    assert found(tmp_path) == {"fedavg": 170.0, "central": 92.0, "flower:FedAvg": 115.0}
    log_work(folder(tmp_path, "central"), {"training": 0.1, "evaluation": 2.0, "total": 2.1})
    assert "central" not in found(tmp_path)
