"""What DENSE and Co-Boosting share: the pool, the best synthetic batch, the distillation pass."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from generated import SPEC, plain_kl, plain_teachers, trained_uploads
from generated import smooth_model as smooth_model
from tiny import CPU, all_equal, generator, noise, smooth_net
from tiny import one_thread as one_thread
from torch import Tensor, nn

from fedbicross_flwr.batch_norm import plain_statistics_loss
from fedbicross_flwr.config_baselines import DenseConfig
from fedbicross_flwr.distillation import kl_divergence
from fedbicross_flwr.ensemble import Ensemble
from fedbicross_flwr.models import state_of
from fedbicross_flwr.pool_distillation import (
    Pool,
    distil,
    divergence,
    lesson_of,
    synthesise,
    teacher_with_statistics,
)
from fedbicross_flwr.sgd import crop_and_flip

SETTINGS = DenseConfig(steps=5, batch_size=4, latent=3, generator_width=2)


def ensemble() -> Ensemble:
    return Ensemble(plain_teachers(trained_uploads()), "logits")


def test_the_pool_holds_copies_and_each_members_answers() -> None:
    pool, teachers = Pool(0), ensemble()
    live, labels = noise(2, 1, 28, 28), torch.tensor([0, 1])
    kept: list[Tensor] = []
    for index in range(3):
        live.add_(index)
        kept.append(live.clone())
        pool.add(live, labels, teachers, CPU)
        labels.add_(1)
    live.zero_(), labels.zero_()
    assert len(pool) == 6 and torch.equal(pool.images, torch.cat(kept))
    assert pool.labels.tolist() == [0, 1, 1, 2, 2, 3]
    for logits, member in zip(pool.logits, teachers.members, strict=True):
        torch.testing.assert_close(logits, member(torch.cat(kept)), rtol=1e-4, atol=1e-5)


def test_cropped_images_are_asked_about_anew() -> None:
    pool, teachers, rows = Pool(0), ensemble(), torch.tensor([1, 0])
    pool.add(noise(2, 1, 28, 28), torch.tensor([0, 1]), teachers, CPU)
    plain, answers = lesson_of(pool, teachers, None, CPU)(rows)
    assert torch.equal(plain, pool.images[rows])
    torch.testing.assert_close(answers, teachers.scores(plain, CPU))
    moved, answers = lesson_of(pool, teachers, generator(3), CPU)(rows)
    assert torch.equal(moved, crop_and_flip(plain, generator(3))) and not torch.equal(moved, plain)
    torch.testing.assert_close(answers, teachers.scores(moved, CPU))
    assert not answers.requires_grad


@pytest.mark.parametrize(("limit", "expected"), [(0, 8), (2, 2), (6, 6), (18, 8)])
def test_a_bounded_pool_keeps_the_newest(limit: int, expected: int) -> None:
    pool, teachers = Pool(limit), ensemble()
    for index in range(4):
        pool.add(torch.full((2, 1, 28, 28), float(index)), torch.full((2,), index), teachers, CPU)
    assert len(pool) == len(pool.images) == len(pool.labels) == pool.logits.shape[1] == expected
    assert pool.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3][-expected:]
    assert torch.equal(pool.images[:, 0, 0, 0].long(), pool.labels)


@pytest.mark.parametrize("best", range(5))
def test_the_best_batch_is_kept_whenever_it_came(best: int) -> None:
    seen: list[Tensor] = []

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        seen.append(images.detach().clone())
        return images.mean() + (0.0 if len(seen) - 1 == best else 10.0)

    images, labels, lowest = synthesise(loss, SETTINGS, SPEC, generator(), CPU)
    assert len(seen) == 5 and labels.shape == (4,)
    assert torch.equal(images, seen[best]) and float(lowest) == pytest.approx(float(seen[best].mean()))
    assert not any(torch.equal(images, other) for index, other in enumerate(seen) if index != best)
    assert not images.requires_grad


def test_steps_without_a_finite_loss_are_no_best_batch() -> None:
    *_, lowest = synthesise(
        lambda images, labels: images.mean() * torch.nan, SETTINGS, SPEC, generator(), CPU
    )
    assert float(lowest) == math.inf


def test_generator_and_z_are_both_trained() -> None:
    # z alone decides how images of a batch differ from each other, the last layer's bias their brightness.
    seen: list[Tensor] = []

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        seen.append(images.detach())
        return images.mean()

    settings = DenseConfig(steps=30, batch_size=4, latent=3, generator_width=2, generator_lr=0.05)
    synthesise(loss, settings, SPEC, generator(), CPU)
    assert float(seen[-1].mean()) < float(seen[0].mean()) - 0.5


def test_synthesis_leaves_the_student_alone() -> None:
    student = smooth_net().eval()
    before = state_of(student)
    images, _, _ = synthesise(
        lambda images, labels: -student(images).square().mean(), SETTINGS, SPEC, generator(), CPU
    )
    assert images.isfinite().all() and all_equal(before, state_of(student))
    assert all(parameter.grad is None for parameter in student.parameters())


def test_a_clipped_gradient_shortens_nothing_that_is_short() -> None:
    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return images.square().mean()

    free, _, _ = synthesise(loss, SETTINGS, SPEC, generator(), CPU)
    loose, _, _ = synthesise(loss, SETTINGS, SPEC, generator(), CPU, clip=1e6)
    assert torch.equal(free, loose)
    # Adam does not see the scale of a gradient, until it is as small as its epsilon.
    tight, _, _ = synthesise(loss, SETTINGS, SPEC, generator(), CPU, clip=1e-12)
    assert not torch.allclose(free, tight, atol=1e-4)


def test_divergence_is_kl_with_gradients_to_both_sides() -> None:
    teacher, student = noise(5, 3).requires_grad_(True), noise(5, 3, seed=1).requires_grad_(True)
    for temperature in (1.0, 3.0):
        value = divergence(teacher, student, temperature)
        torch.testing.assert_close(value, plain_kl(teacher, student, temperature))
        torch.testing.assert_close(value.mean(), kl_divergence(teacher, student, temperature))
    for gradient in torch.autograd.grad(value.sum(), (teacher, student)):
        assert gradient.any()


def test_an_ensembles_batch_norm_term_is_the_mean_of_its_members_own() -> None:
    teachers = ensemble()
    images = noise(6, 1, 28, 28).requires_grad_(True)
    scores, term = teacher_with_statistics(teachers, 0.7, CPU)(images)
    own = [plain_statistics_loss(member, images)[1] for member in teachers.members]
    assert min(own) > 0.01 and own[0] != own[1]
    torch.testing.assert_close(term, 0.7 * (own[0] + own[1]) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores, sum(m(images) for m in teachers.members) / 2, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(term, images)
    assert gradient.any()
    same, nothing = teacher_with_statistics(teachers, 0.0, CPU)(images)
    torch.testing.assert_close(same, scores, rtol=1e-4, atol=1e-5)
    assert float(nothing) == 0.0


@pytest.mark.parametrize("clip", [math.inf, 1e-3])
def test_one_distillation_step_by_hand(clip: float) -> None:
    images, scores = noise(6, 1, 28, 28), noise(6, 3, seed=1)
    student: nn.Module = smooth_net().train()
    plain = copy.deepcopy(student)
    sgd = torch.optim.SGD(student.parameters(), 0.1, weight_decay=0.01)
    settings = DenseConfig(batch_size=6, temperature=3.0)
    last = distil(
        student.eval(), sgd, 6, lambda rows: (images[rows], scores[rows]), settings, generator(), CPU, clip
    )
    loss = plain_kl(scores, plain(images), 3.0).mean()
    gradients = torch.autograd.grad(loss, list(plain.parameters()))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    scale = float(min(1.0, clip / norm))
    torch.testing.assert_close(last, loss.detach())
    for weight, start, gradient in zip(student.parameters(), plain.parameters(), gradients, strict=True):
        expected = start - 0.1 * (scale * gradient + 0.01 * start)
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-6)
    assert student.training and not last.requires_grad


def test_a_pass_shows_every_image_once() -> None:
    shown: list[int] = []

    def lesson(rows: Tensor) -> tuple[Tensor, Tensor]:
        shown.extend(rows.tolist())
        return noise(len(rows), 1, 28, 28), noise(len(rows), 3)

    student = smooth_net()
    sgd = torch.optim.SGD(student.parameters(), 0.1)
    distil(student, sgd, 11, lesson, SETTINGS, generator(), CPU)
    assert sorted(shown) == list(range(11)) and shown != sorted(shown)
