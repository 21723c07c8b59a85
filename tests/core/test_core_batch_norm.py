"""The BatchNorm term of Eq. 2: the fused gradient against the plain one, differences and other precisions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import CPU, SmoothNet, noise, scramble, smooth_net, tiny_resnet, tiny_spec
from tiny import one_thread as one_thread
from torch import Tensor, nn

from fedbicross_flwr import batch_norm
from fedbicross_flwr.batch_norm import (
    StatisticsModel,
    batch_norms,
    channel_statistics,
    plain_statistics_loss,
    running,
)
from fedbicross_flwr.batch_norm_parts import Moments, pooled_moments
from fedbicross_flwr.ensemble import Ensemble
from fedbicross_flwr.inversion_loss import answer

RESNET = tiny_spec(width=4)


def objective(outcome: tuple[Tensor, Tensor]) -> Tensor:
    """A loss that needs both the logits' and the statistics' gradient."""
    logits, loss = outcome
    return F.cross_entropy(logits.to(loss.dtype), torch.arange(len(logits)) % logits.shape[1]) + 0.7 * loss


def gradient(run: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    images = images.clone().requires_grad_(True)
    logits, loss = run(images)
    (slope,) = torch.autograd.grad(objective((logits, loss)), images)
    return logits.detach(), loss.detach(), slope


@pytest.mark.parametrize(
    "make", [lambda: smooth_net(3), lambda: tiny_resnet(3, RESNET)], ids=["smooth", "resnet"]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fused_equals_plain_in_value_and_gradient(make: Any, layout: torch.memory_format) -> None:
    model = make().eval().requires_grad_(False).to(memory_format=layout)
    images = noise(6, 1, 28, 28, seed=4).to(memory_format=layout)
    fast = gradient(StatisticsModel(model), images)
    plain = gradient(lambda x: plain_statistics_loss(model, x), images)
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=5e-6)
    assert fast[1] > 0.1 and fast[2].norm() > 1e-3


def test_fused_is_near_plain_under_autocast() -> None:
    model = tiny_resnet(3, RESNET).eval().requires_grad_(False)
    images = noise(8, 1, 28, 28, seed=4)
    with torch.autocast("cpu", torch.bfloat16):
        _, fast, slope = gradient(StatisticsModel(model), images)
    _, plain, reference = gradient(lambda x: plain_statistics_loss(model, x), images)
    assert float(fast) == pytest.approx(float(plain), rel=0.03)
    assert F.cosine_similarity(slope.flatten(), reference.flatten(), 0) > 0.98
    assert float(slope.norm() / reference.norm()) == pytest.approx(1.0, rel=0.1)


def in_double(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)


def test_the_function_passes_gradcheck_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the reading of statistics is float32 by design; without that the gradient is exact.
    monkeypatch.setattr(batch_norm, "channel_statistics", in_double)
    x = noise(3, 2, 2, 3, seed=1).double().requires_grad_(True)
    layer = nn.BatchNorm2d(2, eps=1e-5).double().eval().requires_grad_(False)
    fixed = (noise(2, seed=2), 0.5 + noise(2, seed=3).abs(), noise(2), noise(2, seed=5))
    own = (*running(layer), layer.weight, layer.bias)
    for tensor, values in zip(own, fixed, strict=True):
        tensor.copy_(values)
    call: Any = batch_norm._NormaliseAndCompare.apply
    assert torch.autograd.gradcheck(lambda value: call(value, layer), (x,), atol=1e-7)


def test_gradient_of_a_whole_network_equals_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norm, "channel_statistics", in_double)
    model = StatisticsModel(smooth_net(3).double().eval().requires_grad_(False))
    images = noise(4, 1, 28, 28, seed=4).double()
    images.requires_grad_(True)
    (slope,) = torch.autograd.grad(objective(model(images)), images)
    for seed in range(3):
        direction = noise(4, 1, 28, 28, seed=90 + seed).double()
        with torch.no_grad():
            up, down = (float(objective(model(images + step * direction))) for step in (1e-5, -1e-5))
        assert float((slope * direction).sum()) == pytest.approx((up - down) / 2e-5, rel=1e-6)


def test_the_loss_by_hand() -> None:
    layer = nn.BatchNorm2d(2)
    layer.running_mean = torch.tensor([1.0, 0.0])
    layer.running_var = torch.tensor([1.0, 4.0])
    net = nn.Sequential(layer, nn.Flatten()).eval().requires_grad_(False)
    # Channel 0 holds 2 and 6: mean 4, biased variance 4. Channel 1 holds 4 and 4: mean 4, variance 0.
    x = torch.tensor([[2.0, 4.0], [6.0, 4.0]]).view(2, 2, 1, 1)
    # || (3, 4) || + || (3, -4) ||
    assert float(StatisticsModel(net)(x)[1]) == pytest.approx(10.0, rel=1e-6)
    assert float(plain_statistics_loss(net, x)[1]) == pytest.approx(10.0, rel=1e-6)


def test_matching_statistics_give_zero_and_a_finite_gradient() -> None:
    layer = nn.BatchNorm2d(1)
    x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).requires_grad_(True)
    logits, loss = StatisticsModel(nn.Sequential(layer).eval())(x)
    (logits.sum() + loss).backward()
    assert loss.item() == 0.0 and x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_every_member_of_an_ensemble_counts(reduction: str) -> None:
    ensemble = Ensemble([smooth_net(seed) for seed in (1, 2, 3)], "logits")
    members = nn.ModuleList(StatisticsModel(model) for model in ensemble.members)
    images = noise(5, 1, 28, 28)
    each = [float(plain_statistics_loss(model, images)[1]) for model in ensemble.members]
    assert min(each) > 0.1
    scores, total = answer(members, ensemble, images, reduction, CPU)
    assert float(total) == pytest.approx(sum(each) / (3 if reduction == "mean" else 1), rel=1e-4)
    torch.testing.assert_close(scores, sum(model(images) for model in ensemble.members) / 3)
    # A member's own statistics are compared: moving those of one moves the total.
    mean, _ = running(batch_norms(ensemble.members[1])[0])
    mean += 5.0
    assert float(answer(members, ensemble, images, reduction, CPU)[1]) > float(total) + 1.0


def test_the_copy_shares_every_tensor_and_leaves_the_model_as_it_was() -> None:
    model = scramble(SmoothNet().eval())
    names = [type(module).__name__ for module in model.modules()]
    before = model(noise(2, 1, 28, 28))
    copy = StatisticsModel(model)
    assert [type(module).__name__ for module in model.modules()] == names
    mine = {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    theirs = {tensor.data_ptr() for tensor in [*copy.parameters(), *copy.buffers()]}
    assert theirs == mine
    images = noise(2, 1, 28, 28)
    torch.testing.assert_close(copy(images)[0], before)
    with torch.no_grad():
        model.get_parameter("fc.bias").add_(1.0)
    torch.testing.assert_close(copy(images)[0], before + 1.0)


def test_statistics_do_not_gather_over_calls() -> None:
    model = StatisticsModel(smooth_net().eval().requires_grad_(False))
    images = noise(3, 1, 28, 28)
    assert float(model(images)[1]) == float(model(images)[1]) and not model.losses


def test_statistics_of_a_pass_that_failed_do_not_count() -> None:
    model = StatisticsModel(smooth_net().eval().requires_grad_(False))
    images = noise(3, 1, 28, 28)
    expected = float(model(images)[1])

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    handle = model.get_submodule("model.fc").register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        model(images)
    handle.remove()
    assert float(model(images)[1]) == expected


def test_eval_mode_statistics_are_not_moved() -> None:
    model = smooth_net().eval()
    kept = [buffer.clone() for buffer in model.buffers()]
    StatisticsModel(model).train()(noise(3, 1, 28, 28))
    assert all(torch.equal(a, b) for a, b in zip(kept, model.buffers(), strict=True))


def test_moments_of_unequal_parts_are_those_of_the_whole() -> None:
    x = 2.0 * noise(7, 3, 5, 5) + 4.0
    parts = [Moments(*channel_statistics(part), part[:, 0].numel()) for part in x.split([4, 1, 2])]
    pooled = pooled_moments(parts)
    for found, expected in zip(pooled[:2], channel_statistics(x), strict=True):
        torch.testing.assert_close(found, expected)
    assert pooled.pixels == 7 * 25
