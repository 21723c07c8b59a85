"""Clients side by side in one process: the same bits as one after another, taken in order."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import outcome, reference, run_tiny, tiny, without_report

from fedbicross_flwr import in_process
from fedbicross_flwr.artifacts import digest
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.models import ModelSpec, build_model, state_of
from fedbicross_flwr.parallel import Check, side_by_side
from fedbicross_flwr.server import Server
from fedbicross_flwr.status.run_status import read_status


def test_side_by_side_gives_the_bits_of_one_after_another(tmp_path: Path) -> None:
    assert outcome(run_tiny(tmp_path / "run", tiny(runtime__server_threads=3))) == outcome(reference())


def test_results_are_taken_in_order_in_the_calling_thread() -> None:
    taken: list[int] = []
    caller = threading.get_ident()

    def work(item: int, check: Check) -> int:
        time.sleep(0.05 * (3 - item))  # the last is ready first
        return item

    def take(result: int) -> None:
        assert threading.get_ident() == caller
        taken.append(result)

    assert side_by_side(work, range(4), 4, take) == [0, 1, 2, 3]
    assert taken == [0, 1, 2, 3]


def test_a_result_that_cannot_be_taken_gives_up_the_rest() -> None:
    ended: list[int] = []

    def work(item: int, check: Check) -> int:
        try:
            for _ in range(item * 1000):
                check()
                time.sleep(0.01)
        except BaseException:
            ended.append(item)
            raise
        return item

    def take(result: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side(work, range(3), 3, take)
    assert sorted(ended) == [1, 2]


def test_networks_that_are_built_at_once_have_the_weights_of_their_seeds() -> None:
    spec = ModelSpec("resnet18", 8, 3, 2, "small")

    def build(seed: int, check: Check = lambda: None) -> str:
        return digest(state_of(build_model(spec, seed)))

    seeds = list(range(12))
    assert side_by_side(build, seeds, 4) == [build(seed) for seed in seeds]


def spoilt(error: Callable[[], FedBiCrossError], client: int) -> Callable[[Server, int, Check], Any]:
    """A first round that fails at one client."""
    upload = in_process.upload

    def work(server: Server, number: int, check: Check) -> Any:
        if number == client:
            raise error()
        return upload(server, number, check)

    return work


def test_a_client_that_fails_beside_others_is_left_out_in_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process, "upload", spoilt(lambda: FedBiCrossError("its data is gone"), 1))
    order: list[tuple[str, int]] = []
    calls: list[int] = []

    def noted(name: str) -> None:
        method = getattr(Server, name)

        def wrapper(server: Server, client: int, *rest: Any) -> None:
            order.append((name, client))
            method(server, client, *rest)

        monkeypatch.setattr(Server, name, wrapper)

    for name in ("accept", "refuse", "record"):
        noted(name)
    with without_report():
        in_process.run_in_process(
            tiny(runtime__server_threads=3), tmp_path / "run", lambda: calls.append(len(order))
        )
    assert order == [("accept", 0), ("refuse", 1), ("accept", 2), ("record", 0), ("record", 2)]
    assert calls == [1, 2, 3, 4, 5]


def test_a_full_accelerator_is_named_with_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("fedbicross_flwr.methods.cluster_synthesis.invert", full)
    with pytest.raises(FedBiCrossError, match=r"memory is full .*set inversion.teachers = 'in_turn'"):
        in_process.run_in_process(tiny(), tmp_path / "server")
    monkeypatch.setattr("fedbicross_flwr.client.train_client", full)
    with pytest.raises(FedBiCrossError, match=r"memory is full .*lower client.batch_size"):
        in_process.run_in_process(tiny(), tmp_path / "clients")


def test_why_a_run_failed_is_in_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "run_method", lambda server: fails())

    def fails() -> None:
        raise FedBiCrossError("the method diverged")

    with pytest.raises(FedBiCrossError, match="the method diverged"):
        in_process.run_in_process(tiny(), tmp_path / "run")
    assert read_status(tmp_path / "run").reason == "the method diverged"


def test_a_full_disk_is_no_client_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> FedBiCrossError:
        error = FedBiCrossError("cannot write")
        error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
        return error

    monkeypatch.setattr(in_process, "upload", spoilt(full, 1))
    with pytest.raises(FedBiCrossError, match="cannot write"), without_report():
        in_process.run_in_process(tiny(), tmp_path / "run")
