"""Clusters of a run as tasks of Ray: when there are any, and that they give the numbers of one process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import outcome, reference, run_tiny, tiny

from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RunConfig, RuntimeConfig
from fedbicross_flwr.errors import FedBiCrossError, MachineError
from fedbicross_flwr.parallel import side_by_side
from fedbicross_flwr.ray_tasks import RayTasks, first_line, ray_tasks, start_ray, tasks_wanted

CPU = Compute(torch.device("cpu"))
GPU = Compute(torch.device("meta"))
"""Any device that is no CPU: nothing is computed on it here."""


def test_of_the_pages_that_ray_makes_of_a_failure_one_line_is_told() -> None:
    said = first_line(RuntimeError(f"\n  a worker was killed {'; '.join(['usage'] * 900)}\nand so on"))
    assert said.startswith("a worker was killed usage") and len(said) < 620 and "and so on" not in said
    assert first_line(RuntimeError(" \n")) == "no reason is known"


@pytest.mark.parametrize(
    ("compute", "wanted", "found", "expected"),
    [
        (CPU, 1, 0, 1),
        (CPU, 0, 0, 1),
        (CPU, 3, 0, 3),
        (GPU, 1, 4, 1),
        (GPU, 0, 4, 4),
        (GPU, 2, 4, 2),
        (GPU, 9, 4, 4),
    ],
)
def test_there_are_as_many_tasks_as_wanted_and_accelerators(
    compute: Compute, wanted: int, found: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: found)
    assert tasks_wanted(RuntimeConfig(server_tasks=wanted), compute) == expected


def test_by_default_there_are_none() -> None:
    with ray_tasks(RuntimeConfig(), CPU) as tasks:
        assert tasks is None


def test_one_certain_accelerator_cannot_be_several() -> None:
    RunConfig.from_flat({"runtime.device": "cuda:1"})
    with pytest.raises(FedBiCrossError, match=r"runtime.device = 'cuda:1' .* runtime.server_tasks = 2"):
        RunConfig.from_flat({"runtime.device": "cuda:1", "runtime.server_tasks": 2})


@pytest.mark.parametrize(
    ("running", "free", "expected"), [(False, 0, 4), (True, 4, 4), (True, 3.2, None), (True, 0, None)]
)
def test_accelerators_that_a_simulation_s_clients_hold_are_not_waited_for(
    running: bool, free: float, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = {"CPU": 2.0, "GPU": 4.0}
    left = {"CPU": 2.0, **({"GPU": free} if free else {})}
    ray = SimpleNamespace(
        is_initialized=lambda: running,
        available_resources=lambda: left,
        cluster_resources=lambda: resources,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    with ray_tasks(RuntimeConfig(server_tasks=0), GPU) as tasks:
        assert (tasks and tasks.count) == expected


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
    """Say one's process, and never end."""
    while True:
        after_step(os.getpid())
        time.sleep(0.01)


def lives(process: int) -> bool:
    """Whether a process is there and no corpse."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class GivenUpError(Exception):
    """Said by a watcher of steps."""


@pytest.mark.deploy
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes through /proc")
def test_pieces_of_a_run_are_tasks_of_ray_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    config = tiny(runtime__server_tasks=2)
    with ray_tasks(config.runtime, CPU) as tasks:
        assert tasks is not None and not ray.is_initialized()
        steps: list[int] = []
        # Twice, as the threads of the first time are gone the second time.
        for count in (3, 5):
            found = side_by_side(lambda n, check: tasks.call(squares, n, check=check), [count, 4], 2)
            assert [said for _, said in found] == [[n**2 for n in range(1, m + 1)] for m in (count, 4)]
            assert os.getpid() not in {process for process, _ in found}
        tasks.call(squares, 5, after_step=steps.append)
        assert steps == [1, 2, 3, 4, 5]
        with pytest.raises(FedBiCrossError, match=r"^the loss is no longer finite$"):
            tasks.call(mistaken)
        with pytest.raises(MachineError, match="a task of Ray ended early"):
            tasks.call(killed)

        def give_up() -> None:
            if len(steps) > 20:
                raise GivenUpError

        with pytest.raises(GivenUpError):
            tasks.call(endless, after_step=steps.append, check=give_up)
        deadline = time.monotonic() + 30
        while lives(steps[-1]) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not lives(steps[-1]) and ray.is_initialized()

        called: list[str] = []
        monkeypatch.setattr(RayTasks, "call", noting(RayTasks.call, called))
        assert outcome(run_tiny(tmp_path / "run", config)) == outcome(reference())
        assert sorted(called) == [*["invert"] * 2, *["replay_target"] * 2, *["teacher_scores"] * 2]
    assert not ray.is_initialized()


def noting(call: Callable[..., Any], called: list[str]) -> Callable[..., Any]:
    """A `RayTasks.call` that writes down what it is to call."""

    def noted(tasks: RayTasks, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        called.append(work.__name__)
        return call(tasks, work, *arguments, **options)

    return noted
