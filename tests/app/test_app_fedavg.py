"""FedAvg-1: a sample-weighted mean with buffers, whatever the order of the clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import tiny

from fedbicross_flwr.artifacts import digest
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.labelled_images import LabelledImages
from fedbicross_flwr.methods import METHODS, ClientUpload, ServerTask
from fedbicross_flwr.methods.fedavg import average_states
from fedbicross_flwr.models import ModelSpec, StateDict, build_model, load_state, state_of
from fedbicross_flwr.progress import Silent
from fedbicross_flwr.shipment import Shipment
from fedbicross_flwr.training import ClientTask

SPEC = ModelSpec("resnet18", 3, 1, 2, "small")


def state(seed: int, batches: int = 0) -> StateDict:
    """A network whose BatchNorm statistics are drawn as well."""
    made = state_of(build_model(SPEC, seed))
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in made.items():
        if "running" in name:
            made[name] = torch.rand(tensor.shape, generator=generator)
        elif name.endswith("num_batches_tracked"):
            made[name] = torch.tensor(batches + seed)
    return made


CPU = Compute(torch.device("cpu"))


def task(**changes: Any) -> ServerTask:
    return ServerTask(SPEC, tiny(**changes), CPU, Silent())


def average(uploads: Sequence[ClientUpload], **changes: Any) -> StateDict:
    return METHODS["fedavg"].serve(uploads, task(**changes)).models[0]


def test_the_mean_is_weighted_by_samples_and_takes_the_buffers_along() -> None:
    uploads = [ClientUpload(0, 30, state(0)), ClientUpload(1, 10, state(1)), ClientUpload(4, 60, state(2))]
    found = average(uploads)
    load_state(SPEC, found)
    for name, tensor in found.items():
        parts = [upload.state[name].double().numpy() for upload in uploads]
        if tensor.dtype.is_floating_point:
            expected = (0.3 * parts[0] + 0.1 * parts[1] + 0.6 * parts[2]).astype(np.float32)
            np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-8)
        else:
            assert tensor.dtype == torch.int64
            assert int(tensor) == max(int(part) for part in parts)


def test_everybody_is_sent_the_one_model() -> None:
    outcome = METHODS["fedavg"].serve([ClientUpload(3, 1, state(0)), ClientUpload(5, 2, state(1))], task())
    assert len(outcome.models) == 1 and dict(outcome.assignment) == {3: 0, 5: 0}


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(4)), st.lists(st.integers(1, 10_000), min_size=4, max_size=4))
def test_the_order_of_the_clients_does_not_show(order: list[int], samples: list[int]) -> None:
    states = [state(seed) for seed in range(4)]
    first = average_states(states, [float(count) for count in samples])
    second = average_states([states[i] for i in order], [float(samples[i]) for i in order])
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1.2e-7, atol=1e-12)


@pytest.mark.parametrize("copies", [1, 3])
def test_the_mean_of_equal_models_is_that_model(copies: int) -> None:
    one = state(1, batches=7)
    assert digest(average_states([one] * copies, [3.0] * copies)) == digest(one)


def test_the_mean_shares_no_memory_with_an_upload() -> None:
    one = state(1)
    before = digest(one)
    for tensor in average_states([one], [1.0]).values():
        tensor.zero_()
    assert digest(one) == before


def test_the_statistics_can_be_the_first_upload_s() -> None:
    uploads = [ClientUpload(0, 30, state(0)), ClientUpload(1, 10, state(1))]
    found, plain = average(uploads, fedavg__bn="first"), average(uploads)
    differing = {name for name in found if not torch.equal(found[name], plain[name])}
    assert differing == {name for name in found if "running" in name}
    assert all(torch.equal(found[name], uploads[0].state[name]) for name in differing)


def test_a_client_can_measure_the_statistics_anew_on_its_own_training_images() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((90, 1, 28, 28), generator=generator) * 3 + 2
    data, shipped = LabelledImages(images, torch.arange(90) % 3), Shipment(state(1))

    def receive(bn: str) -> StateDict:
        task = ClientTask(0, SPEC, tiny(fedavg__bn=bn), CPU, Silent())
        return METHODS["fedavg"].receive(data, shipped, task).model

    assert digest(receive("average")) == digest(receive("first")) == digest(shipped.model)
    found = receive("recalibrate")
    differing = {name for name in found if not torch.equal(found[name], shipped.model[name])}
    assert differing - {name for name in found if "tracked" in name} == {
        name for name in found if "running" in name
    }
    # The first BatchNorm layer's input by hand: the first tenth of the images is for validation.
    training, _ = data.split(tiny().client.validation_fraction)
    read = torch.nn.functional.conv2d(training.images, found["stem.0.weight"], padding=1)
    torch.testing.assert_close(found["stem.1.running_mean"], read.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["stem.1.running_var"], read.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_no_image_counts_more_than_another_in_statistics_that_are_measured_anew() -> None:
    images = torch.zeros((285, 1, 28, 28))  # 257 to read, one more than a batch
    images[-1] = 50.0
    data, shipped = LabelledImages(images, torch.arange(285) % 3), Shipment(state(1))
    task = ClientTask(0, SPEC, tiny(fedavg__bn="recalibrate"), CPU, Silent())
    found = METHODS["fedavg"].receive(data, shipped, task).model
    training, _ = data.split(task.config.client.validation_fraction)
    assert len(training) == 257
    read = torch.nn.functional.conv2d(training.images, found["stem.0.weight"], padding=1)
    torch.testing.assert_close(found["stem.1.running_mean"], read.mean((0, 2, 3)), rtol=0.01, atol=1e-6)
