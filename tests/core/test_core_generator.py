"""The generator's body, its outputs, its initial weights and its seeds."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import CPU, generator, noise
from tiny import one_thread as one_thread
from torch import Tensor, nn

from fedbicross_flwr.compute import Compute
from fedbicross_flwr.generator import INITS, OUTPUTS, Generator, draw_images


def make(output: str = "sigmoid", init: str = "normal", seed: int = 0, channels: int = 1) -> Generator:
    return Generator(6, channels, output, init, generator(seed), width=3)


def plain_body(state: dict[str, Tensor], z: Tensor) -> Tensor:
    """The layers one by one, with the batch's own statistics."""

    def norm(index: int, x: Tensor) -> Tensor:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        scale, offset = (state[f"body.{index}.{name}"].view(1, -1, 1, 1) for name in ("weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * scale + offset

    def convolve(index: int, x: Tensor) -> Tensor:
        return F.conv2d(x, state[f"body.{index}.weight"], state[f"body.{index}.bias"], padding=1)

    def double(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def leak(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    x = (z @ state["body.0.weight"].T + state["body.0.bias"]).view(len(z), -1, 7, 7)
    x = leak(norm(5, convolve(4, double(norm(2, x)))))
    x = leak(norm(9, convolve(8, double(x))))
    return convolve(11, x)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_forward_pass_as_published(init: str, channels: int) -> None:
    z = noise(5, 6)
    network = make("sigmoid", init, channels=channels)
    raw = plain_body({name: tensor.detach() for name, tensor in network.named_parameters()}, z)
    assert raw.shape == (5, channels, 28, 28)
    # Raw pixels 1 / (1 + e^-v) from [0, 1], normalised with mean .5 and deviation .5.
    torch.testing.assert_close(network(z), (1 / (1 + (-raw).exp()) - 0.5) / 0.5, rtol=1e-4, atol=1e-5)

    network = make("tanh_batch_norm", init, channels=channels)
    squashed = raw.tanh()
    mean, var = squashed.mean((0, 2, 3), keepdim=True), squashed.var((0, 2, 3), correction=0, keepdim=True)
    expected = (squashed - mean) / (var + 1e-5).sqrt()
    torch.testing.assert_close(network(z), expected, rtol=1e-3, atol=1e-4)


def test_the_full_size_has_the_published_channels() -> None:
    network = Generator(100, 3, "tanh_batch_norm", "uniform", generator())
    shapes = [tuple(p.shape) for name, p in network.named_parameters() if p.ndim > 1]
    assert shapes == [(128 * 7 * 7, 100), (128, 128, 3, 3), (64, 128, 3, 3), (3, 64, 3, 3)]
    affine = {name for name, _ in network.output.named_parameters()}
    assert not affine, "the BatchNorm behind the tanh has no scale and no offset"


@pytest.mark.parametrize("init", INITS)
def test_weights_come_from_the_generator_alone(init: str) -> None:
    torch.manual_seed(5)
    first = make(init=init, seed=1)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after), "PyTorch's global generator is not touched"
    again, other = make(init=init, seed=1), make(init=init, seed=2)
    for (name, weight), same, different in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(weight, same), name
        assert weight.ndim < 2 or not torch.equal(weight, different), name


def test_narrow_normal_weights() -> None:
    network = Generator(200, 3, "sigmoid", "normal", generator(), width=16)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert len(layers) == 4
    for layer in layers:
        assert layer.bias is not None and not layer.bias.any()
        count = layer.weight.numel()
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=4 / math.sqrt(2 * count))
        assert abs(float(layer.weight.detach().mean())) < 5 * 0.02 / math.sqrt(count)


def test_uniform_weights_fill_the_bounds_of_their_fan_in() -> None:
    network = Generator(200, 3, "sigmoid", "uniform", generator(), width=16)
    for layer, inputs in zip(
        [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)],
        (200, 32 * 9, 32 * 9, 16 * 9),
        strict=True,
    ):
        bound = inputs**-0.5
        assert (
            float(layer.weight.detach().abs().max()) <= bound
            and float(layer.weight.detach().abs().max()) > 0.95 * bound
        )
        assert float(layer.weight.detach().mean()) == pytest.approx(0.0, abs=0.1 * bound)
        assert layer.bias is not None and layer.bias.any() and float(layer.bias.detach().abs().max()) <= bound


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_reach_z_and_all_weights(output: str, dtype: torch.dtype) -> None:
    network, z = make(output, "uniform"), noise(5, 6).requires_grad_(True)
    images = draw_images(network, z, Compute(torch.device("cpu"), dtype))
    assert images.shape == (5, 1, 28, 28) and images.dtype == torch.float32
    images.square().mul(noise(5, 1, 28, 28)).sum().backward()
    assert z.grad is not None and z.grad.any()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    for name in ("body.0.weight", "body.4.weight", "body.8.weight", "body.11.weight"):
        gradient = gradients[name]
        assert gradient is not None and gradient.any(), name


def test_the_two_outputs_ranges() -> None:
    z = noise(16, 6)
    pixels = draw_images(make("sigmoid", "uniform"), 50 * z, CPU)
    assert pixels.min() >= -1 and pixels.max() <= 1
    images = draw_images(make("tanh_batch_norm", "uniform", channels=3), z, CPU)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)
