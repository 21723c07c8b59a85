"""Clusters of a run as tasks of Ray: when there are any, and that they give the numbers of one process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import Watch, outcome, reference, run_tiny, tiny

from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RuntimeConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.ray_tasks import ray_tasks, start_ray, tasks_wanted

CPU = Compute(torch.device("cpu"))
GPU = Compute(torch.device("meta"))
"""Any device that is no CPU: nothing is computed on it here."""


@pytest.mark.parametrize(
    ("compute", "device", "wanted", "found", "expected"),
    [
        (CPU, "auto", 0, 0, 1),
        (CPU, "auto", 3, 0, 3),
        (GPU, "auto", 0, 1, 1),
        (GPU, "auto", 0, 4, 4),
        (GPU, "auto", 1, 4, 1),
        (GPU, "auto", 2, 4, 2),
        (GPU, "cuda", 0, 4, 4),
        (GPU, "cuda:1", 0, 4, 1),
    ],
)
def test_there_are_as_many_tasks_as_wanted_or_accelerators(
    compute: Compute, device: str, wanted: int, found: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: found)
    assert tasks_wanted(RuntimeConfig(device=device, server_tasks=wanted), compute) == expected


@pytest.mark.parametrize(
    ("running", "free", "expected"),
    [(False, 0, 4), (True, 4, 4), (True, 3, 3), (True, 1, None), (True, 0, None)],
)
def test_accelerators_that_a_simulation_s_clients_hold_are_not_waited_for(
    running: bool, free: int, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = {"CPU": 2.0, **({"GPU": float(free)} if free else {})}
    ray = SimpleNamespace(is_initialized=lambda: running, available_resources=lambda: resources)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with ray_tasks(RuntimeConfig(server_tasks=4), GPU) as tasks:
        assert (tasks and tasks.count) == expected


def test_one_task_is_this_process() -> None:
    with ray_tasks(RuntimeConfig(server_tasks=1), CPU) as tasks:
        assert tasks is None


@pytest.mark.parametrize(("failures", "tries"), [(1, 2), (9, 2)], ids=["once", "always"])
def test_ray_is_started_a_second_time_and_no_more(
    failures: int, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def init(**settings: Any) -> None:
        tried.append(settings["num_cpus"])
        if len(tried) <= failures:
            raise TimeoutError("The current node timed out during startup.\nMore of it.")

    monkeypatch.setattr("ray.init", init)
    if failures < tries:
        start_ray(num_cpus=3)
    else:
        with pytest.raises(FedBiCrossError, match=r"did not start \(The .* startup\.\).*do without it"):
            start_ray(num_cpus=3)
    assert tried == [3] * tries


# --- on Ray


def squares(count: int, after_step: Callable[[int], None]) -> tuple[int, list[int]]:
    """A piece of work that says where it is done."""
    found = []
    for step in range(1, count + 1):
        found.append(step**2)
        after_step(step)
    return os.getpid(), found


def mistaken(after_step: Callable[[int], None]) -> None:
    raise FedBiCrossError("the loss is no longer finite")


def killed(after_step: Callable[[int], None]) -> None:
    os.abort()


def endless(after_step: Callable[[int], None]) -> None:
    step = 0
    while True:
        after_step(step := step + 1)


class GivenUpError(Exception):
    """Said by a watcher of steps."""


@pytest.mark.ray
def test_pieces_of_a_run_are_tasks_of_ray_with_the_same_numbers(tmp_path: Path) -> None:
    import ray

    config = tiny(runtime__server_tasks=2)
    with ray_tasks(config.runtime, CPU) as tasks:
        assert tasks is not None and not ray.is_initialized()
        steps: list[int] = []
        process, found = tasks.call(squares, 5, after_step=steps.append)
        assert process != os.getpid() and found == [1, 4, 9, 16, 25] and steps == [1, 2, 3, 4, 5]
        with pytest.raises(FedBiCrossError, match=r"^the loss is no longer finite$"):
            tasks.call(mistaken)
        with pytest.raises(FedBiCrossError, match="a task of Ray ended early"):
            tasks.call(killed)

        def give_up() -> None:
            if len(steps) > 20:
                raise GivenUpError

        with pytest.raises(GivenUpError):
            tasks.call(endless, after_step=steps.append, check=give_up)
        with pytest.MonkeyPatch.context() as patch:
            watch = Watch(patch)
            folder = run_tiny(tmp_path / "run", config)
        assert outcome(folder) == outcome(reference())
        assert {(stage, 4) for stage, _, step in watch.steps if step == 4} >= {
            ("synthesis, cluster 0", 4),
            ("synthesis, cluster 1", 4),
            ("cross-cluster optimisation", 4),
        }
        assert ray.is_initialized()
    assert not ray.is_initialized()
