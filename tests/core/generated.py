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
from tiny import CPU, SmoothNet, all_equal, noise, settings
from tiny import task as client_task
from torch import Tensor, nn

from fedbicross_flwr.labelled_images import LabelledImages, accuracy
from fedbicross_flwr.methods.protocol import ClientUpload, ServerOutcome, ServerTask
from fedbicross_flwr.methods.student import start_student
from fedbicross_flwr.models import ModelSpec, StateDict, load_state, state_of
from fedbicross_flwr.models.registry import MODELS
from fedbicross_flwr.progress import Silent
from fedbicross_flwr.training import train_client

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


def plain_teachers(uploads: Sequence[ClientUpload]) -> list[nn.Module]:
    return [load_state(SPEC, upload.state).eval().requires_grad_(False) for upload in uploads]


def plain_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of each image as the definition reads, times temperature^2."""
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    return (p * (p / q).log()).sum(1) * temperature**2


def plain_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """-log p_y of each image."""
    return -scores.softmax(1)[range(len(labels)), labels].log()


def assert_close(first: StateDict, second: StateDict, rtol: float = 1e-3, atol: float = 1e-5) -> None:
    """Hold two states against each other, up to rounding."""
    assert first.keys() == second.keys()
    for name in first:
        assert torch.allclose(first[name], second[name], rtol, atol), name


def assert_common_promises(serve: Serve, **options: Any) -> None:
    """What every global method promises: seeds, no global generator, order of clients, one model for all."""
    uploads = trained_uploads()
    torch.manual_seed(1)
    first = serve(uploads, server_task(seed=3, **options))
    after = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(2), after), "the global generator is not touched"
    torch.rand(5)
    again = serve(uploads, server_task(seed=3, **options))
    assert all_equal(first.models[0], again.models[0])
    assert torch.equal(first.findings.synthetic[0][0], again.findings.synthetic[0][0])
    other = serve(uploads, server_task(seed=4, **options))
    assert not torch.equal(first.models[0]["fc.weight"], other.models[0]["fc.weight"])
    assert not torch.equal(first.findings.synthetic[0][0], other.findings.synthetic[0][0])

    backwards = serve(uploads[::-1], server_task(seed=3, **options))
    assert_close(first.models[0], backwards.models[0], rtol=1e-2, atol=1e-4)

    assert first.assignment == {0: 0, 1: 0} and len(first.models) == 1
    images, labels = first.findings.synthetic[0]
    assert images.shape[1:] == (1, 28, 28) and images.dtype == torch.float32 and images.isfinite().all()
    assert labels.shape == images.shape[:1] and labels.dtype == torch.int64
    assert images.untyped_storage().nbytes() == images.nbytes, "no view that keeps a pool in memory"
    assert not images.requires_grad and set(labels.tolist()) <= {0, 1, 2}


def assert_learns(serve: Serve, **options: Any) -> None:
    """The student starts from random weights near chance and comes near its teachers, which are right."""
    uploads = trained_uploads()
    kept = [{name: tensor.clone() for name, tensor in upload.state.items()} for upload in uploads]
    assert min(held_out_accuracy(upload.state) for upload in uploads) > 0.95
    task = server_task(**options)
    assert held_out_accuracy(state_of(start_student("random", uploads, task))) < 2 * CHANCE + 0.01
    assert held_out_accuracy(serve(uploads, task).models[0]) > 0.9
    assert all(all_equal(state, upload.state) for state, upload in zip(kept, uploads, strict=True))
