"""Stage 2: the exact outer gradient, its invariances and the running statistics (Eqs. 4-8)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CPU, DOUBLE, SmoothNet, generator, noise, smooth_net, tiny_resnet
from tiny import one_thread as one_thread
from torch import Tensor, nn

from fedbicross_flwr import cross_cluster
from fedbicross_flwr.batch_norm import SourceStatistics, batch_norms, running
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config_fedbicross import CrossClusterConfig
from fedbicross_flwr.cross_cluster import (
    Batch,
    Source,
    Target,
    draw_rows,
    flat,
    split_indices,
)
from fedbicross_flwr.cross_replay import optimise
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.recomputation import recomputed
from fedbicross_flwr.source_gradients import DirectionalDerivatives, GradientRows

T, CLASSES, BATCH = 4, 3, 10


def sources(count: int, dtype: torch.dtype = torch.float64) -> list[Source]:
    """Sources which differ in brightness, contrast and what their teachers say."""
    labels = torch.arange(BATCH) % CLASSES
    made = []
    for j in range(count):
        teacher, adapted = (
            {t: 3.0 * noise(BATCH, CLASSES, seed=100 * j + t + offset).to(dtype) for t in range(1, T + 1)}
            for offset in (0, 50)
        )
        images = {
            t: (0.5 + j) * noise(BATCH, 1, 28, 28, seed=1000 * (j + 1) + t) + 0.4 * j for t in range(1, T + 1)
        }
        made.append(Source(images, teacher, adapted, *split_indices(labels, 0.7)))
    return made


def target(start: list[float], cluster: int = 0, double: bool = True, **config: Any) -> Target:
    options: dict[str, Any] = {
        "lr": 0.3,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "weight_gradient": "none",
        "temperature": 2.0,
        "normalisation": "source",
    }
    model = smooth_net(5).double() if double else tiny_resnet(5)
    dtype, compute = (torch.float64, DOUBLE) if double else (torch.float32, CPU)
    return Target(
        cluster, model, torch.tensor(start, dtype=dtype), CrossClusterConfig(**options | config), compute
    )


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) from the definition."""
    p, q = torch.softmax(teacher, 1), torch.softmax(student, 1)
    return (p * (p / q).log()).sum(1).mean()


def validation_loss(
    model: nn.Module, own: Source, t: int, tau: float = 2.0, beside: Sequence[Source] = ()
) -> float:
    """Eq. 5 on the validation images, by the statistics of these and of those `beside`, written out."""
    share = 1 - t / T
    rows = own.validation
    images = torch.cat([one.iterates[t][one.validation] for one in (own, *beside)])
    with torch.no_grad():
        student = model.train()(images.double())[: len(rows)] / tau
        adapted, plain = own.adapted[t][rows] / tau, own.teacher[t][rows] / tau
        return float(tau**2 * (share * kl(adapted, student) + (1 - share) * kl(plain, student)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"weight_decay": 0.05},
        {"momentum": 0.8, "weight_decay": 0.02},
        {"momentum": 0.8, "weight_decay": 0.02, "normalisation": "mixture"},
    ],
    ids=["sgd", "momentum", "decay", "both", "mixture"],
)
def test_outer_gradient_equals_finite_differences_through_the_real_step(options: dict[str, Any]) -> None:
    made, t, rate, step = sources(3), 2, 1e-2, 1e-3
    subject = target([0.5, 0.3, 0.2], cluster=1, weight_lr=rate, **options)
    beside = [made[0], made[2]] if subject.config.normalisation == "mixture" else []
    for warm_up in (1, 3):  # so that the momentum buffers hold something
        subject.inner_step(made, warm_up, T)
    expected = []
    for j in range(3):
        losses = []
        for sign in (1, -1):
            probe = copy.deepcopy(subject)
            probe.weights[j] += sign * step
            probe.inner_step(made, t, T)
            losses.append(validation_loss(probe.model, made[1], t, beside=beside))
        expected.append((losses[0] - losses[1]) / (2 * step))
    # Inside the simplex the projection only takes the mean away, so the step shows the gradient.
    before = subject.weights.clone()
    subject.step(made, t, T, subject.config.lr, generator())
    moved = ((before - subject.weights) / rate).numpy()
    assert np.ptp(expected) > 1e-3, "the sources must differ for this test to see anything"
    np.testing.assert_allclose(moved, np.subtract(expected, np.mean(expected)), rtol=1e-6)


