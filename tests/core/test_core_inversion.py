"""Stage 1, synthesis: total variation, labels, jitter, the trajectory and what inversion achieves."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny import CPU, generator, noise, smooth_net, tiny_resnet, trained_teachers
from tiny import one_thread as one_thread
from torch import Tensor

from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config_fedbicross import InversionConfig
from fedbicross_flwr.ensemble import Ensemble
from fedbicross_flwr.inversion import (
    DIAGNOSTICS,
    Synthesis,
    balanced_labels,
    describe,
    invert,
    prior_labels,
    roll,
)
from fedbicross_flwr.inversion_loss import DESCENTS, VARIATIONS

SQUARE = torch.tensor([[1.0, 3.0], [4.0, 8.0]]).view(1, 1, 2, 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # horizontal 2 and 4, vertical 3 and 5, diagonals 8 - 1 and 4 - 3
        ("norm", 20**0.5 + 34**0.5 + 7 + 1),
        ("mean_square", 20 / 2 + 34 / 2 + 49 + 1),
    ],
)
def test_total_variation_by_hand(name: str, expected: float) -> None:
    assert float(VARIATIONS[name](SQUARE)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("name", "factor"), [("norm", 2**0.5), ("mean_square", 1.0)])
def test_total_variation_of_a_doubled_batch(name: str, factor: float) -> None:
    images = noise(3, 3, 28, 28)
    doubled = VARIATIONS[name](torch.cat([images, images]))
    assert float(doubled) == pytest.approx(factor * float(VARIATIONS[name](images)), rel=1e-5)


@pytest.mark.parametrize("name", VARIATIONS)
@pytest.mark.parametrize("flat", [True, False])
def test_total_variation_has_a_finite_gradient(name: str, flat: bool) -> None:
    images = (torch.full((2, 1, 28, 28), 0.3) if flat else noise(2, 1, 28, 28)).requires_grad_(True)
    VARIATIONS[name](images).backward()
    assert images.grad is not None and images.grad.isfinite().all()
    assert bool(images.grad.any()) is not flat


@pytest.mark.parametrize("name", VARIATIONS)
def test_total_variations_gradient(name: str) -> None:
    images = noise(2, 1, 4, 5).double().requires_grad_(True)
    assert torch.autograd.gradcheck(VARIATIONS[name], (images,))


def test_balanced_labels() -> None:
    assert balanced_labels(8, torch.ones(3)).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_prior_labels_by_largest_remainder() -> None:
    # Quotas 3.5, 1.4, 2.1: floors 3, 1, 2 and the one left over goes to the first.
    labels = prior_labels(7, torch.tensor([0.5, 0.2, 0.3]))
    assert Counter(labels.tolist()) == {0: 4, 1: 1, 2: 2} and labels.dtype == torch.int64
    assert Counter(prior_labels(96, torch.tensor([0.0, 3.0, 1.0])).tolist()) == {1: 72, 2: 24}


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.integers(4, 120), st.lists(st.floats(0.01, 1.0), min_size=2, max_size=8))
def test_prior_labels_keep_proportions_in_every_part(size: int, prior: list[float]) -> None:
    labels = prior_labels(size, torch.tensor(prior)).numpy()
    shares = np.asarray(prior) / np.sum(prior)
    assert len(labels) == size
    assert (np.abs(np.bincount(labels, minlength=len(prior)) - shares * size) < 1 + 1e-4).all()
    half = np.bincount(labels[: size // 2], minlength=len(prior))
    assert (np.abs(half - shares * (size // 2)) <= 2.5).all(), "every class is spread over the batch"


def test_roll_moves_the_whole_batch_by_a_few_pixels() -> None:
    images, seen = noise(2, 1, 28, 28), set()
    for seed in range(60):
        moved = roll(images, 1, generator(seed))
        found = [
            (dy, dx)
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            if torch.equal(images.roll((dy, dx), (2, 3)), moved)
        ]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) == 9
    source = generator(1)
    assert roll(images, 0, source) is images and torch.equal(
        torch.rand(1, generator=source), torch.rand(1, generator=generator(1))
    )


def test_describe_by_hand() -> None:
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.25, 0.5, 0.25]]).log()
    expected = torch.tensor([0.5, (0.7 + 0.6 + 0.8 + 0.5) / 4, 3.0])
    torch.testing.assert_close(describe(scores, torch.tensor([0, 1, 2, 0])), expected)


def run(
    seed: int = 0, keep: tuple[int, ...] = (), count: int = 6, compute: Compute = CPU, **options: Any
) -> Synthesis:
    config = InversionConfig(**{"iterations": 5, "batch_size": count} | options)
    ensemble = Ensemble([smooth_net(1), smooth_net(2)], "logits")
    return invert(ensemble, torch.arange(count) % 3, 1, keep, config, generator(seed), compute)


def test_the_trajectory_holds_distinct_copies_of_the_kept_steps() -> None:
    calls: list[int] = []
    ensemble = Ensemble([smooth_net(1)], "logits")
    config = InversionConfig(iterations=5, batch_size=6)
    result = invert(ensemble, torch.arange(6) % 3, 1, (1, 3), config, generator(), CPU, calls.append)
    assert calls == [1, 2, 3, 4, 5]
    assert sorted(result.iterates) == [1, 3, 5] and result.iterations == 5
    assert result.images is result.iterates[5] and result.images.shape == (6, 1, 28, 28)
    assert len({images.data_ptr() for images in result.iterates.values()}) == 3
    first = result.iterates[1]
    # One step of Adam moves a pixel by its learning rate: x^(1) is the noise of the generator, moved so.
    start = torch.randn((6, 1, 28, 28), generator=generator())
    torch.testing.assert_close(
        (first - start).abs(), torch.full_like(first, InversionConfig().lr), rtol=0.05, atol=1e-3
    )
    assert (result.iterates[3] - first).abs().mean() > 0.01
    assert not any(images.requires_grad for images in result.iterates.values())


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_the_trajectory_is_kept_in_the_asked_precision(name: str) -> None:
    whole, kept = run(keep=(2,)), run(keep=(2,), trajectory_dtype=name)
    assert [str(images.dtype) for images in kept.iterates.values()] == [f"torch.{name}", "torch.float32"]
    assert kept.iterates[2].data_ptr() != kept.iterates[5].data_ptr()
    torch.testing.assert_close(kept.iterates[2].float(), whole.iterates[2], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(kept.images, whole.images)


def test_networks_see_the_same_in_what_auto_keeps() -> None:
    compute = Compute(torch.device("cpu"), torch.bfloat16)
    kept, whole = (
        run(keep=(2,), compute=compute, trajectory_dtype=name).iterates[2] for name in ("auto", "float32")
    )
    assert kept.dtype == torch.bfloat16 and not torch.equal(kept.float(), whole)
    model = tiny_resnet(1).eval()
    with torch.no_grad():
        assert torch.equal(compute.logits(model, kept.float()), compute.logits(model, whole))
    assert run(keep=(2,), trajectory_dtype="auto").iterates[2].dtype == torch.float32


def test_the_first_row_of_diagnostics_describes_the_noise() -> None:
    result = run(jitter=0)
    assert result.diagnostics.shape == (5, len(DIAGNOSTICS)) and result.diagnostics.isfinite().all()
    start = torch.randn((6, 1, 28, 28), generator=generator())
    with torch.no_grad():
        scores = sum(smooth_net(seed).eval()(start) for seed in (1, 2)) / 2
    row = dict(zip(DIAGNOSTICS, result.diagnostics[0].tolist(), strict=True))
    labels = torch.arange(6) % 3
    assert row["cross_entropy"] == pytest.approx(
        -float(scores.log_softmax(1)[range(6), labels].mean()), rel=1e-5
    )
    assert row["agreement"] == pytest.approx(float((scores.argmax(1) == labels).float().mean()))
    assert row["classes_covered"] == len(set(scores.argmax(1).tolist()))


def test_one_seed_gives_one_result_and_another_seed_another() -> None:
    first, again, other = run(3, (2,)), run(3, (2,)), run(4, (2,))
    assert torch.equal(first.images, again.images) and torch.equal(first.iterates[2], again.iterates[2])
    assert torch.equal(first.diagnostics, again.diagnostics)
    assert not torch.equal(first.images, other.images)


def test_jitter_changes_the_path_and_off_is_off() -> None:
    assert torch.equal(run(jitter=0).images, run(jitter=0).images)
    assert not torch.allclose(run(jitter=0).images, run(jitter=2).images, atol=1e-3)


def test_what_is_kept_does_not_change_the_path() -> None:
    assert torch.equal(run(keep=()).images, run(keep=(1, 2, 3, 4)).images)


def gradient_sign(**weights: float) -> Tensor:
    """The direction of the first step, by which Adam shows the gradient's sign."""
    options: dict[str, Any] = {"tv_weight": 0.0, "bn_weight": 0.0, "jitter": 0} | weights
    start = torch.randn((6, 1, 28, 28), generator=generator())
    return (start - run(iterations=1, **options).images).sign()


