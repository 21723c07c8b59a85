"""Co-Boosting: hard samples, the ensemble's weights, the on-the-fly step, whole epochs, what it achieves."""

from __future__ import annotations

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
    textures,
    trained_uploads,
)
from generated import smooth_model as smooth_model
from tiny import CPU, generator, noise, smooth_net
from tiny import one_thread as one_thread
from torch import Tensor

from fedbicross_flwr.config_baselines import CoBoostingConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.generator import Generator
from fedbicross_flwr.methods.coboosting import (
    WeightedEnsemble,
    coboosting,
    generator_loss,
    hard_cross_entropy,
    perturb,
    stepped_weights,
    weighted_logits,
)
from fedbicross_flwr.methods.student import start_student
from fedbicross_flwr.models import build_model, state_of
from fedbicross_flwr.pool_distillation import teacher_with_statistics
from fedbicross_flwr.seeds import torch_generator
from fedbicross_flwr.sgd import batches, crop_and_flip

QUICK: dict[str, Any] = {
    "coboosting__epochs": 3,
    "coboosting__steps": 2,
    "coboosting__batch_size": 6,
    "coboosting__latent": 5,
    "coboosting__generator_width": 2,
    "coboosting__lr": 0.05,
}


def test_defaults_are_the_published_ones() -> None:
    config = CoBoostingConfig()
    assert (config.epochs, config.steps, config.batch_size, config.clip) == (200, 30, 128, 10.0)
    assert (config.generator_lr, config.hardness, config.adversarial) == (1e-3, 1.0, 1.0)
    assert (config.adversarial_temperature, config.bn_weight, config.temperature) == (3.0, 0.0, 4.0)
    assert (config.weight_step, config.weight_decay_rate, config.perturbation) == (0.01, 0.99, 8 / 255)
    assert (config.lr, config.momentum, config.weight_decay) == (0.01, 0.9, 1e-4)


@pytest.mark.parametrize("hardness", [0.0, 1.0, 2.0])
def test_hard_samples_weigh_more_and_the_weight_is_a_constant(hardness: float) -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
    labels = torch.tensor([0, 2])
    chosen = np.array([0.7, 0.3])
    factor = (1 - chosen) ** hardness
    scores = torch.tensor(p).log().requires_grad_(True)
    value = hard_cross_entropy(scores, labels, hardness)
    assert float(value.detach()) == pytest.approx(float((factor * -np.log(chosen)).mean()), rel=1e-6)
    # Were p_y not detached, there would be a second term.
    (gradient,) = torch.autograd.grad(value, scores)
    expected = factor[:, None] * (p - np.eye(3)[[0, 2]]) / 2
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_a_sample_of_no_doubt_has_a_finite_gradient() -> None:
    scores = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    value = hard_cross_entropy(scores, torch.tensor([0]), 0.5)
    (gradient,) = torch.autograd.grad(value, scores)
    assert float(value.detach()) == 0.0 and gradient.isfinite().all()


def test_weighted_logits_do_not_depend_on_the_sum_of_weights() -> None:
    logits, weights = noise(3, 4, 5), torch.tensor([0.2, 0.0, 0.6])
    expected = 0.25 * logits[0] + 0.75 * logits[2]
    torch.testing.assert_close(weighted_logits(weights, logits), expected)
    torch.testing.assert_close(weighted_logits(weights / 7, logits), expected)