def test_outer_gradient_itself_equals_finite_differences_at_another_rate() -> None:
    # `step` sets eta_G; the gradient must use that one and not the configured one.
    made, t, step = sources(2), 1, 1e-3
    subject = target([0.6, 0.4], weight_lr=1e-2)
    expected = []
    for j in range(2):
        losses = []
        for sign in (1, -1):
            probe = copy.deepcopy(subject)
            probe.weights[j] += sign * step
            probe.optimiser.param_groups[0]["lr"] = 0.05
            probe.inner_step(made, t, T)
            losses.append(validation_loss(probe.model, made[0], t))
        expected.append((losses[0] - losses[1]) / (2 * step))
    subject.step(made, t, T, 0.05, generator())
    half = (expected[0] - expected[1]) / 2
    np.testing.assert_allclose((0.6 - subject.weights[0].item()) / 1e-2, half, rtol=1e-6)


@pytest.mark.parametrize("double", [True, False], ids=["float64", "resnet-float32"])
@pytest.mark.parametrize(
    ("normalisation", "order"), [("source", [2, 0, 1]), ("mixture", [2, 0, 1]), ("mixture", [2, 0, 3, 1])]
)
def test_the_order_of_sources_changes_nothing(double: bool, normalisation: str, order: list[int]) -> None:
    made = sources(len(order), torch.float64 if double else torch.float32)
    weights = [0.4, 0.3, 0.2, 0.1][: len(order)]
    options: dict[str, Any] = {"momentum": 0.9, "weight_lr": 0.1, "lr": 0.05, "normalisation": normalisation}
    first = target(weights, cluster=0, double=double, **options)
    second = target([weights[j] for j in order], cluster=order.index(0), double=double, **options)
    for t in (1, 2):
        first.step(made, t, T, 0.05, generator())
        second.step([made[j] for j in order], t, T, 0.05, generator())
    tolerance: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11} if double else {"rtol": 1e-2, "atol": 3e-4}
    for one, other in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        torch.testing.assert_close(other, one, **tolerance)
    torch.testing.assert_close(second.weights, first.weights[order], **tolerance)
    assert not torch.allclose(first.weights, torch.tensor(weights, dtype=first.weights.dtype), atol=1e-6)


