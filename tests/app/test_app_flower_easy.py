"""On images that anybody can learn, dealt evenly, Flower's strategies come near the central model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generated import textures
from local_grid import LocalGrid, run_app
from numpy.typing import NDArray
from small_runs import tiny, without_report

from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.labelled_images import accuracy
from fedbicross_flwr.models import ModelSpec, load_state
from fedbicross_flwr.progress import Silent
from fedbicross_flwr.report import load_run
from fedbicross_flwr.training import ClientTask, train_client
from server_app.baselines import FLOWER_STRATEGIES

BUDGET: dict[str, Any] = {
    "flower__rounds": 5,
    "client__epochs": 10,
    "client__lr": 0.1,
    "client__checkpoint": "last",
    "model__width": 4,
    # Flower's rates are for more rounds than five.
    "flower__server_momentum": 0.3,
    "flower__adam_lr": 0.02,
    "flower__adagrad_lr": 0.03,
}


def arrays(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Stripes this way, that way, or none, as a site's file has them."""
    made = textures(count, seed)
    return ((made.images.squeeze(1) + 1) * 127.5).round().byte().numpy(), made.labels.numpy()


def federation(folder: Path) -> RunConfig:
    """Three clients with equal shares of 108 images."""
    (images, labels), (test_images, test_labels) = arrays(108, 1), arrays(60, 2)
    file = folder / "easy.npz"
    np.savez(file, train_images=images, train_labels=labels, test_images=test_images, test_labels=test_labels)
    return tiny(**BUDGET, data__path=str(file), cache=str(folder / "cache"))


@pytest.fixture(scope="module")
def easy(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The federation, whose clients' own models its runs share."""
    return federation(tmp_path_factory.mktemp("easy"))


@pytest.fixture(scope="module")
def central(easy: RunConfig) -> float:
    """The accuracy of one who has all images, by the clients' recipe."""
    spec, compute = ModelSpec.of(easy, 3, 1), Compute.of(easy.runtime)
    model = train_client(textures(108, 1), ClientTask(0, spec, easy, compute, Silent()))
    return accuracy(compute.place(load_state(spec, model.state)), textures(60, 2), compute)


def test_the_central_model_learns_what_there_is(central: float) -> None:
    assert central > 0.95


@pytest.mark.parametrize("strategy", FLOWER_STRATEGIES)
def test_the_global_and_the_fine_tuned_models_come_near_the_central_one(
    strategy: str, easy: RunConfig, central: float, tmp_path: Path
) -> None:
    config = dataclasses.replace(easy, method=f"flower:{strategy}", out=str(tmp_path / "run"))
    with without_report():
        run_app(config, LocalGrid(config, 3))
    results = load_run(tmp_path / "run").results
    assert results is not None
    assert len(results.rows) == 4
    for row in results.rows[2:]:
        assert {one.accuracy > central - 0.1 for one in row.scores["global"].values()} == {True}, row.name
