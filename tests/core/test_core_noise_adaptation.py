"""The noise-adapted teacher: Eq. 3 evaluated directly, its window, its modes, the originals afterwards."""

from __future__ import annotations

import pytest
import torch
from tiny import CPU, noise, smooth_net
from tiny import one_thread as one_thread
from torch import Tensor

from fedbicross_flwr.batch_norm import batch_norms, running
from fedbicross_flwr.config_fedbicross import TeacherConfig
from fedbicross_flwr.ensemble import Ensemble
from fedbicross_flwr.noise_adaptation import Statistics, adapt_statistics, steps_read, teacher_scores

T = 7


def ensemble(aggregation: str = "logits") -> Ensemble:
    return Ensemble([smooth_net(1), smooth_net(2)], aggregation)


def iterates() -> dict[int, Tensor]:
    """A trajectory that drifts, so that every t has statistics of its own."""
    return {t: (2.0 - 0.2 * t) * noise(6, 1, 28, 28, seed=t) + 0.1 * t for t in range(1, T + 1)}


def mean_of(x: Tensor) -> Tensor:
    return x.mean((0, 2, 3))


def variance_of(x: Tensor) -> Tensor:
    """The unbiased variance, which BatchNorm keeps."""
    return x.var((0, 2, 3), correction=1)


def first_layer_inputs(model: torch.nn.Module, images: Tensor) -> Tensor:
    """The input of the first BatchNorm layer, which depends on no statistics."""
    with torch.no_grad():
        result: Tensor = model.get_submodule("body.0")(images)
    return result


@pytest.mark.parametrize(("beta", "window"), [(0.9, 0), (0.6, 0), (0.9, 3), (0.7, 100), (0.0, 0)])
def test_first_layer_equals_equation_3_and_its_closed_form(beta: float, window: int) -> None:
    teacher, path = ensemble(), iterates()
    config = TeacherConfig(noise_momentum=beta, noise_window=window)
    statistics = adapt_statistics(teacher, path, config, CPU)
    last = min(window or T, T)
    for index, model in enumerate(teacher.members):
        layer = batch_norms(model)[0]
        inputs = {t: first_layer_inputs(model, path[t]) for t in range(1, last + 1)}
        for name, original, read in zip(
            ("running_mean", "running_var"), running(layer), (mean_of, variance_of), strict=True
        ):
            recursion = original.double()
            for t in range(last, 0, -1):
                recursion = beta * recursion + (1 - beta) * read(inputs[t].double())
            closed = beta**last * original.double() + sum(
                (1 - beta) * beta ** (t - 1) * read(inputs[t].double()) for t in range(1, last + 1)
            )
            torch.testing.assert_close(recursion, closed)
            # Two BatchNorm layers a member: the first of member `index` is 2 * index.
            found = statistics.buffers[2 * index][name]
            torch.testing.assert_close(found.double(), closed, rtol=1e-5, atol=1e-6)
            assert not torch.allclose(found, original, atol=1e-2)


def test_the_window_leaves_out_a_share_of_beta_to_its_power() -> None:
    teacher, path = ensemble(), iterates()
    whole = adapt_statistics(teacher, path, TeacherConfig(noise_momentum=0.3, noise_window=0), CPU)
    part = adapt_statistics(teacher, path, TeacherConfig(noise_momentum=0.3, noise_window=5), CPU)
    gap = (whole.buffers[0]["running_mean"] - part.buffers[0]["running_mean"]).abs().max()
    assert 0 < gap < 0.3**5 * 5
    del path[6]  # not read, so it need not be kept
    again = adapt_statistics(teacher, path, TeacherConfig(noise_momentum=0.3, noise_window=5), CPU)
    assert torch.equal(again.buffers[3]["running_var"], part.buffers[3]["running_var"])


@pytest.mark.parametrize(
    ("mode", "window", "expected"),
    [
        ("reverse_ema", 3, [1, 2, 3]),
        ("reverse_ema", 0, [1, 2, 3, 4, 5]),
        ("reverse_ema", 64, [1, 2, 3, 4, 5]),
        ("progressive", 3, [1, 2, 3, 4, 5]),
        ("batch", 3, []),
        ("none", 3, []),
    ],
)
def test_steps_read(mode: str, window: int, expected: list[int]) -> None:
    assert list(steps_read(5, TeacherConfig(noise_adaptation=mode, noise_window=window))) == expected


