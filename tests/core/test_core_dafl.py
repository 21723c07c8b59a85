"""DAFL: the generator's loss, steps as published, and what it achieves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from generated import (
    SPEC,
    assert_close,
    assert_common_promises,
    assert_learns,
    plain_cross_entropy,
    plain_kl,
    plain_teachers,
    server_task,
    trained_uploads,
)
from generated import smooth_model as smooth_model
from tiny import CPU, SmoothNet, noise
from tiny import one_thread as one_thread
from torch import Tensor, nn

from fedbicross_flwr.config_baselines import DaflConfig
from fedbicross_flwr.ensemble import Ensemble
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.generator import Generator
from fedbicross_flwr.methods.dafl import STUDENT_SCHEDULES, answer_with_features, dafl, generator_loss
from fedbicross_flwr.methods.student import start_student
from fedbicross_flwr.models import load_state, state_of
from fedbicross_flwr.seeds import torch_generator

QUICK: dict[str, Any] = {
    "dafl__epochs": 2,
    "dafl__steps": 2,
    "dafl__batch_size": 6,
    "dafl__latent": 5,
    "dafl__generator_width": 2,
    "dafl__lr": 0.05,
}


def features_of(model: nn.Module, images: Tensor) -> Tensor:
    assert isinstance(model, SmoothNet)
    return model.features(images)


def test_defaults_are_the_published_ones_for_cifar() -> None:
    config = DaflConfig()
    assert (config.one_hot, config.entropy, config.activation) == (0.05, 5.0, 0.01)
    assert (config.generator_lr, config.lr, config.latent) == (0.02, 0.1, 1000)
    assert (config.batch_size, config.epochs, config.steps) == (1024, 2000, 120)


def test_generator_loss_by_hand() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
    features = np.array([[1.0, -2.0], [3.0, 0.0]])
    mean = p.mean(0)
    one_hot, entropy = -np.log([0.7, 0.6]).mean(), (mean * np.log10(mean)).sum()
    config = DaflConfig(one_hot=0.3, entropy=2.0, activation=0.5)
    value = generator_loss(torch.tensor(p).log(), torch.tensor(features), config)
    assert float(value) == pytest.approx(0.3 * one_hot + 2.0 * entropy - 0.5 * 1.5, rel=1e-6)


@pytest.mark.parametrize("term", ["one_hot", "entropy", "activation"])
def test_each_weight_scales_its_own_term(term: str) -> None:
    scores, features = noise(4, 3), noise(4, 2, seed=1)
    none = DaflConfig(one_hot=0.0, entropy=0.0, activation=0.0)
    weights: tuple[dict[str, Any], ...] = ({term: 1.0}, {term: 2.0})
    one, two = (replace(none, **weight) for weight in weights)
    assert float(generator_loss(scores, features, none)) == 0.0
    once, twice = generator_loss(scores, features, one), generator_loss(scores, features, two)
    assert float(once) != 0.0 and float(twice) == pytest.approx(2 * float(once))
    # Sure answers, equal frequencies and strong features are rewarded.
    better = {"one_hot": (5 * scores, features), "entropy": (0 * scores, features)}
    better["activation"] = (scores, 2 * features)
    assert generator_loss(*better[term], one) < once


def test_a_class_that_never_comes_has_a_finite_gradient() -> None:
    scores = torch.tensor([[0.0, -1.0, -200.0]] * 3, requires_grad=True)
    loss = generator_loss(scores, noise(3, 2), DaflConfig())
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss.isfinite() and gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("aggregation", ["logits", "probabilities"])
def test_an_ensembles_answers_and_features(aggregation: str) -> None:
    models = plain_teachers(trained_uploads())
    images = noise(4, 1, 28, 28)
    scores, features = answer_with_features(Ensemble(models, aggregation), images, CPU)
    logits = torch.stack([model(images) for model in models])
    if aggregation == "logits":
        torch.testing.assert_close(scores, logits.mean(0), rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(scores.softmax(1), logits.softmax(2).mean(0), rtol=1e-4, atol=1e-5)
    own = [features_of(model, images) for model in models]
    torch.testing.assert_close(features, (own[0] + own[1]) / 2, rtol=1e-4, atol=1e-5)


def test_two_epochs_as_the_paper_has_them() -> None:
    """Two epochs of two steps, written out: the generator's Adam, the student's SGD, z fresh each time."""
    uploads, task = trained_uploads(), server_task(seed=5, **QUICK | {"dafl__schedule": "cosine"})
    config, teachers = task.config.dafl, plain_teachers(uploads)
    student = start_student("random", uploads, task)
    generator = Generator(
        5, 1, "tanh_batch_norm", "uniform", torch_generator(5, "dafl/generator"), 2, eps=0.8
    )
    adam = torch.optim.Adam(generator.parameters(), 0.02)
    sgd = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(2):
        sgd.param_groups[0]["lr"] = 0.05 if epoch == 0 else 0.025
        random = torch_generator(5, "dafl/z", round=epoch)
        for _ in range(2):
            images = generator(torch.randn(6, 5, generator=random))
            scores = sum(teacher(images) for teacher in teachers) / 2
            features = torch.stack([features_of(teacher, images) for teacher in teachers]).mean(0)
            mean = scores.softmax(1).mean(0)
            loss = config.one_hot * plain_cross_entropy(scores, scores.argmax(1)).mean()
            loss = loss + config.entropy * (mean * mean.log10()).sum()
            loss = loss - config.activation * features.abs().mean()
            distillation = plain_kl(scores.detach(), student(images.detach()), 1.0).mean()
            for optimiser, value in ((adam, loss), (sgd, distillation)):
                optimiser.zero_grad()
                value.backward()
                optimiser.step()
    outcome = dafl(uploads, task)
    assert_close(outcome.models[0], state_of(student))
    seen, labels = outcome.findings.synthetic[0]
    torch.testing.assert_close(seen, images.detach(), rtol=1e-3, atol=1e-3)
    assert torch.equal(labels, scores.argmax(1))


def test_the_student_s_rate_falls_at_two_fifths_and_four_fifths() -> None:
    rate = STUDENT_SCHEDULES["dafl"]
    assert [rate(epoch / 10) for epoch in range(10)] == [1.0] * 4 + [0.1] * 4 + [0.01] * 2


@pytest.mark.parametrize(("output", "most"), [("sigmoid", 1.0), ("tanh_batch_norm", 9.0)])
def test_images_are_in_the_range_of_real_ones_if_wanted(output: str, most: float) -> None:
    outcome = dafl(trained_uploads(), server_task(**QUICK | {"dafl__output": output}))
    seen, _ = outcome.findings.synthetic[0]
    assert (output == "sigmoid") == bool(seen.abs().max() <= 1.0) and seen.abs().max() <= most


def test_promises_of_a_global_method() -> None:
    assert_common_promises(dafl, **QUICK)


def test_the_student_comes_near_its_teachers() -> None:
    assert_learns(
        dafl,
        dafl__epochs=8,
        dafl__steps=15,
        dafl__batch_size=32,
        dafl__latent=16,
        dafl__generator_width=4,
        dafl__one_hot=1.0,
        dafl__schedule="cosine",
    )


@pytest.mark.parametrize("setting", ["lr", "generator_lr"])
def test_a_learning_rate_far_too_large_is_named(setting: str) -> None:
    options = QUICK | {f"dafl__{setting}": 1e37, "dafl__steps": 4}
    with pytest.raises(FedBiCrossError, match=rf"DAFL diverged in epoch 1 .*lower dafl\.{setting} = 1e\+37$"):
        dafl(trained_uploads(), server_task(**options))


def test_a_warm_start_is_the_average() -> None:
    uploads = trained_uploads()
    still = QUICK | {"dafl__lr": 1e-30, "dafl__weight_decay": 0.0, "dafl__student_init": "average"}
    model = load_state(SPEC, dafl(uploads, server_task(**still)).models[0])
    expected = start_student("average", uploads, server_task())
    for weight, average in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(weight, average.detach())
