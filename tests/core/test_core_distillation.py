"""Eqs. 5 and 9 with temperatures against SciPy, and lambda(t)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, rel_entr, softmax
from tiny import noise
from tiny import one_thread as one_thread
from torch import Tensor

from fedbicross_flwr.distillation import (
    class_offset,
    kl_divergence,
    noise_share,
    personal_loss,
    trajectory_loss,
)


def divergence(teacher: Tensor, student: Tensor, tau: float) -> float:
    p = softmax(teacher.detach().double().numpy() / tau, 1)
    q = softmax(student.detach().double().numpy() / tau, 1)
    return float(rel_entr(p, q).sum(1).mean())


def scores(seed: int) -> Tensor:
    return 3 * noise(5, 4, seed=seed)


@pytest.mark.parametrize("tau", [1.0, 4.0, 20.0])
def test_divergence_has_temperature_squared(tau: float) -> None:
    expected = tau**2 * divergence(scores(1), scores(2), tau)
    assert float(kl_divergence(scores(1), scores(2), tau)) == pytest.approx(
        expected, rel=1e-3 if tau > 4 else 1e-5
    )


def test_divergence_by_hand() -> None:
    teacher, student = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert float(kl_divergence(teacher, student)) == pytest.approx(expected, rel=1e-6)
    # At temperature 1/2 the distributions are squared: 0.9 and 0.1 against a half each.
    expected = 0.25 * (0.9 * np.log(1.8) + 0.1 * np.log(0.2))
    assert float(kl_divergence(teacher, student, 0.5)) == pytest.approx(expected, rel=1e-6)
    assert float(kl_divergence(teacher, teacher, 7.0)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("tau", [1.0, 6.0])
def test_students_gradient_is_tau_times_the_gap_of_distributions(tau: float) -> None:
    student = scores(2).double().requires_grad_(True)
    kl_divergence(scores(1).double(), student, tau).backward()
    gap = softmax(scores(2).double().numpy() / tau, 1) - softmax(scores(1).double().numpy() / tau, 1)
    assert student.grad is not None
    np.testing.assert_allclose(student.grad.numpy(), tau * gap / 5, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_trajectory_loss_mixes_both_teachers(share: float, tau: float) -> None:
    student, teacher, adapted = scores(1), scores(2), scores(3)
    expected = tau**2 * (
        share * divergence(adapted, student, tau) + (1 - share) * divergence(teacher, student, tau)
    )
    assert float(trajectory_loss(student, teacher, adapted, share, tau)) == pytest.approx(expected, rel=1e-4)


def test_noise_share_falls_from_nearly_one_to_zero() -> None:
    assert [noise_share(t, 4) for t in (1, 2, 3, 4)] == [0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize(
    ("gamma", "delta", "tau"), [(0.5, 0.3, 1.0), (0.5, 0.3, 3.0), (0.0, 0.3, 1.0), (0.7, 0.0, 2.0)]
)
def test_personal_loss_has_three_terms(gamma: float, delta: float, tau: float) -> None:
    student, cluster, own = scores(1), scores(2), scores(3)
    labels: NDArray[np.int64] = np.array([0, 1, 2, 3, 1])
    cross_entropy = -log_softmax(student.double().numpy(), 1)[np.arange(5), labels].mean()
    expected = cross_entropy + tau**2 * (
        gamma * divergence(cluster, student, tau) + delta * divergence(own, student, tau)
    )
    found = personal_loss(student, torch.from_numpy(labels), cluster, own, gamma, delta, tau)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_an_offset_moves_the_cross_entropy_and_no_teacher() -> None:
    student, cluster, own = scores(1), scores(2), scores(3)
    labels, offset = torch.tensor([0, 1, 2, 3, 1]), torch.tensor([0.5, -2.0, 0.0, 1.0])
    shifted = log_softmax((student + offset).double().numpy(), 1)[np.arange(5), labels.numpy()].mean()
    expected = -shifted + 0.5 * divergence(cluster, student, 1.0) + 0.3 * divergence(own, student, 1.0)
    found = personal_loss(student, labels, cluster, own, 0.5, 0.3, offset=offset)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_class_offset_is_the_log_frequency_with_one_image_more_of_each_class() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2])
    expected = np.log(np.array([4, 1, 3, 1]) / 9)
    np.testing.assert_allclose(class_offset(labels, 4, 1.0).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(class_offset(labels, 4, 0.25).numpy(), 0.25 * expected, rtol=1e-6)
    assert torch.equal(class_offset(labels, 4, 0.0), torch.zeros(4))


def test_with_the_whole_offset_no_class_is_pushed_down_for_being_absent() -> None:
    """A network that cannot tell images apart learns the labels' frequency; adjusted, it need not."""
    labels = torch.tensor([0] * 60 + [1] * 30)
    logits, idle = torch.zeros(3, requires_grad=True), torch.zeros(90, 3)

    def gradient(strength: float) -> Tensor:
        offset = class_offset(labels, 3, strength)
        loss = personal_loss(logits.expand(90, 3), labels, idle, idle, 0.0, 0.0, offset=offset)
        return torch.autograd.grad(loss, logits)[0]

    assert gradient(0.0)[2] == pytest.approx(1 / 3, rel=1e-5)
    assert float(gradient(1.0).abs().max()) < 0.02


def test_teachers_get_no_gradient() -> None:
    student, first, second = (scores(seed).requires_grad_(True) for seed in (1, 2, 3))
    loss = trajectory_loss(student, first, second, 0.5, 4.0)
    loss = loss + personal_loss(student, torch.zeros(5, dtype=torch.long), first, second, 0.5, 0.3)
    loss.backward()
    assert first.grad is None and second.grad is None
    assert student.grad is not None and student.grad.norm() > 0