def plain_gradient(weights: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """d CE / d w_k = mean over images of < softmax(s) - e_y, (f_k - s) / sum w >."""
    scores = sum(w * one for w, one in zip(weights, logits, strict=True)) / weights.sum()
    assert isinstance(scores, Tensor)
    wrong = scores.softmax(1) - torch.eye(scores.shape[1])[labels]
    return torch.stack([(wrong * (one - scores) / weights.sum()).sum(1).mean() for one in logits])


def test_weights_step_against_the_sign_of_their_gradient() -> None:
    logits, labels = noise(3, 8, 4), torch.arange(8) % 4
    weights = torch.full((3,), 1 / 3)
    gradient = plain_gradient(weights, logits, labels)
    assert gradient.min() < 0 < gradient.max()
    expected = weights - 0.05 * gradient.sign()
    torch.testing.assert_close(stepped_weights(weights, logits, labels, 0.05), expected)
    assert weights.tolist() == torch.full((3,), 1 / 3).tolist(), "the former weights are not written over"


def test_weights_are_clipped_and_never_all_zero() -> None:
    # The first member is right, the second is wrong, the third as wrong but already at 0.
    logits = torch.tensor([[[3.0, 0.0]], [[0.0, 3.0]], [[0.0, 3.0]]])
    labels = torch.tensor([0])
    weights = torch.tensor([0.99, 0.005, 0.0])
    assert stepped_weights(weights, logits, labels, 0.02).tolist() == [1.0, 0.0, 0.0]
    # One member is left: its gradient is rounding, yet its sign is a whole step, which must not end at zero.
    for seed in range(20):
        alone = stepped_weights(
            torch.tensor([0.005, 0.0]), noise(2, 7, 3, seed=seed), torch.arange(7) % 3, 0.9
        )
        assert float(alone.sum()) > 0


def test_boosting_finds_the_upload_that_knows_more() -> None:
    data = textures(48, 3)
    good, bad = plain_teachers(trained_uploads())[0], build_model(SPEC, 8).eval()
    with torch.no_grad():
        logits = torch.stack([bad(data.images), good(data.images)])
    weights = torch.tensor([0.5, 0.5])
    for _ in range(10):
        weights = stepped_weights(weights, logits, data.labels, 0.02)
    torch.testing.assert_close(weights, torch.tensor([0.3, 0.7]))


@pytest.mark.parametrize(("adversarial", "bn_weight"), [(1.0, 0.0), (0.5, 0.3), (0.0, 0.0)])
def test_the_generators_loss(adversarial: float, bn_weight: float) -> None:
    models, student = plain_teachers(trained_uploads()), smooth_net(3).eval()
    ensemble = WeightedEnsemble(models)
    ensemble.weights = torch.tensor([0.9, 0.3])
    config = CoBoostingConfig(adversarial=adversarial, bn_weight=bn_weight)
    loss = generator_loss(teacher_with_statistics(ensemble, bn_weight, CPU), student, config, CPU)
    images, labels = noise(6, 1, 28, 28), torch.arange(6) % 3
    scores = 0.75 * models[0](images) + 0.25 * models[1](images)
    cross_entropy = plain_cross_entropy(scores, labels)
    expected = ((1 - (-cross_entropy).exp()) * cross_entropy).mean()
    expected = expected - adversarial * plain_kl(scores, student(images), 3.0).mean()
    if bn_weight:
        expected = expected + teacher_with_statistics(ensemble, bn_weight, CPU)(images)[1]
    torch.testing.assert_close(loss(images, labels), expected, rtol=1e-4, atol=1e-5)


def test_the_on_the_fly_step() -> None:
    models, images = plain_teachers(trained_uploads()), noise(4, 1, 28, 28)
    ensemble = WeightedEnsemble(models)
    ensemble.weights = torch.tensor([0.2, 0.6])
    harder = perturb(images, ensemble, 4.0, 0.03, generator(7), CPU)

    start = images.clone().requires_grad_(True)
    directions = torch.rand(4, 3, generator=generator(7)) * 2 - 1
    scores = 0.25 * models[0](start) + 0.75 * models[1](start)
    (gradient,) = torch.autograd.grad(((scores / 4).softmax(1) * directions).sum(), start)
    clear = gradient.abs() > 1e-3 * gradient.abs().max()
    assert clear.float().mean() > 0.5
    torch.testing.assert_close(harder[clear], (images + 0.03 * gradient.sign())[clear])
    assert ((harder - images).abs() < 0.03 + 1e-6).all() and not harder.requires_grad
    assert not torch.equal(harder, perturb(images, ensemble, 4.0, 0.03, generator(8), CPU))


@pytest.mark.parametrize(("weight_step", "augment"), [(0.01, False), (0.4, True)])
def test_three_epochs_as_the_paper_has_them(weight_step: float, augment: bool) -> None:
    """Three epochs of two generator steps, written out, with weights from the second epoch on."""
    options = QUICK | {"coboosting__weight_step": weight_step, "coboosting__weight_decay_rate": 0.5}
    options |= {"coboosting__augment": augment}
    uploads, task = trained_uploads(), server_task(seed=5, **options)
    teachers, student = plain_teachers(uploads), start_student("random", uploads, task)
    sgd = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    weights = torch.tensor([0.5, 0.5])
    images_of, labels_of = torch.empty(0, 1, 28, 28), torch.empty(0, dtype=torch.int64)

    def answer(images: Tensor) -> Tensor:
        total: Tensor = weights[0] * teachers[0](images) + weights[1] * teachers[1](images)
        return total / weights.sum()

    for epoch in range(3):
        student.eval()
        random = torch_generator(5, "coboosting/synthesis", round=epoch)
        network = Generator(5, 1, "sigmoid", "normal", random, 2)
        z = torch.randn(6, 5, generator=random).requires_grad_(True)
        labels = torch.randint(3, (6,), generator=random)
        trained = [*network.parameters(), z]
        adam = torch.optim.Adam(trained, 1e-3, betas=(0.5, 0.999))
        tried: list[tuple[float, Tensor]] = []
        for _ in range(2):
            images = network(z)
            cross_entropy = plain_cross_entropy(answer(images), labels)
            loss = ((1 - (-cross_entropy).exp().detach()) * cross_entropy).mean()
            loss = loss - plain_kl(answer(images), student(images), 3.0).mean()
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 10.0)
            adam.step()
            tried.append((float(loss.detach()), images.detach().clone()))
        if epoch > 0:
            for rows in batches(len(labels_of), 6, torch_generator(5, "coboosting/weights", round=epoch)):
                with torch.no_grad():
                    logits = torch.stack([teacher(images_of[rows]) for teacher in teachers])
                sign = plain_gradient(weights, logits, labels_of[rows]).sign()
                weights = (weights - weight_step * 0.5**epoch * sign).clamp(0, 1)
        images_of = torch.cat([images_of, min(tried, key=lambda pair: pair[0])[1]])
        labels_of = torch.cat([labels_of, labels])
        student.train()
        sgd.param_groups[0]["lr"] = 0.05 * (1 + np.cos(np.pi * epoch / 3)) / 2
        directions = torch_generator(5, "coboosting/perturbation", round=epoch)
        moves = torch_generator(5, "coboosting/augmentation", round=epoch)
        for rows in batches(len(labels_of), 6, torch_generator(5, "coboosting/distillation", round=epoch)):
            start = crop_and_flip(images_of[rows], moves) if augment else images_of[rows]
            start.requires_grad_(True)
            u = torch.rand(len(rows), 3, generator=directions) * 2 - 1
            (gradient,) = torch.autograd.grad(((answer(start) / 4).softmax(1) * u).sum(), start)
            batch = start.detach() + 8 / 255 * gradient.sign()
            sgd.zero_grad()
            plain_kl(answer(batch).detach(), student(batch), 4.0).mean().backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 10.0)
            sgd.step()
    assert weights.tolist() != [0.5, 0.5]
    outcome = coboosting(uploads, task)
    assert_close(outcome.models[0], state_of(student), rtol=1e-2, atol=1e-4)
    images, labels = outcome.findings.synthetic[0]
    torch.testing.assert_close(images, images_of[-6:], rtol=1e-3, atol=1e-4)
    assert torch.equal(labels, labels_of[-6:])


def test_promises_of_a_global_method() -> None:
    assert_common_promises(coboosting, **QUICK)


@pytest.mark.parametrize("perturbation", [8 / 255, 0.0])
def test_the_student_comes_near_its_teachers(perturbation: float) -> None:
    assert_learns(
        coboosting,
        coboosting__epochs=10,
        coboosting__steps=15,
        coboosting__batch_size=32,
        coboosting__latent=16,
        coboosting__generator_width=4,
        coboosting__generator_lr=0.02,
        coboosting__lr=0.1,
        coboosting__perturbation=perturbation,
    )


def test_a_learning_rate_far_too_large_is_named() -> None:
    options = QUICK | {"coboosting__lr": 1e38}
    with pytest.raises(
        FedBiCrossError, match=r"Co-Boosting diverged in epoch . .*lower coboosting\.lr = 1e\+38$"
    ):
        coboosting(trained_uploads(), server_task(**options))
