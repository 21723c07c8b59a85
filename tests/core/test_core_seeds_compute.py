"""Seeds by purpose, and the device, precision and threads of a computation."""

from __future__ import annotations

import itertools

import joblib
import numpy as np
import pytest
import torch
from tiny import CPU, noise, smooth_net

from fedbicross_flwr.compute import (
    Compute,
    bfloat16_is_fast,
    cpu_threads,
    has_cpp_compiler,
    resolve_device,
    server_threads,
    within_memory,
)
from fedbicross_flwr.config import RuntimeConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.seeds import derive_seed, numpy_generator, torch_generator


def test_every_purpose_client_and_round_has_a_stream_of_its_own() -> None:
    purposes = ("training", "partition", "inversion/1", "inversion/11")
    cases = list(itertools.product((0, 1, 11), purposes, (None, 0, 1, 11), (None, 0, 1)))
    seeds = {derive_seed(*case) for case in cases}
    assert len(seeds) == len(cases) and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # The first eight bytes, little-endian and halved, of sha256 of "0|partition|None|None" and so on.
        # A change of these would change the result of every published run.
        ((0, "partition"), 8_191_744_006_782_981_917),
        ((3, "training", 2, 1), 7_325_576_302_852_395_807),
    ],
)
def test_seeds_are_stable(arguments: tuple[int, str], expected: int) -> None:
    assert derive_seed(*arguments) == expected


def test_generators_repeat_and_differ_by_purpose() -> None:
    def both(purpose: str, client: int | None = None) -> list[float]:
        return [
            float(torch.rand(1, generator=torch_generator(5, purpose, client))),
            float(numpy_generator(5, purpose, client).random()),
        ]

    assert both("probes") == both("probes")
    draws = np.array([both("probes"), both("training"), both("training", 0), both("training", 1)])
    assert len(np.unique(draws)) == draws.size


def test_generators_leave_the_global_state_alone() -> None:
    kept = torch.get_rng_state()
    torch.rand(3, generator=torch_generator(0, "probes"))
    assert torch.equal(torch.get_rng_state(), kept)


@pytest.mark.parametrize("fails", [False, True])
def test_cpu_threads_are_given_back(fails: bool) -> None:
    former = torch.get_num_threads()
    other = 3 if former != 3 else 2
    try:
        with cpu_threads(other):
            assert torch.get_num_threads() == other
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert torch.get_num_threads() == former


def test_a_full_accelerator_is_one_line() -> None:
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmany more words")
    with pytest.raises(FedBiCrossError) as found, within_memory("lower client.batch_size"):
        raise full
    assert str(found.value) == (
        "the accelerator's memory is full (CUDA out of memory. Tried to allocate 2 GiB); lower "
        "client.batch_size, or set runtime.device = 'cpu'"
    )
    with pytest.raises(RuntimeError, match="another"), within_memory("lower client.batch_size"):
        raise RuntimeError("another")


def test_server_threads_default_to_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert server_threads(RuntimeConfig(server_threads=3)) == 3
    assert server_threads(RuntimeConfig(server_threads=0)) == joblib.cpu_count()
    monkeypatch.setattr(joblib, "cpu_count", lambda: 7)
    assert server_threads(RuntimeConfig(server_threads=0)) == 7


@pytest.mark.parametrize("name", ["cpuu", "meta", "mps" if torch.cuda.is_available() else "cuda:0"])
def test_an_absent_device_is_named(name: str) -> None:
    with pytest.raises(FedBiCrossError, match=rf"runtime\.device = '{name}'.*try auto or cpu"):
        resolve_device(name)


def test_a_device_by_a_number_that_there_is_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    assert [resolve_device(name).type for name in ("cuda", "cuda:0", "cpu")] == ["cuda", "cuda", "cpu"]
    with pytest.raises(FedBiCrossError, match=r"runtime\.device = 'cuda:1', but this machine has 1 of them"):
        resolve_device("cuda:1")


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision_is_as_asked_and_logits_are_float32(precision: str, dtype: torch.dtype) -> None:
    compute = Compute.of(RuntimeConfig(device="cpu", precision=precision))
    assert compute.dtype == dtype and compute.precision == precision and compute.device.type == "cpu"
    model = compute.place(smooth_net().eval())
    images = compute.images(noise(3, 1, 28, 28))
    logits = compute.logits(model, images)
    reference = CPU.logits(model, images)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, reference) is (precision == "float32")
    torch.testing.assert_close(logits, reference, rtol=0.1, atol=0.1)


@pytest.mark.skipif(not has_cpp_compiler(), reason="compiling on a CPU needs a C++ compiler")
def test_a_compiled_network_gives_the_same_logits_and_gradients() -> None:
    compute = Compute.of(RuntimeConfig(device="cpu", precision="float32", compile="on"))
    assert compute.compiled and not Compute.of(RuntimeConfig()).compiled
    images = noise(4, 1, 28, 28)
    gradients = []
    for how in (compute, CPU):
        for seed in (0, 1):  # the second network finds the code of the first
            model = how.place(smooth_net(seed).train())
            how.logits(model, how.images(images)).square().sum().backward()
            gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    for first, second in zip(gradients[:2], gradients[2:], strict=True):
        for one, other in zip(first, second, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(gradients[0][0], gradients[1][0])


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(FedBiCrossError, match=r"runtime\.compile = 'on' needs a C\+\+ compiler"):
        Compute.of(RuntimeConfig(device="cpu", compile="on"))


def test_placing_takes_the_channels_last_layout() -> None:
    images = CPU.images(noise(2, 3, 28, 28))
    assert images.is_contiguous(memory_format=torch.channels_last)
    weight = CPU.place(smooth_net(channels=3)).get_parameter("body.0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_cpu_without_bfloat16_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """OneDNN calls it supported wherever it can emulate it."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert not bfloat16_is_fast(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert bfloat16_is_fast(torch.device("cpu"))
