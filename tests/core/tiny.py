"""Small networks, images and configurations for the numerical tests, quick on one core."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedbicross_flwr.batch_norm import batch_norms, running
from fedbicross_flwr.compute import Compute, cpu_threads
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.labelled_images import LabelledImages
from fedbicross_flwr.models import ModelSpec, StateDict, build_model, load_state
from fedbicross_flwr.progress import Silent
from fedbicross_flwr.training import ClientTask, train_client

CPU = Compute(torch.device("cpu"))


@dataclass(frozen=True)
class Double(Compute):
    """The CPU in float64, so that finite differences are sharp."""

    def images(self, images: Tensor) -> Tensor:
        return super().images(images).double()

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        output: Tensor = model(images)
        return output


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and lose much where other work shares the cores.

    A module that imports this fixture has it for all of its tests.
    """
    with cpu_threads(1):
        yield


DOUBLE = Double(torch.device("cpu"), torch.float64)


class SmoothNet(nn.Module):
    """Two convolutions with BatchNorm and smooth activations: differentiable everywhere."""

    def __init__(self, classes: int = 3, channels: int = 1, width: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=3),
            nn.BatchNorm2d(width),
            nn.Softplus(),
            nn.Conv2d(width, 2 * width, 3, stride=2),
            nn.BatchNorm2d(2 * width),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.fc = nn.Linear(2 * width, classes)

    def features(self, images: Tensor) -> Tensor:
        result: Tensor = self.body(images)
        return result

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.fc(self.features(images))
        return result


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def scramble(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give BatchNorm layers statistics and affine weights that are far from their defaults."""
    source = generator(seed)
    with torch.no_grad():
        for layer in batch_norms(model):
            mean, var = running(layer)
            mean.copy_(0.3 * torch.randn(mean.shape, generator=source))
            var.copy_(0.5 + torch.rand(var.shape, generator=source))
            layer.weight.copy_(0.6 + torch.rand(var.shape, generator=source))
            layer.bias.copy_(0.3 * torch.randn(mean.shape, generator=source))
    return model


def smooth_net(seed: int = 0, classes: int = 3, channels: int = 1) -> nn.Module:
    """A `SmoothNet` in float32 whose weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return scramble(SmoothNet(classes, channels), seed)


def tiny_spec(classes: int = 3, channels: int = 1, width: int = 2, stem: str = "small") -> ModelSpec:
    return ModelSpec("resnet18", classes, channels, width, stem)


def tiny_resnet(seed: int = 0, spec: ModelSpec | None = None) -> nn.Module:
    """A ResNet-18 of width 2 with statistics of its own."""
    return scramble(build_model(spec or tiny_spec(), seed), seed)


def settings(**overrides: Any) -> RunConfig:
    """A configuration; ``client__epochs=3`` stands for ``client.epochs``."""
    return RunConfig.from_flat({key.replace("__", "."): value for key, value in overrides.items()})


def task(config: RunConfig, client: int = 0, spec: ModelSpec | None = None) -> ClientTask:
    return ClientTask(client, spec or tiny_spec(), config, CPU, Silent())


def blobs(count: int, classes: int = 3, seed: int = 0) -> LabelledImages:
    """Dark grayscale images with a bright square, whose place is the class; labels in turn."""
    labels = torch.arange(count) % classes
    images = -0.7 + 0.2 * noise(count, 1, 28, 28, seed=seed)
    for row, label in enumerate(labels.tolist()):
        corner = 1 + 9 * label
        images[row, :, corner : corner + 8, corner : corner + 8] += 1.4
    return LabelledImages(images.clamp(-1.0, 1.0), labels)


TEACHER_SPEC = tiny_spec(width=4)


@cache
def teacher_states() -> tuple[StateDict, StateDict]:
    """Two networks of width 4 which have learned `blobs`, each from images of its own."""
    config = settings(client__epochs=6, client__lr=0.05, client__batch_size=16)
    return tuple(  # type: ignore[return-value]
        train_client(blobs(96, seed=10 + client), task(config, client, TEACHER_SPEC)).state
        for client in (0, 1)
    )


def trained_teachers() -> list[nn.Module]:
    """Fresh copies of `teacher_states` in eval mode."""
    return [load_state(TEACHER_SPEC, state).eval() for state in teacher_states()]


def all_equal(first: StateDict, second: StateDict) -> bool:
    """Whether two states hold the same names and bits."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