def test_every_term_of_the_loss_has_a_gradient() -> None:
    plain = gradient_sign()
    assert (gradient_sign(tv_weight=1e4) != plain).float().mean() > 0.2
    assert (gradient_sign(bn_weight=1e4) != plain).float().mean() > 0.2


def test_inversion_makes_a_trained_ensemble_agree() -> None:
    ensemble = Ensemble(trained_teachers(), "probabilities")
    kept = [tensor.clone() for tensor in ensemble.state_dict().values()]
    config = InversionConfig(iterations=30, batch_size=12, lr=0.1, tv_weight=0.1, bn_weight=0.05, jitter=1)
    labels = torch.arange(12) % 3
    result = invert(ensemble, labels, 1, (), config, generator(), CPU)
    column = result.diagnostics[:, DIAGNOSTICS.index("agreement")]
    assert column[0] < 0.6 and column[-3:].min() > 0.9
    assert result.diagnostics[-1, 0] < result.diagnostics[0, 0] / 2
    with torch.no_grad():
        answers = ensemble.scores(result.images, CPU).argmax(1)
    assert (answers == labels).float().mean() > 0.9
    assert all(torch.equal(a, b) for a, b in zip(kept, ensemble.state_dict().values(), strict=True))


IN_TURN: list[dict[str, Any]] = [{"teachers": "in_turn", "images_at_once": size} for size in (0, 1, 4, 6, 99)]
"""All images at once, one, parts of two sizes, and all in other words."""


