"""A client's training: batches, splits, schedules, the chosen epoch, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny import CPU, all_equal, blobs, generator, noise, settings, task, tiny_spec
from tiny import one_thread as one_thread
from torch import nn

from fedbicross_flwr.distillation import fine_tune, personalise
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.labelled_images import LabelledImages, accuracy, predict_logits
from fedbicross_flwr.models import StateDict, build_model, load_state, state_of
from fedbicross_flwr.seeds import derive_seed
from fedbicross_flwr.sgd import SCHEDULES, Recipe, batches, fit
from fedbicross_flwr.shipment import Shipment
from fedbicross_flwr.training import Best, LocalModel, train_client

QUICK = {"client__epochs": 2, "client__lr": 0.05, "client__batch_size": 8}


def trained(data: LabelledImages | None = None, client: int = 0, **options: Any) -> LocalModel:
    return train_client(blobs(24) if data is None else data, task(settings(**QUICK | options), client))


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(2, 70), st.integers(2, 20), st.integers(0, 9))
def test_batches_cover_everything_once_and_none_is_of_one(count: int, size: int, seed: int) -> None:
    parts = [part.tolist() for part in batches(count, size, generator(seed))]
    assert sorted(row for part in parts for row in part) == list(range(count))
    assert all(2 <= len(part) <= size + 1 for part in parts)
    assert all(len(part) == size for part in parts[:-1])


def test_batches_are_shuffled_anew() -> None:
    source = generator(1)
    first, second = (torch.cat(list(batches(20, 6, source))).tolist() for _ in range(2))
    assert first != second and first != list(range(20))
    assert torch.cat(list(batches(20, 6, generator(1)))).tolist() == first


@pytest.mark.parametrize(
    ("count", "fraction", "validation"),
    [(20, 0.1, 2), (19, 0.1, 1), (9, 0.1, 0), (3, 0.5, 1), (2, 0.5, 0), (10, 0.0, 0)],
)
def test_split_keeps_the_first_part_for_validation(count: int, fraction: float, validation: int) -> None:
    data = LabelledImages(torch.arange(count).view(-1, 1, 1, 1).float(), torch.arange(count))
    training, held = data.split(fraction)
    assert held.labels.tolist() == list(range(validation))
    assert training.labels.tolist() == list(range(validation, count))
    assert torch.equal(training.images.flatten().long(), training.labels)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("step", [1, 1, 0.1, 0.01, 0.01]),
        ("cosine", [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0.02447]),
    ],
)
def test_schedules_by_hand(name: str, expected: list[float]) -> None:
    assert [SCHEDULES[name](done) for done in (0.0, 0.25, 0.5, 0.75, 0.9)] == pytest.approx(
        expected, rel=1e-3
    )


class Linear(nn.Module):
    """One weight an output, so that SGD can be followed on paper."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).mean(1, keepdim=True) * self.weight


def test_fit_follows_sgd_with_momentum_decay_and_schedule() -> None:
    # The loss is the mean output on images of ones: its gradient is 1 whatever the weight.
    model = Linear()
    seen: list[float] = []
    recipe = Recipe(4, 0.1, 0.5, 0.01, "step", 4, False)
    fit(
        model,
        torch.ones(4, 1, 2, 2),
        lambda logits, rows: logits.mean(),
        recipe,
        generator(),
        CPU,
        lambda epoch: seen.append(float(model.weight.detach())),
    )
    weight, speed, expected = 2.0, 0.0, []
    for rate in (0.1, 0.1, 0.01, 0.001):
        speed = 0.5 * speed + (1.0 + 0.01 * weight)
        weight -= rate * speed
        expected.append(weight)
    assert seen == pytest.approx(expected, rel=1e-6)


def test_no_epochs_are_none_and_not_all() -> None:
    model = Linear()
    recipe = Recipe(4, 0.1, 0.5, 0.01, "step", 4, False)
    images = torch.ones(4, 1, 2, 2)
    fit(model, images, lambda logits, rows: logits.mean(), recipe, generator(), CPU, epochs=range(0))
    assert float(model.weight.detach()) == 2.0


def test_training_learns_separable_images() -> None:
    result = trained(blobs(96), client__epochs=6, client__batch_size=16)
    model = load_state(tiny_spec(), result.state)
    assert accuracy(model, blobs(60, seed=7), CPU) > 0.9


def replayed_epochs(count: int, data: LabelledImages, **options: Any) -> list[StateDict]:
    """The state after each epoch, from runs that keep the last one."""
    return [
        trained(
            data, client__epochs=epochs, client__schedule="constant", client__checkpoint="last", **options
        ).state
        for epochs in range(1, count + 1)
    ]


def test_the_chosen_epoch_is_the_best_on_the_validation_images() -> None:
    data = blobs(30, seed=3)
    options: dict[str, Any] = {"client__validation_fraction": 0.4, "client__lr": 0.1}
    result = trained(data, client__epochs=5, client__schedule="constant", **options)
    states = replayed_epochs(5, data, **options)
    held = data.split(0.4)[1]
    scores = [accuracy(load_state(tiny_spec(), state), held, CPU) for state in states]
    assert list(result.validation_accuracy) == pytest.approx(scores)
    assert len(set(scores)) > 1, "the epochs must differ for this test to see anything"
    latest_best = max(range(5), key=lambda index: (scores[index], index))
    assert result.chosen_epoch == latest_best + 1
    assert all_equal(result.state, states[latest_best])


