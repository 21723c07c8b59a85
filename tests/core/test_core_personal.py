"""Stage 3: where the personal model starts, what it follows, and what it must never see or change."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax
from tiny import CPU, all_equal, blobs, generator, noise, settings, task, tiny_resnet, tiny_spec
from tiny import one_thread as one_thread

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.distillation import fine_tune, personalise
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.labelled_images import LabelledImages, predict_logits
from fedbicross_flwr.models import StateDict, load_state, state_of
from fedbicross_flwr.shipment import Rehearsal, Replay, Shipment


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
    rates = {"personal__lr": 0.02, "personal__schedule": "constant"}
    return settings(**{"personal__epochs": 2, "client__batch_size": 8} | rates | options)


def personal(
    data: LabelledImages | None = None, client: int = 0, replay: Replay | None = None, **options: Any
) -> StateDict:
    shipment = Shipment(cluster(), replay)
    return personalise(blobs(20) if data is None else data, shipment, own(), task(config(**options), client))


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


def test_the_schedule_is_stage_3_s_own_and_there_is_no_augmentation() -> None:
    expected = personal(client__schedule="constant")
    assert all_equal(expected, personal(client__schedule="step", client__augment=True))
    assert not all_equal(expected, personal(personal__schedule="cosine"))


def test_the_result_depends_on_seed_and_client_alone() -> None:
    torch.manual_seed(3)
    first = personal()
    torch.manual_seed(4)
    assert all_equal(first, personal())
    assert not all_equal(first, personal(client=1)) and not all_equal(first, personal(seed=1))


def replay(count: int = 12) -> Replay:
    """Synthetic images which the teacher takes for class 1 throughout."""
    scores = torch.zeros(count, 3)
    scores[:, 1] = 6.0
    return Replay(noise(count, 1, 28, 28, seed=7).half(), scores)


def test_images_are_rehearsed_only_when_they_came_and_are_wanted() -> None:
    assert all_equal(personal(), personal(replay=replay(), personal__replay=0.0))
    assert not all_equal(personal(), personal(replay=replay(), personal__replay=1.0))


def test_rehearsal_teaches_what_the_server_s_teacher_says_of_the_images() -> None:
    def said(state: StateDict) -> float:
        images = replay().images.float()
        logits = load_state(tiny_spec(), state).train()(images).detach()
        return float(logits.softmax(1)[:, 1].mean())

    options: dict[str, Any] = {"personal__epochs": 8, "personal__replay_batch": 8}
    without = personal(**options, replay=replay(), personal__replay=0.0)
    assert said(personal(**options, replay=replay(), personal__replay=3.0)) > said(without) + 0.2


def test_a_step_with_rehearsal_is_the_formula() -> None:
    """One SGD step on Eq. 9 plus replay x KL to the server's teacher, whose images pass by themselves."""
    data, images = blobs(10), replay(4)
    options: dict[str, Any] = {
        "personal__epochs": 1, "personal__replay_batch": 4, "personal__replay": 0.7,
        "personal__replay_temperature": 2.0, "client__batch_size": 16, "client__validation_fraction": 0.0,
        "client__momentum": 0.0, "client__weight_decay": 0.0, "personal__gamma": 0.5, "personal__delta": 0.3,
        "personal__logit_adjustment": 0.6,
    }  # fmt: skip
    found = load_state(tiny_spec(), personal(data, replay=images, **options))
    model = load_state(tiny_spec(), cluster()).train()
    fixed = [predict_logits(load_state(tiny_spec(), state), data.images, CPU) for state in (cluster(), own())]
    mine = model(data.images)
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    # No in-place update of buffers that the first pass keeps for its gradient.
    beside = torch.func.functional_call(
        model, {n: b.clone() for n, b in statistics.items()}, images.images.float()
    )
    frequency = (torch.bincount(data.labels, minlength=3) + 1) / (len(data) + 3)
    loss = torch.nn.functional.cross_entropy(mine + 0.6 * frequency.log(), data.labels)
    for weight, teacher in zip((0.5, 0.3), fixed, strict=True):
        p = teacher.softmax(1)
        loss = loss + weight * (p * (p.log() - mine.log_softmax(1))).sum(1).mean()
    p = (images.scores / 2.0).softmax(1)
    loss = loss + 0.7 * 4.0 * (p * (p.log() - (beside / 2.0).log_softmax(1))).sum(1).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for ours, start, gradient in zip(found.parameters(), model.parameters(), gradients, strict=True):
        torch.testing.assert_close(ours, start - 0.02 * gradient, rtol=1e-4, atol=1e-6)
    for name, buffer in found.named_buffers():
        if buffer.is_floating_point():
            torch.testing.assert_close(buffer, statistics[name])


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 99))
def test_a_rehearsal_draws_without_repeating_and_answers_for_what_it_drew(
    images: int, count: int, seed: int
) -> None:
    scores = torch.arange(images).float().unsqueeze(1)
    numbered = Replay(scores.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).half(), scores)
    rehearsal = Rehearsal(numbered, count, generator(seed), CPU.device)
    for _ in range(3):
        drawn = rehearsal.draw()
        assert len(drawn) == min(count, images) == len(drawn[:, 0, 0, 0].unique())
        assert torch.equal(drawn[:, 0, 0, 0], rehearsal.answers()[:, 0])


def test_a_shipment_counts_its_bytes_and_a_damaged_replay_is_refused() -> None:
    alone, both = Shipment(cluster()), Shipment(cluster(), replay(5))
    assert both.num_bytes - alone.num_bytes == 5 * (28 * 28 * 2 + 3 * 4)
    assert len({alone.digest(), both.digest(), Shipment(cluster(), replay(6)).digest()}) == 3
    with pytest.raises(FedBiCrossError, match="lack 'scores'"):
        Replay.of({"images": torch.zeros(2, 1, 28, 28)})
    with pytest.raises(FedBiCrossError, match="2 synthetic images and 3 answers"):
        Replay.of({"images": torch.zeros(2, 1, 28, 28), "scores": torch.zeros(3, 3)})
