"""Stage 3: where the personal model starts, what it follows, and what it must never see or change."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from scipy.special import rel_entr, softmax
from tiny import CPU, all_equal, blobs, settings, task, tiny_resnet, tiny_spec
from tiny import one_thread as one_thread

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.distillation import fine_tune, personalise
from fedbicross_flwr.models import StateDict, load_state, state_of
from fedbicross_flwr.training import LabelledImages, predict_logits


def favouring(favourite: int, seed: int) -> StateDict:
    state = state_of(tiny_resnet(seed))
    state["fc.bias"][favourite] += 4.0
    return state


@cache
def cluster() -> StateDict:
    return favouring(0, 1)


@cache
def own() -> StateDict:
    return favouring(2, 2)


def config(**options: Any) -> RunConfig:
    return settings(**{"personal__epochs": 2, "personal__lr": 0.02, "client__batch_size": 8} | options)


def personal(data: LabelledImages | None = None, client: int = 0, **options: Any) -> StateDict:
    return personalise(blobs(20) if data is None else data, cluster(), own(), task(config(**options), client))


def tuned(start: StateDict, data: LabelledImages | None = None, **options: Any) -> StateDict:
    return fine_tune(blobs(20) if data is None else data, start, task(config(**options)))


def test_no_epochs_return_the_start() -> None:
    assert all_equal(personal(personal__epochs=0), cluster())
    assert all_equal(tuned(own(), personal__epochs=0), own())


def test_fine_tuning_is_personalising_without_teachers() -> None:
    plain = personal(personal__gamma=0.0, personal__delta=0.0)
    assert all_equal(plain, tuned(cluster()))
    assert not all_equal(plain, cluster())


@pytest.mark.parametrize("term", ["personal__gamma", "personal__delta", "personal__temperature"])
def test_every_setting_of_the_loss_changes_the_model(term: str) -> None:
    options: dict[str, Any] = {term: 2.0}
    assert not all_equal(personal(), personal(**options))


def test_teachers_are_unchanged() -> None:
    first, second = ({name: tensor.clone() for name, tensor in state.items()} for state in (cluster(), own()))
    personal()
    assert all_equal(first, cluster()) and all_equal(second, own())


@pytest.mark.parametrize(("term", "teacher"), [("personal__gamma", cluster), ("personal__delta", own)])
def test_a_strong_teacher_is_followed(term: str, teacher: Any) -> None:
    # The teachers have favourites, the labels none: with its term a model ends nearer to its teacher.
    data = blobs(24)
    images = data.split(0.1)[0].images

    def distance(state: StateDict) -> float:
        # By batch statistics, as in training: a few steps hardly move the running ones.
        student = load_state(tiny_spec(), state).train()(images).detach()
        answers = (predict_logits(load_state(tiny_spec(), teacher()), images, CPU), student)
        return float(rel_entr(*(softmax(answer.double().numpy(), 1) for answer in answers)).sum(1).mean())

    options: dict[str, Any] = {"personal__gamma": 0.0, "personal__delta": 0.0, "personal__epochs": 5}
    assert distance(personal(data, **options | {term: 3.0})) < 0.5 * distance(personal(data, **options))


@pytest.mark.parametrize("stage", ["personalise", "fine_tune"])
def test_validation_images_are_never_touched(stage: str) -> None:
    data = blobs(20)
    broken = LabelledImages(data.images.clone(), data.labels.clone())
    broken.images[:4] = torch.nan
    broken.labels[:4] = 2
    first, second = (
        personal(one, client__validation_fraction=0.2)
        if stage == "personalise"
        else tuned(own(), one, client__validation_fraction=0.2)
        for one in (data, broken)
    )
    assert all_equal(first, second)
    assert all(tensor.isfinite().all() for tensor in first.values() if tensor.is_floating_point())


def test_the_learning_rate_is_constant_and_there_is_no_augmentation() -> None:
    expected = personal(client__schedule="constant")
    assert all_equal(expected, personal(client__schedule="step", client__augment=True))


def test_the_result_depends_on_seed_and_client_alone() -> None:
    torch.manual_seed(3)
    first = personal()
    torch.manual_seed(4)
    assert all_equal(first, personal())
    assert not all_equal(first, personal(client=1)) and not all_equal(first, personal(seed=1))
