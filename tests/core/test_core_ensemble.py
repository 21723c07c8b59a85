"""How a cluster's models answer together, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import CPU, TEACHER_SPEC, blobs, noise, settings, smooth_net, task
from tiny import one_thread as one_thread
from torch import Tensor, nn

from fedbicross_flwr.batch_norm import batch_norms, running
from fedbicross_flwr.ensemble import COMBINERS, Ensemble, class_shares, classifier_norms, ensemble_scores
from fedbicross_flwr.labelled_images import LabelledImages
from fedbicross_flwr.models import load_state
from fedbicross_flwr.training import train_client

# Two models, one image, three classes: what each takes for the classes' probabilities.
FIRST, SECOND = (0.5, 0.25, 0.25), (0.1, 0.8, 0.1)
# Logits may carry any constant an image; probabilities must not feel it.
LOGITS = torch.tensor([[FIRST], [SECOND]]).log() + torch.tensor([2.0, -5.0]).view(2, 1, 1)
CLASS_WEIGHTS = torch.tensor([[0.8, 0.5, 0.25], [0.2, 0.5, 0.75]])


def certainty(distribution: tuple[float, ...]) -> float:
    """One minus the entropy in units of log 3."""
    return 1 + sum(p * math.log(p) for p in distribution) / math.log(3)


def mixture(weights: tuple[tuple[float, ...], tuple[float, ...]]) -> list[float]:
    mass = [a * p + b * q for a, p, b, q in zip(weights[0], FIRST, weights[1], SECOND, strict=True)]
    return [entry / sum(mass) for entry in mass]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # The mean of logits is the geometric mean: roots of .05, .2 and .025 over their sum .828932.
        ("logits", [0.269752, 0.539504, 0.190744]),
        ("probabilities", [0.3, 0.525, 0.175]),
        ("confidence", mixture(((certainty(FIRST),) * 3, (certainty(SECOND),) * 3))),
        # .8 x .5 + .2 x .1, .5 x .25 + .5 x .8, .25 x .25 + .75 x .1 = .42, .525, .1375
        ("class_weighted", [0.42 / 1.0825, 0.525 / 1.0825, 0.1375 / 1.0825]),
    ],
)
def test_aggregations_by_hand(name: str, expected: list[float]) -> None:
    found = torch.softmax(COMBINERS[name](LOGITS, CLASS_WEIGHTS), 1)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=2e-6)


def test_the_mean_of_logits_is_the_papers() -> None:
    torch.testing.assert_close(COMBINERS["logits"](LOGITS, CLASS_WEIGHTS), (LOGITS[0] + LOGITS[1]) / 2)


@pytest.mark.parametrize("name", [name for name in COMBINERS if name != "logits"])
def test_scores_are_log_probabilities(name: str) -> None:
    scores = COMBINERS[name](5 * noise(3, 7, 4), torch.full((3, 4), 1 / 3))
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(7))


@pytest.mark.parametrize("name", COMBINERS)
def test_extreme_logits_stay_finite(name: str) -> None:
    logits = torch.tensor([[[90.0, -90.0, 0.0]], [[-80.0, 80.0, 3.0]]]).requires_grad_(True)
    scores = COMBINERS[name](logits, CLASS_WEIGHTS)
    scores.square().sum().backward()
    assert scores.isfinite().all() and logits.grad is not None and logits.grad.isfinite().all()


def test_models_that_know_nothing_still_have_a_mean() -> None:
    scores = COMBINERS["confidence"](torch.zeros(2, 1, 3), CLASS_WEIGHTS)
    torch.testing.assert_close(scores.exp(), torch.full((1, 3), 1 / 3))


def with_rows(*rows: list[float]) -> nn.Module:
    """A network whose classifier rows have these values in the first place and zeros elsewhere."""
    model = smooth_net()
    weight = torch.zeros(3, 6)
    weight[:, : len(rows[0])] = torch.tensor(rows)
    with torch.no_grad():
        model.get_parameter("fc.weight").copy_(weight)
    return model


def test_class_weights_are_the_members_shares_of_each_class() -> None:
    first, second = (
        with_rows([3.0, 4.0], [0.0, 1.0], [2.0, 0.0]),
        with_rows([0.0, 5.0], [3.0, 0.0], [0.0, 6.0]),
    )
    assert classifier_norms(first).tolist() == [5.0, 1.0, 2.0]
    # Above the shortest row: 4, 0, 1 and 2, 0, 3, each in proportion.
    torch.testing.assert_close(class_shares(first), torch.tensor([0.8, 0.0, 0.2]), atol=2e-3, rtol=0)
    torch.testing.assert_close(class_shares(second), torch.tensor([0.4, 0.0, 0.6]), atol=2e-3, rtol=0)
    expected = torch.tensor([[2 / 3, 0.5, 0.25], [1 / 3, 0.5, 0.75]])
    weights = Ensemble([first, second], "class_weighted").class_weights
    torch.testing.assert_close(weights[:, [0, 2]], expected[:, [0, 2]], atol=3e-3, rtol=0)
    torch.testing.assert_close(weights.sum(0), torch.ones(3))


@pytest.mark.parametrize("rows", [[0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [1e-20, 0.0, 3.0]])
def test_shares_are_positive_and_sum_to_one(rows: list[float]) -> None:
    shares = class_shares(with_rows(*[[value] for value in rows]))
    assert (shares > 0).all() and float(shares.sum()) == pytest.approx(1.0)
    assert len(set(rows)) > 1 or torch.equal(shares, shares[:1].expand(3))


def test_shares_tell_who_saw_a_class_more_often() -> None:
    def shares_of(counts: list[int]) -> Tensor:
        data = blobs(150)
        kept = torch.cat([(data.labels == c).nonzero()[:count, 0] for c, count in enumerate(counts)])
        own = LabelledImages(data.images[kept], data.labels[kept])
        config = settings(client__epochs=20, client__lr=0.05, client__batch_size=8)
        return class_shares(load_state(TEACHER_SPEC, train_client(own, task(config, 0, TEACHER_SPEC)).state))

    first, second = shares_of([40, 4, 20]), shares_of([4, 40, 20])
    assert first[0] > second[0] and second[1] > first[1]


def test_members_are_frozen_and_stay_in_eval_mode() -> None:
    ensemble = Ensemble([smooth_net(1).train(), smooth_net(2)], "probabilities")
    assert ensemble.train() is ensemble
    assert not any(module.training for module in ensemble.modules())
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())
    before = [
        buffer.clone()
        for model in ensemble.members
        for layer in batch_norms(model)
        for buffer in running(layer)
    ]
    ensemble.scores(noise(4, 1, 28, 28), CPU)
    after = [
        buffer for model in ensemble.members for layer in batch_norms(model) for buffer in running(layer)
    ]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", COMBINERS)
def test_an_ensemble_of_one_says_what_its_member_says(name: str) -> None:
    model, images = smooth_net(3).eval(), noise(4, 1, 28, 28)
    found = torch.softmax(Ensemble([model], name).scores(images, CPU), 1)
    torch.testing.assert_close(found, torch.softmax(model(images), 1).detach())


def test_scores_in_batches_equal_scores_at_once() -> None:
    ensemble, images = Ensemble([smooth_net(1), smooth_net(2)], "confidence"), noise(9, 1, 28, 28)
    whole: Tensor = ensemble.scores(images, CPU)
    torch.testing.assert_close(ensemble_scores(ensemble, images, CPU, batch_size=4), whole)
    gradient_free = ensemble_scores(ensemble, images.requires_grad_(True), CPU)
    assert not gradient_free.requires_grad
