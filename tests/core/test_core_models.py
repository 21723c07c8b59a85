"""ResNet-18: its size, its shapes, its shortcut, and how networks are built, loaded and kept."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import CPU, all_equal, noise, scramble, tiny_resnet, tiny_spec
from tiny import one_thread as one_thread
from torch import nn

from fedbicross_flwr.batch_norm import batch_norms
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.models import ModelSpec, build_model, load_state, state_of
from fedbicross_flwr.models.registry import MODELS
from fedbicross_flwr.models.resnet import stage


def test_size_of_the_papers_network() -> None:
    with torch.device("meta"):
        model = MODELS["resnet18"](ModelSpec("resnet18", 8, 3, 64, "small"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_172_936
    layers = batch_norms(model)
    assert len(layers) == 20 and sum(layer.num_features for layer in layers) == 4_800
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 20


@pytest.mark.parametrize("stem", ["small", "imagenet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(stem: str, channels: int) -> None:
    model: Any = build_model(tiny_spec(5, channels, 3, stem), 0).eval()
    images = noise(2, channels, 28, 28)
    assert model(images).shape == (2, 5)
    features = model.features(images)
    assert features.shape == (2, 24)
    torch.testing.assert_close(model.fc(features), model(images))


@pytest.mark.parametrize(("stem", "sides"), [("small", [28, 14, 7, 4]), ("imagenet", [7, 4, 2, 1])])
def test_resolution_of_the_stages(stem: str, sides: list[int]) -> None:
    model = tiny_resnet(0, tiny_spec(stem=stem)).eval()
    seen: list[int] = []
    for part in model.get_submodule("stages").children():
        part.register_forward_hook(lambda *call: seen.append(call[2].shape[-1]))
    model(noise(1, 1, 28, 28))
    assert seen == sides


@pytest.mark.parametrize("side", [7, 28])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 6), (16, 32)])
def test_the_shortcut_is_a_strided_1x1_convolution(inputs: int, outputs: int, side: int) -> None:
    shortcut: Any = stage(inputs, outputs, 2).get_submodule("0.downsample")
    pool, convolution, _ = shortcut
    images = noise(2, inputs, side, side).requires_grad_(True)
    found = convolution(pool(images))
    expected = F.conv2d(images, convolution.weight, stride=2)
    torch.testing.assert_close(found, expected)
    slope = noise(*found.shape, seed=1)
    for one, other in zip(
        torch.autograd.grad(found, [images, convolution.weight], slope),
        torch.autograd.grad(expected, [images, convolution.weight], slope),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.AvgPool2d) for module in stage(4, 4, 1).modules())


STRAY = """
import torch
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.models import ModelSpec, build_model
torch.set_num_threads(2)
compute = Compute(torch.device("cpu"))
for width in (3, 12):
    model = compute.place(build_model(ModelSpec("resnet18", 3, 3, width, "small"), 0)).train()
    for count in (3, 13):
        images = compute.images(torch.randn(count, 3, 28, 28))
        compute.logits(model, images).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
"""


def test_narrow_widths_in_channels_last_do_not_write_out_of_bounds() -> None:
    # In a process of its own: a stray write ends it with a signal, at once or when memory is given back.
    done = subprocess.run(
        [sys.executable, "-c", STRAY],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_building_depends_on_the_seed_alone_and_leaves_the_global_generator() -> None:
    torch.manual_seed(123)
    kept = torch.get_rng_state()
    first = build_model(tiny_spec(), 7)
    assert torch.equal(torch.get_rng_state(), kept)
    torch.manual_seed(99)
    assert all_equal(state_of(first), state_of(build_model(tiny_spec(), 7)))
    assert not torch.equal(
        first.get_parameter("fc.weight"), build_model(tiny_spec(), 8).get_parameter("fc.weight")
    )


def test_loading_draws_no_random_numbers() -> None:
    state = state_of(tiny_resnet())
    kept = torch.get_rng_state()
    load_state(tiny_spec(), state)
    assert torch.equal(torch.get_rng_state(), kept)


def test_an_unknown_architecture_is_named_with_the_near_one() -> None:
    with pytest.raises(FedBiCrossError, match=r"model\.name = 'resnet81'.*did you mean resnet18"):
        build_model(ModelSpec("resnet81", 3, 1, 2, "small"), 0)


def test_state_round_trip_in_memory_of_its_own() -> None:
    model = CPU.place(scramble(build_model(tiny_spec(), 1), 1)).train()
    model(noise(3, 1, 28, 28))
    state = state_of(model)
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in state.values())
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}
    loaded = load_state(tiny_spec(), state)
    assert all_equal(state_of(loaded), state)
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in loaded.parameters())
    images = noise(4, 1, 28, 28, seed=2)
    torch.testing.assert_close(loaded.eval()(images), model.eval()(images))
    kept = {name: tensor.clone() for name, tensor in state.items()}
    with torch.no_grad():
        for tensor in [*loaded.state_dict().values(), *model.state_dict().values()]:
            tensor.zero_()
    assert all_equal(state, kept)


def test_a_state_that_does_not_fit_is_refused() -> None:
    state = state_of(tiny_resnet())
    with pytest.raises(RuntimeError, match="Missing key"):
        load_state(tiny_spec(), {name: tensor for name, tensor in state.items() if name != "fc.bias"})
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_state(tiny_spec(classes=4), state)