def test_best_keeps_a_copy_and_the_later_of_equals() -> None:
    model, best = Linear(), Best()
    for epoch, (score, weight) in enumerate(
        [(0.5, 1.0), (0.8, 2.0), (0.8, 3.0), (0.6, 4.0), (math.nan, 5.0)], 1
    ):
        with torch.no_grad():
            model.weight.fill_(weight)
        best.offer(score, epoch, model)
    assert best.choice is not None and best.choice[0] == 3
    assert best.choice[1]["weight"].tolist() == [3.0]


def test_without_validation_images_the_last_epoch_is_kept() -> None:
    result = trained(client__validation_fraction=0.0)
    last = trained(client__validation_fraction=0.0, client__checkpoint="last")
    assert result.chosen_epoch == 2 and all(math.isnan(value) for value in result.validation_accuracy)
    assert all_equal(result.state, last.state)


def test_one_seed_gives_one_model() -> None:
    torch.manual_seed(1)
    first = trained(client__augment=True)
    torch.manual_seed(2)
    kept = torch.get_rng_state()
    assert all_equal(first.state, trained(client__augment=True).state)
    assert torch.equal(torch.get_rng_state(), kept), "nothing is drawn from the global generator"
    assert not all_equal(first.state, trained(client__augment=True, seed=1).state)
    assert not all_equal(first.state, trained(client__augment=False).state)


def before_and_after(stage: str) -> tuple[StateDict, StateDict]:
    """Where a stage of a client's training starts, and what it makes of that."""
    # Weight decay would change what no gradient reaches.
    options: dict[str, Any] = {"client__weight_decay": 0.0, "personal__epochs": 2, "personal__lr": 0.05}
    work, data = task(settings(**QUICK | options)), blobs(24)
    start = state_of(build_model(tiny_spec(), derive_seed(work.config.seed, "initial-weights", None)))
    if stage == "training":
        return start, train_client(data, work).state
    if stage == "fine-tuning":
        return start, fine_tune(data, start, work)
    own = state_of(build_model(tiny_spec(), 7))
    return start, personalise(data, Shipment(start), own, work)


@pytest.mark.parametrize("stage", ["training", "fine-tuning", "personalisation"])
def test_every_parameter_is_trained_the_classifier_s_too(stage: str) -> None:
    before, after = before_and_after(stage)
    names = {name for name, _ in build_model(tiny_spec(), 0).named_parameters()}
    assert {"fc.weight", "fc.bias"} < names
    assert not {name for name in names if torch.equal(before[name], after[name])}


@pytest.mark.parametrize("start", ["shared", "independent"])
def test_clients_start_together_or_apart(start: str) -> None:
    # A learning rate of nothing leaves the initial weights.
    options: dict[str, Any] = {
        "client__initial_weights": start,
        "client__lr": 1e-30,
        "client__weight_decay": 0.0,
    }
    first, second = (trained(client=client, **options).state["fc.weight"] for client in (0, 1))
    assert torch.equal(first, second) is (start == "shared")


def test_clients_of_a_shared_start_still_shuffle_on_their_own() -> None:
    assert not all_equal(trained(client=0).state, trained(client=1).state)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([], r"0 training image\(s\) found, but at least 2"),
        ([1], r"1 training image\(s\) found, but at least 2"),
        ([1, 1, 1], r"training images of 1 class\(es\) found, but client\.min_classes = 2"),
    ],
)
def test_data_that_teaches_nothing_is_refused(labels: list[int], words: str) -> None:
    data = LabelledImages(torch.zeros(len(labels), 1, 28, 28), torch.tensor(labels, dtype=torch.long))
    with pytest.raises(FedBiCrossError, match=words):
        trained(data)


def test_a_client_of_one_class_may_be_let_in() -> None:
    data = LabelledImages(noise(4, 1, 28, 28), torch.zeros(4, dtype=torch.long))
    assert trained(data, client__min_classes=1).chosen_epoch == 2


def test_two_images_are_enough() -> None:
    state = trained(blobs(2), client__batch_size=64).state
    assert all(tensor.isfinite().all() for tensor in state.values() if tensor.is_floating_point())


def test_batches_of_one_are_refused_in_words() -> None:
    with pytest.raises(FedBiCrossError, match=r"client\.batch_size = 1 is too small"):
        settings(**QUICK | {"client__batch_size": 1})


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_divergence_says_what_to_lower(schedule: str) -> None:
    with pytest.raises(FedBiCrossError, match=r"diverged in epoch \d+ .*lower client\.lr = 1e\+20"):
        trained(client__lr=1e20, client__epochs=4, client__schedule=schedule)


def test_a_divergence_in_the_last_step_is_one_too() -> None:
    with pytest.raises(FedBiCrossError, match=r"diverged in its last step; lower client\.lr = 1e\+25"):
        trained(blobs(12), client__lr=1e25, client__epochs=1, client__batch_size=64)


def test_prediction_in_batches_keeps_the_mode_and_the_statistics() -> None:
    model = build_model(tiny_spec(), 0).train()
    kept = state_of(model)
    images = noise(7, 1, 28, 28)
    parts = predict_logits(model, images, CPU, batch_size=3)
    assert model.training and all_equal(state_of(model), kept) and not parts.requires_grad
    torch.testing.assert_close(parts, model.eval()(images).detach())


def test_accuracy_by_hand() -> None:
    model = build_model(tiny_spec(), 0)
    with torch.no_grad():
        model.get_parameter("fc.weight").zero_()
        model.get_parameter("fc.bias").copy_(torch.tensor([0.0, 3.0, 1.0]))
    data = LabelledImages(noise(4, 1, 28, 28), torch.tensor([1, 1, 0, 1]))
    assert accuracy(model, data, CPU) == 0.75
    assert math.isnan(accuracy(model, LabelledImages(data.images[:0], data.labels[:0]), CPU))