def test_the_adapted_teacher_reads_its_statistics() -> None:
    teacher, path = ensemble(), iterates()
    plain, adapted = teacher_scores(teacher, path, [2, 5], TeacherConfig(noise_window=0), CPU)
    assert list(plain) == list(adapted) == [2, 5]
    statistics = adapt_statistics(teacher, path, TeacherConfig(noise_window=0), CPU)
    with torch.no_grad():
        for t in (2, 5):
            torch.testing.assert_close(plain[t], teacher.scores(path[t], CPU))
            assert not torch.allclose(plain[t], adapted[t], atol=1e-2)
        # A stand-in with those statistics copied into its own buffers gives the same scores.
        copied = ensemble()
        layers = [layer for model in copied.members for layer in batch_norms(model)]
        for layer, buffers in zip(layers, statistics.buffers, strict=True):
            for buffer, name in zip(running(layer), ("running_mean", "running_var"), strict=True):
                buffer.copy_(buffers[name])
        torch.testing.assert_close(adapted[5], copied.scores(path[5], CPU))


@pytest.mark.parametrize("mode", ["reverse_ema", "batch", "progressive", "none"])
def test_originals_are_given_back(mode: str) -> None:
    teacher = ensemble("class_weighted")
    layers = [layer for model in teacher.members for layer in batch_norms(model)]
    buffers = [buffer for layer in layers for buffer in layer.buffers()]
    values = [buffer.clone() for buffer in buffers]
    plain, adapted = teacher_scores(teacher, iterates(), [T, 1], TeacherConfig(noise_adaptation=mode), CPU)
    now = [buffer for layer in layers for buffer in layer.buffers()]
    assert all(a is b for a, b in zip(buffers, now, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(values, now, strict=True))
    assert all(layer.momentum == 0.1 and not layer.training for layer in layers)
    assert sorted(plain) == sorted(adapted) == [1, T]
    assert not any(scores.requires_grad for scores in [*plain.values(), *adapted.values()])
    if mode != "none":
        assert not torch.allclose(plain[1], adapted[1], atol=1e-3)


def test_originals_are_given_back_after_an_error() -> None:
    teacher = ensemble()
    layers = [layer for model in teacher.members for layer in batch_norms(model)]
    kept = [running(layer)[0] for layer in layers]
    with pytest.raises(RuntimeError):
        Statistics(teacher, 0.9).update(teacher, noise(2, 5, 28, 28), CPU)
    assert all(running(layer)[0] is mean for layer, mean in zip(layers, kept, strict=True))
    assert all(layer.momentum == 0.1 and not layer.training for layer in layers)


def test_without_adaptation_the_teachers_are_the_same() -> None:
    plain, adapted = teacher_scores(ensemble(), iterates(), [3], TeacherConfig(noise_adaptation="none"), CPU)
    assert torch.equal(plain[3], adapted[3])


def test_batch_mode_normalises_by_the_batch() -> None:
    teacher, path = ensemble(), iterates()
    _, adapted = teacher_scores(teacher, path, [4], TeacherConfig(noise_adaptation="batch"), CPU)
    with torch.no_grad():
        expected = sum(smooth_net(seed).train()(path[4]) for seed in (1, 2)) / 2
    torch.testing.assert_close(adapted[4], expected)


def test_progressive_mode_has_seen_the_iterates_so_far() -> None:
    teacher, path = ensemble(), iterates()
    config = TeacherConfig(noise_adaptation="progressive", noise_momentum=0.5)
    _, adapted = teacher_scores(teacher, path, [3], config, CPU)
    short = {t: path[t] for t in (1, 2, 3)}
    _, alone = teacher_scores(teacher, short, [3], config, CPU)
    assert torch.equal(adapted[3], alone[3]), "later iterates must not count"
    # In turn 1, 2, 3: the recursion of Eq. 3 on the path read backwards.
    backwards = {1: path[3], 2: path[2], 3: path[1]}
    statistics = adapt_statistics(teacher, backwards, TeacherConfig(noise_momentum=0.5, noise_window=0), CPU)
    with torch.no_grad(), statistics:
        torch.testing.assert_close(adapted[3], teacher.scores(path[3], CPU))


def test_half_precision_iterates_are_read_in_float32() -> None:
    path = {t: images.half() for t, images in iterates().items()}
    plain, adapted = teacher_scores(ensemble(), path, [2], TeacherConfig(), CPU)
    assert plain[2].dtype == adapted[2].dtype == torch.float32
