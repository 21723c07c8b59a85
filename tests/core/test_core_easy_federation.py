"""On a federation that anybody can learn, every method must come near the central model."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch
from generated import held_out_accuracy, server_task, textures, trained_uploads
from generated import smooth_model as smooth_model
from tiny import one_thread as one_thread
from tiny import settings
from tiny import task as client_task

from fedbicross_flwr.artifacts import digest
from fedbicross_flwr.compare.variants import VARIANTS
from fedbicross_flwr.labelled_images import LabelledImages
from fedbicross_flwr.methods import METHODS, ClientUpload
from fedbicross_flwr.models import ModelSpec
from fedbicross_flwr.pacfl import data_subspace
from fedbicross_flwr.shipment import Shipment
from fedbicross_flwr.training import ClientTask, train_client

SPEC: ModelSpec = server_task().spec
BUDGETS: dict[str, Any] = {
    "clustering__clusters": 2,
    "clustering__num_probes": 64,
    "inversion__iterations": 25,
    "inversion__batch_size": 24,
    "inversion__bn_models": "sum",
    "cross_cluster__synthesis_rounds": 6,
    "cross_cluster__replay_fraction": 1.0,
    "cross_cluster__sweeps": 1,
    "cross_cluster__lr": 0.05,
    "cross_cluster__schedule": "constant",
    # The average of alike clients is near the goal already: it must be reached by learning.
    "cross_cluster__student_init": "random",
    "personal__epochs": 3,
    "fedisca__epochs": 6,
    "fedisca__steps": 25,
    "fedisca__batch_size": 24,
    "fedisca__inversion_lr": 0.1,
    "fedisca__bn_weight": 0.1,
    "fedisca__lr": 0.05,
    "fedisca__schedule": "constant",
    "fedisca__temperature": 4.0,
}
METHODS_HERE = [
    name
    for name, variant in VARIANTS.items()
    # Methods with generators are tried in their own modules.
    if variant.overrides.get("method") in ("fedavg", "fedisca", "fedbicross")
    and variant.group in ("one-shot", "ablation", "clustering")
]


def everything() -> LabelledImages:
    """The images of all clients together."""
    parts = [textures(upload.num_samples, 20 + upload.client) for upload in trained_uploads()]
    return LabelledImages(
        torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    )


def with_subspaces() -> tuple[ClientUpload, ...]:
    """The uploads with what PACFL has clients send besides."""
    rank = server_task().config.clustering.pacfl_rank
    return tuple(
        dataclasses.replace(
            upload, subspace=data_subspace(textures(upload.num_samples, 20 + upload.client), 3, rank)
        )
        for upload in trained_uploads()
    )


@cache
def central_accuracy() -> float:
    """The model of one who has all images, by the clients' recipe."""
    config = settings(client__epochs=8, client__lr=0.1, client__batch_size=16)
    return held_out_accuracy(train_client(everything(), client_task(config, 0, SPEC)).state)


@pytest.mark.parametrize("name", METHODS_HERE)
def test_the_shipped_and_the_personal_models_come_near_the_central_one(name: str) -> None:
    options = BUDGETS | {key.replace(".", "__"): v for key, v in VARIANTS[name].overrides.items()}
    task, uploads = (
        server_task(**options),
        with_subspaces() if name == "fedbicross-pacfl" else trained_uploads(),
    )
    outcome = METHODS[task.config.method].serve(uploads, task)
    for upload in uploads:
        model = outcome.models[outcome.assignment[upload.client]]
        assert held_out_accuracy(model) > central_accuracy() - 0.1
        client: ClientTask = client_task(task.config, upload.client, SPEC)
        personal = METHODS[task.config.method].personalise(
            textures(upload.num_samples, 20 + upload.client),
            Shipment(model, outcome.replay),
            upload.state,
            client,
        )
        assert held_out_accuracy(personal) > central_accuracy() - 0.1


def test_the_central_model_learns_what_there_is() -> None:
    assert central_accuracy() > 0.95


SMALL_BUDGETS: dict[str, Any] = {
    "clustering__num_probes": 8,
    "inversion__iterations": 2,
    "inversion__batch_size": 12,
    **{
        f"{name}__{budget}": size
        for name in ("dafl", "dense", "fedisca", "coboosting")
        for budget, size in (("epochs", 2), ("steps", 2), ("batch_size", 12))
    },
}


def test_teachers_share_memory_with_uploads_on_a_cpu() -> None:
    upload = trained_uploads()[0]
    teacher = server_task().load(upload.state).state_dict()
    assert teacher.keys() == upload.state.keys()
    assert all(tensor.data_ptr() == upload.state[name].data_ptr() for name, tensor in teacher.items())


VARIED: list[dict[str, Any]] = [
    {"teacher__noise_adaptation": "batch"},
    {"teacher__noise_adaptation": "progressive"},
    {"cross_cluster__student_init": "member"},
    {"inversion__teachers": "in_turn", "inversion__images_at_once": 5},
]


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in METHODS), *(("fedbicross", options) for options in VARIED)],
    ids=str,
)
def test_uploads_are_read_and_never_written(name: str, options: dict[str, Any]) -> None:
    uploads = trained_uploads()
    before = [digest(upload.state) for upload in uploads]
    METHODS[name].serve(uploads, server_task(method=name, **SMALL_BUDGETS, **options))
    assert [digest(upload.state) for upload in uploads] == before