@pytest.mark.parametrize("aggregation", ["logits", "class_weighted"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_teachers_in_turn_leave_the_gradient_of_all_together(aggregation: str, reduction: str) -> None:
    found = []
    for options in ({}, *IN_TURN):
        ensemble = Ensemble([smooth_net(seed) for seed in (1, 2, 3)], aggregation)
        config = InversionConfig(bn_weight=0.7, tv_weight=0.4, bn_models=reduction, **options)
        images = noise(6, 1, 28, 28).requires_grad_(True)
        seen = roll(images, 2, generator(3))
        descend = DESCENTS[config.teachers](ensemble, config, CPU)
        found.append((*descend(seen, torch.arange(6) % 3), images.grad))
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert one is not None and one.any()
            torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-6)


def test_an_inversion_in_turn_is_the_same_inversion() -> None:
    together = run(lr=0.01)
    moved = together.images - torch.randn((6, 1, 28, 28), generator=generator())
    for options in IN_TURN:
        in_turn = run(lr=0.01, **options)
        # Adam's first steps are lr long whatever the gradient: where it is nearly zero, rounding decides.
        assert (together.images - in_turn.images).abs().mean() < 1e-3 * moved.abs().mean()
        torch.testing.assert_close(together.diagnostics, in_turn.diagnostics, rtol=1e-3, atol=1e-3)


class Kept:
    """Counts the bytes that autograd keeps for backward passes, now and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> Holder:
        return Holder(self, tensor)

    def add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


class Holder:
    def __init__(self, kept: Kept, tensor: Tensor) -> None:
        self.kept, self.tensor = kept, tensor
        # The weights are there anyway, whoever keeps them; images of one channel are total variation's.
        activation = tensor.dim() == 4 and tensor.shape[0] in (2, 6) and tensor.shape[1] > 1
        self.size = tensor.nbytes if activation else 0
        kept.add(self.size)

    def __del__(self) -> None:
        self.kept.add(-self.size)


def most_kept(members: int, **options: Any) -> int:
    ensemble = Ensemble([smooth_net(seed) for seed in range(members)], "logits")
    config, kept = InversionConfig(iterations=2, batch_size=6, **options), Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda holder: holder.tensor):
        invert(ensemble, torch.arange(6) % 3, 1, (), config, generator(), CPU)
    assert kept.now == 0, "all that was kept is given back"
    return kept.most


def test_teachers_in_turn_keep_the_activations_of_one() -> None:
    one, six = (most_kept(members) for members in (1, 6))
    assert six > 2 * one, "in this test most of what is kept must be the members'"
    assert most_kept(6, teachers="in_turn") <= one
    assert most_kept(6, teachers="in_turn", images_at_once=2) < 0.5 * one
