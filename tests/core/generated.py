"""A tiny federation for the generator-based methods: two trained uploads, and how good a student became.

Its network is `SmoothNet`, registered for the duration of a test: it costs next to nothing, and its bounded
features keep teachers from being sure of everything, so that generators have a gradient to follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from tiny import CPU, SmoothNet, noise, settings
from tiny import task as client_task

from fedbicross_flwr.methods.protocol import ClientUpload, ServerOutcome, ServerTask
from fedbicross_flwr.models import ModelSpec, StateDict, load_state
from fedbicross_flwr.models.registry import MODELS
from fedbicross_flwr.progress import Silent
from fedbicross_flwr.training import LabelledImages, accuracy, train_client

SPEC = ModelSpec("smooth", num_classes=3, channels=1, width=4, stem="small")
CHANCE = 1 / 3

Serve = Callable[[Sequence[ClientUpload], ServerTask], ServerOutcome]


@pytest.fixture(autouse=True)
def smooth_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register `SmoothNet`; a module that imports this fixture has it for all of its tests."""
    monkeypatch.setitem(MODELS, "smooth", lambda spec: SmoothNet(spec.num_classes, spec.channels, spec.width))
    yield


def textures(count: int, seed: int = 0) -> LabelledImages:
    """Noisy images of rows, of columns, or of nothing; labels in turn."""
    labels = torch.arange(count) % 3
    stripes = torch.tensor([0.8, 0.8, 0.8, -0.8, -0.8, -0.8, -0.8]).repeat(4)
    rows, columns = stripes.view(28, 1).expand(28, 28), stripes.view(1, 28).expand(28, 28)
    patterns = torch.stack([rows, columns, torch.full((28, 28), -0.8)]).unsqueeze(1)
    images = patterns[labels] + 0.2 * noise(count, 1, 28, 28, seed=seed)
    return LabelledImages(images.clamp(-1.0, 1.0), labels)


@cache
def trained_uploads() -> tuple[ClientUpload, ...]:
    """Two clients with different numbers of images, independent and identically distributed."""
    config = settings(client__epochs=8, client__lr=0.1, client__batch_size=16)
    sizes = (96, 72)
    return tuple(
        ClientUpload(
            client, size, train_client(textures(size, 20 + client), client_task(config, client, SPEC)).state
        )
        for client, size in enumerate(sizes)
    )


def server_task(**overrides: Any) -> ServerTask:
    return ServerTask(SPEC, settings(**overrides), CPU, Silent())


def held_out_accuracy(state: StateDict) -> float:
    """The accuracy on fresh images of the same kind; chance is 1/3."""
    return accuracy(load_state(SPEC, state), textures(96, 99), CPU)