def test_fixed_weights_of_zero_cost_nothing_and_equal_a_dropped_source() -> None:
    made = sources(3)
    whole = target([0.6, 0.0, 0.4], weights="similarity")
    without = target([0.6, 0.4], weights="similarity")
    calls = [0]
    whole.model.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    for t in (1, 2):
        whole.step(made, t, T, 0.3, generator())
        without.step([made[0], made[2]], t, T, 0.3, generator())
    assert calls == [4], "two sources, two steps, no validation"
    for one, other in zip(
        whole.model.state_dict().values(), without.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert whole.weights.tolist() == [0.6, 0.0, 0.4]


def test_learned_weights_of_zero_still_get_a_gradient() -> None:
    gradients = target([1.0, 0.0]).inner_step(sources(2), 1, T)
    assert gradients.lengths()[1] > 1e-3


def test_one_cluster_is_plain_distillation_by_sgd() -> None:
    made = sources(1)
    recipe: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.05}
    subject = target([1.0], weight_lr=0.5, **recipe)
    reference = copy.deepcopy(subject.model)
    optimiser = torch.optim.SGD(reference.parameters(), 0.3, **recipe)
    calls = [0]
    subject.model.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    rows = made[0].train
    for t in (2, 3):
        subject.step(made, t, T, 0.3, generator())
        share = 1 - t / T
        student = reference(made[0].iterates[t][rows].double()) / 2
        adapted, plain = made[0].adapted[t][rows] / 2, made[0].teacher[t][rows] / 2
        optimiser.zero_grad()
        (4 * (share * kl(adapted, student) + (1 - share) * kl(plain, student))).backward()
        optimiser.step()
    assert calls == [2] and subject.weights.tolist() == [1.0]
    for one, other in zip(subject.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_last_iterate_does_not_ask_the_noise_adapted_teacher() -> None:
    made = sources(1)[0]
    broken = Source(
        made.iterates,
        made.teacher,
        {T: torch.full_like(made.adapted[T], torch.nan)},
        made.train,
        made.validation,
    )
    subject = target([1.0])
    subject.step([broken], T, T, 0.1, generator())
    assert all(parameter.isfinite().all() for parameter in subject.model.parameters())


def test_running_statistics_move_to_the_weighted_mean_of_the_sources() -> None:
    made, weights = sources(3), [0.5, 0.3, 0.2]
    subject = target(weights, lr=0.1)
    before = [tuple(buffer.clone() for buffer in running(layer)) for layer in batch_norms(subject.model)]
    statistics: list[list[tuple[Tensor, Tensor]]] = []
    for source in made:
        # Each source through a copy of the model before the step, in training mode.
        probe = copy.deepcopy(subject.model)
        seen: list[Tensor] = []
        for layer in batch_norms(probe):
            layer.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        probe.train()(source.iterates[2][source.train].double())
        statistics.append([(x.mean((0, 2, 3)), x.var((0, 2, 3), correction=1)) for x in seen])
    subject.inner_step(made, 2, T)
    for index, layer in enumerate(batch_norms(subject.model)):
        for part in (0, 1):
            mixture = sum(w * s[index][part] for w, s in zip(weights, statistics, strict=True))
            torch.testing.assert_close(running(layer)[part], 0.9 * before[index][part] + 0.1 * mixture)
        assert layer.momentum == 0.1 and layer.training


def test_a_mixture_is_normalised_together_and_moves_the_running_statistics_so() -> None:
    made, weights = sources(3), [0.5, 0.3, 0.2]
    subject = target(weights, normalisation="mixture")
    probe = copy.deepcopy(subject.model)
    pairs = [(one, one.train) for one in made]
    logits = probe.train()(torch.cat([one.iterates[2][rows] for one, rows in pairs]).double())
    share, loss = 1 - 2 / T, torch.zeros((), dtype=torch.float64)
    parts = logits.split([len(rows) for _, rows in pairs])
    for weight, part, (one, rows) in zip(weights, parts, pairs, strict=True):
        adapted, plain = kl(one.adapted[2][rows] / 2, part / 2), kl(one.teacher[2][rows] / 2, part / 2)
        loss = loss + weight * 4 * (share * adapted + (1 - share) * plain)
    gradient = flat(torch.autograd.grad(loss, list(probe.parameters())))
    before = flat([parameter.detach().clone() for parameter in subject.parameters])
    subject.inner_step(made, 2, T)
    after = flat([parameter.detach() for parameter in subject.parameters])
    torch.testing.assert_close(after, before - 0.3 * gradient, rtol=1e-9, atol=1e-12)
    for mine, other in zip(batch_norms(subject.model), batch_norms(probe), strict=True):
        for buffer, expected in zip(running(mine), running(other), strict=True):
            torch.testing.assert_close(buffer, expected)


@pytest.mark.parametrize("scale", ["none", "l2", "cosine"])
@pytest.mark.parametrize("double", [True, False], ids=["float64", "resnet-float32"])
def test_forward_mode_gives_what_a_backward_pass_for_each_source_gives(
    double: bool, scale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sources(3, torch.float64 if double else torch.float32)
    found = []
    for few in (3, 2):
        monkeypatch.setattr(cross_cluster, "FEW_SOURCES", few)
        subject = target(
            [0.5, 0.3, 0.2],
            double=double,
            normalisation="mixture",
            weight_gradient=scale,
            weight_lr=1.0 if scale == "none" else 0.01,
            momentum=0.9,
        )
        kinds = {type(subject.inner_step(made, t, T)) for t in (1, 3)}
        assert kinds == {GradientRows if few == 3 else DirectionalDerivatives}
        for t in (1, 3):
            subject.step(made, t, T, 0.05, generator())
        found.append([subject.weights, *subject.model.state_dict().values()])
    assert (found[0][0] - torch.tensor([0.5, 0.3, 0.2])).abs().max() > 1e-3, "the weights must have moved"
    tolerance: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11} if double else {"rtol": 1e-3, "atol": 1e-5}
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def test_forward_mode_beside_a_bfloat16_step_is_within_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    # The step is bfloat16, the products of Eq. 8 are not: the weights differ by less than a tenth of their
    # move.
    made, start = sources(3, torch.float32), torch.tensor([0.5, 0.3, 0.2])
    moved = []
    for few in (3, 2):
        monkeypatch.setattr(cross_cluster, "FEW_SOURCES", few)
        subject = target(
            start.tolist(), double=False, normalisation="mixture", weight_gradient="l2", weight_lr=0.01
        )
        subject.compute = Compute(torch.device("cpu"), torch.bfloat16)
        subject.step(made, 2, T, 0.05, generator())
        moved.append(subject.weights - start)
    assert moved[0].norm() > 1e-3
    assert (moved[0] - moved[1]).norm() < 0.1 * moved[0].norm()


def test_a_source_of_fixed_weight_zero_has_no_part_in_a_mixture() -> None:
    made = sources(3)
    whole = target([0.6, 0.0, 0.4], weights="similarity", normalisation="mixture")
    without = target([0.6, 0.4], weights="similarity", normalisation="mixture")
    whole.inner_step(made, 2, T)
    without.inner_step([made[0], made[2]], 2, T)
    for one, other in zip(
        whole.model.state_dict().values(), without.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("count", "normalisation"), [(2, "source"), (2, "mixture"), (4, "mixture")])
def test_validation_passes_leave_running_statistics_alone(count: int, normalisation: str) -> None:
    made = sources(count)
    subject = target([1 / count] * count, normalisation=normalisation)
    gradients = subject.inner_step(made, 1, T)
    buffers = [running(layer) for layer in batch_norms(subject.model)]
    values = [[buffer.clone() for buffer in pair] for pair in buffers]
    before = subject.weights.clone()
    subject.outer_step(made, gradients, 1, T, 0.3)
    assert not torch.equal(before, subject.weights)
    for layer, pair, kept in zip(batch_norms(subject.model), buffers, values, strict=True):
        for now, tensor, value in zip(running(layer), pair, kept, strict=True):
            assert now is tensor and torch.equal(now, value)


def test_statistics_are_given_back_after_an_error() -> None:
    model = SmoothNet().train()
    layers = batch_norms(model)
    layers[1].momentum = None
    kept = [buffer.clone() for layer in layers for buffer in running(layer)]
    with pytest.raises(ZeroDivisionError), SourceStatistics(layers).record(1.0):
        model(noise(4, 1, 28, 28))
        raise ZeroDivisionError
    assert [layer.momentum for layer in layers] == [0.1, None]
    assert all(
        torch.equal(a, b) for a, b in zip(kept, (b for la in layers for b in running(la)), strict=True)
    )


def test_optimise_records_the_weights_and_follows_the_schedule() -> None:
    made = sources(2)
    targets = [target([0.5, 0.5], cluster=k, schedule="step", weight_gradient="l2") for k in (0, 1)]
    rates: list[float] = []
    steps: list[int] = []

    def note(step: int) -> None:
        rates.append(targets[(step - 1) // 3].optimiser.param_groups[0]["lr"])
        steps.append(step)

    history = optimise(
        targets,
        made,
        [4, 3, 1],
        T,
        done=3,
        total=8,
        generators=[generator() for _ in targets],
        after_step=note,
    )
    # Steps 3, 4 and 5 of 8 are .375, .5 and .625 of the whole; one target goes after the other.
    assert steps == [1, 2, 3, 4, 5, 6] and rates == pytest.approx([0.3, 0.03, 0.03] * 2)
    assert history.shape == (3, 2, 2)
    torch.testing.assert_close(history.sum(2), torch.ones(3, 2, dtype=history.dtype))
    assert torch.equal(history[-1], torch.stack([one.weights for one in targets]))
    assert not torch.equal(history[0], history[1]), "the entries must not be one live tensor"


@pytest.mark.parametrize(("count", "normalisation"), [(2, "source"), (2, "mixture"), (4, "mixture")])
def test_targets_side_by_side_give_the_same_bits_as_one_after_the_other(
    count: int, normalisation: str
) -> None:
    made = sources(count)
    results = []
    for workers in (1, 2):
        targets = [target([1 / count] * count, cluster=k, normalisation=normalisation) for k in (0, 1)]
        history = optimise(
            targets,
            made,
            [4, 3, 1],
            T,
            done=0,
            total=3,
            generators=[generator() for _ in targets],
            workers=workers,
        )
        results.append([history, *(p.detach() for one in targets for p in one.parameters)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_flat_gradients_go_back_to_their_parameters() -> None:
    subject = target([1.0])
    vector = torch.arange(sum(p.numel() for p in subject.parameters), dtype=torch.float64)
    subject.set_gradient(vector)
    assert torch.equal(flat([p.grad for p in subject.parameters if p.grad is not None]), vector)


@pytest.mark.parametrize("size", [0, 3, 99])
def test_a_step_reads_as_many_images_of_each_source_as_it_is_told(size: int) -> None:
    rows = torch.tensor([1, 4, 5, 7, 8])
    drawn = [draw_rows(rows, size, generator(seed)) for seed in range(20)]
    wanted = size if size == 3 else len(rows)
    assert all(len(one.unique()) == wanted and set(one.tolist()) <= set(rows.tolist()) for one in drawn)
    if size == 3:
        assert set(torch.cat(drawn).tolist()) == set(rows.tolist()), "every image has its turn"


def test_a_step_on_few_images_is_the_inner_step_on_those_images() -> None:
    made = sources(2)
    subject, twin = target([0.4, 0.6], weights="uniform", batch_size=3), target([0.4, 0.6], weights="uniform")
    subject.step(made, 2, T, subject.config.lr, generator(5))
    source = generator(5)
    rows = [draw_rows(one.train, 3, source) for one in made]
    twin.inner_step(made, 2, T, rows)
    for mine, other in zip(subject.parameters, twin.parameters, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def kept_by_autograd(subject: Target, made: Sequence[Source]) -> int:
    """The bytes of activations that a pass of the student leaves for its backward pass."""
    sizes = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes if tensor.dim() == 4 else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        subject.losses([Batch(one, one.train) for one in made], 2, T)
    return sum(sizes)


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (3, {}),
        (1, {}),
        (3, {"normalisation": "mixture"}),
        (4, {"normalisation": "mixture"}),
        (4, {"normalisation": "mixture", "weight_gradient": "cosine"}),
        (3, {"normalisation": "mixture", "weights": "uniform"}),
    ],
    ids=["apart", "alone", "a pass each", "forward mode", "with lengths", "fixed weights"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_recomputed_activations_are_the_same_steps(
    count: int, options: dict[str, Any], dtype: torch.dtype
) -> None:
    made, states, kept = sources(count, torch.float32), [], []
    for activations in ("kept", "recomputed"):
        subject = target(
            [1 / count] * count, double=False, lr=0.01, momentum=0.9, activations=activations, **options
        )
        subject.compute = Compute(torch.device("cpu"), dtype)
        kept.append(kept_by_autograd(copy.deepcopy(subject), made))
        for t in (3, 1):
            subject.step(made, t, T, 0.01, generator(t))
        states.append(subject.state())
    first, second = states
    assert first.keys() == second.keys() and len(first) > 100
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    # What is left is what goes into the blocks.
    assert kept[1] < 0.2 * kept[0]


def test_a_network_without_blocks_is_named() -> None:
    with pytest.raises(FedBiCrossError, match=r"SmoothNet has no property blocks, which .* set 'kept'"):
        target([1.0], activations="recomputed")


def test_blocks_are_left_as_they_were() -> None:
    subject = target([0.5, 0.5], double=False, activations="recomputed")
    assert len(subject.recomputed) == 9
    with pytest.raises(ZeroDivisionError), recomputed(subject.recomputed):
        assert all("forward" in vars(block) for block in subject.recomputed)
        1 / 0  # noqa: B018
    assert not any("forward" in vars(block) for block in subject.recomputed)
