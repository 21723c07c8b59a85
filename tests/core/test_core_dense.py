"""DENSE: the boundary term, the BatchNorm term that must not be zero, whole epochs, what it achieves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from generated import (
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
from tiny import CPU, noise, smooth_net
from tiny import one_thread as one_thread
from torch import Tensor

from fedbicross_flwr.batch_norm import plain_statistics_loss
from fedbicross_flwr.config_baselines import DenseConfig
from fedbicross_flwr.ensemble import Ensemble
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.generator import Generator
from fedbicross_flwr.methods.dense import boundary_support, dense, generator_loss
from fedbicross_flwr.methods.student import start_student
from fedbicross_flwr.models import state_of
from fedbicross_flwr.pool_distillation import teacher_with_statistics
from fedbicross_flwr.seeds import torch_generator
from fedbicross_flwr.sgd import batches, crop_and_flip

QUICK: dict[str, Any] = {
    "dense__epochs": 3,
    "dense__steps": 2,
    "dense__batch_size": 6,
    "dense__latent": 5,
    "dense__generator_width": 2,
    "dense__lr": 0.05,
    "dense__temperature": 4.0,
}


def test_defaults_are_the_published_ones() -> None:
    config = DenseConfig()
    assert (config.epochs, config.steps, config.batch_size, config.latent) == (200, 30, 256, 256)
    assert (config.generator_lr, config.bn_weight, config.boundary) == (1e-3, 1.0, 1.0)
    assert (config.lr, config.momentum, config.temperature, config.pool) == (5e-3, 0.9, 20.0, 0)


def test_boundary_support_counts_disagreeing_images_only() -> None:
    teacher = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.5, 0.3, 0.2]])
    student = np.array([[0.5, 0.4, 0.1], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.1, 0.1, 0.8]])
    kl = (teacher * np.log(teacher / student)).sum(1)
    scores = torch.tensor(student).log().requires_grad_(True)
    value = boundary_support(torch.tensor(teacher).log(), scores)
    # Rows 1 and 3 differ in their highest class; the mean is over all four.
    assert float(value.detach()) == pytest.approx(-(kl[1] + kl[3]) / 4, rel=1e-6)
    (gradient,) = torch.autograd.grad(value, scores)
    assert gradient.any(1).tolist() == [False, True, False, True]
    assert float(boundary_support(scores, scores).detach()) == 0.0


def test_boundary_support_reaches_the_images_through_teacher_and_student() -> None:
    teacher, student = noise(8, 3).requires_grad_(True), noise(8, 3, seed=1).requires_grad_(True)
    for gradient in torch.autograd.grad(boundary_support(teacher, student), (teacher, student)):
        assert gradient.any()


@pytest.mark.parametrize(("bn_weight", "boundary"), [(1.0, 1.0), (0.5, 2.0), (0.0, 0.0)])
def test_the_generators_loss_is_the_sum_of_its_three_terms(bn_weight: float, boundary: float) -> None:
    models, student = plain_teachers(trained_uploads()), smooth_net(3).eval()
    config = DenseConfig(bn_weight=bn_weight, boundary=boundary)
    teacher = teacher_with_statistics(Ensemble(models, "logits"), bn_weight, CPU)
    images, labels = torch.cat([textures(6).images, noise(6, 1, 28, 28)]), torch.arange(12) % 3
    value = generator_loss(teacher, student, config, CPU)(images, labels)

    parts = [plain_statistics_loss(model, images) for model in models]
    scores, answers = (parts[0][0] + parts[1][0]) / 2, student(images)
    batch_norm = (parts[0][1] + parts[1][1]) / 2
    differ = (scores.argmax(1) != answers.argmax(1)).float()
    assert 0 < float(differ.mean()) < 1 and batch_norm > 0.1, "both terms take part"
    expected = plain_cross_entropy(scores, labels).mean() + bn_weight * batch_norm
    expected = expected - boundary * (differ * plain_kl(scores, answers, 1.0)).mean()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_the_batch_norm_term_of_an_ensemble_changes_the_images() -> None:
    uploads = trained_uploads()
    made = [
        dense(uploads, server_task(**QUICK | {"dense__bn_weight": weight})).findings.synthetic[0][0]
        for weight in (0.0, 1.0)
    ]
    assert (made[0] - made[1]).abs().max() > 1e-3


@pytest.mark.parametrize("augment", [False, True])
def test_three_epochs_as_the_paper_has_them(augment: bool) -> None:
    """Three epochs of two generator steps, written out; the third pass is over three batches."""
    uploads, task = trained_uploads(), server_task(seed=5, **QUICK | {"dense__augment": augment})
    teachers, student = plain_teachers(uploads), start_student("random", uploads, task)
    sgd = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9)
    pool: list[tuple[Tensor, Tensor]] = []
    for epoch in range(3):
        student.eval()
        random = torch_generator(5, "dense/synthesis", round=epoch)
        generator = Generator(5, 1, "sigmoid", "normal", random, 2)
        z = torch.randn(6, 5, generator=random).requires_grad_(True)
        labels = torch.randint(3, (6,), generator=random)
        adam = torch.optim.Adam([*generator.parameters(), z], 1e-3, betas=(0.5, 0.999))
        tried: list[tuple[float, Tensor]] = []
        for _ in range(2):
            images = generator(z)
            parts = [plain_statistics_loss(teacher, images) for teacher in teachers]
            scores, answers = (parts[0][0] + parts[1][0]) / 2, student(images)
            differ = scores.argmax(1) != answers.argmax(1)
            loss = plain_cross_entropy(scores, labels).mean() + (parts[0][1] + parts[1][1]) / 2
            loss = loss - (differ * plain_kl(scores, answers, 1.0)).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            tried.append((float(loss.detach()), images.detach().clone()))
        pool.append((min(tried, key=lambda pair: pair[0])[1], labels))
        everything = torch.cat([images for images, _ in pool])
        student.train()
        moves = torch_generator(5, "dense/augmentation", round=epoch)
        for rows in batches(len(everything), 6, torch_generator(5, "dense/distillation", round=epoch)):
            batch = crop_and_flip(everything[rows], moves) if augment else everything[rows]
            with torch.no_grad():
                scores = sum(teacher(batch) for teacher in teachers) / 2
            sgd.zero_grad()
            plain_kl(scores, student(batch), 4.0).mean().backward()
            sgd.step()
    outcome = dense(uploads, task)
    assert_close(outcome.models[0], state_of(student))
    assert int(outcome.models[0]["body.1.num_batches_tracked"]) == 1 + 2 + 3, "passes over a growing pool"
    images, labels = outcome.findings.synthetic[0]
    torch.testing.assert_close(images, pool[-1][0], rtol=1e-3, atol=1e-4)
    assert torch.equal(labels, pool[-1][1])


def test_a_bounded_pool_is_distilled_in_fewer_steps() -> None:
    model = dense(trained_uploads(), server_task(**QUICK | {"dense__pool": 1})).models[0]
    assert int(model["body.1.num_batches_tracked"]) == 3


def test_promises_of_a_global_method() -> None:
    assert_common_promises(dense, **QUICK)


def test_the_student_comes_near_its_teachers() -> None:
    assert_learns(
        dense,
        dense__epochs=10,
        dense__steps=15,
        dense__batch_size=32,
        dense__latent=16,
        dense__generator_width=4,
        dense__generator_lr=0.02,
        dense__bn_weight=0.1,
        dense__lr=0.1,
        dense__temperature=4.0,
    )


def test_a_learning_rate_far_too_large_is_named() -> None:
    with pytest.raises(FedBiCrossError, match=r"DENSE diverged in epoch . .*lower dense\.lr = 1e\+38$"):
        dense(trained_uploads(), server_task(**QUICK | {"dense__lr": 1e38}))
