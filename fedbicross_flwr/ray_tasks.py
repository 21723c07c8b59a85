"""Ray for this project's own work: a machine of one's own, and a stage's pieces as tasks on its accelerators.

Flower's simulation has its Ray too. Where that is running, the tasks are its.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import torch

from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RuntimeConfig
from fedbicross_flwr.errors import FedBiCrossError, MachineError, harmless
from fedbicross_flwr.files import base_for_sockets
from fedbicross_flwr.parallel import Check, Step, call_here

Result = TypeVar("Result")

PRIVATE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}
"""Ray runs the functions of whoever reaches it. The second name is Ray's for: on loopback alone, as it is by
itself on those two systems only."""
PATIENCE = 0.2
"""Seconds between two looks at what a task has reported."""


@contextmanager
def own_ray(cpus: int, **options: Any) -> Iterator[None]:
    """Start a Ray of one's own on this machine; on leaving, for whatever reason, all its processes end.

    Parameters
    ----------
    cpus : int
        Tasks at once that ask for a core.
    **options
        Further ones of ``ray.init``.

    Raises
    ------
    MachineError
        When it does not start, also not the second time: it gives its processes half a minute, which a busy
        machine may miss once.
    """
    if "ray" not in sys.modules:
        # Ray reads them when it is imported, and not again: later, its processes would know them and it not.
        os.environ.update(PRIVATE)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Not above: it takes seconds, and few runs need it.
    import ray

    with tempfile.TemporaryDirectory(
        prefix="fbx-", dir=base_for_sockets(), ignore_cleanup_errors=True
    ) as folder:
        try:
            start_ray(num_cpus=cpus, _temp_dir=folder, runtime_env=same_paths(), **options)
            yield
        finally:
            ray.shutdown()


def same_paths() -> dict[str, Any]:
    """Return where Ray's processes are to find this package: where this one did.

    Flower may have installed it for its own processes alone, and a method of one's own may lie beside it.
    """
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}}


def start_ray(tries: int = 2, **options: Any) -> None:
    """Start Ray on this machine, within some tries.

    Raises
    ------
    MachineError
        When it does not start.
    """
    import ray

    for left in reversed(range(tries)):
        try:
            init_ray(**options)
            return
        # Ray raises plain exceptions of several kinds.
        except Exception as error:
            ray.shutdown()
            if not left:
                raise MachineError(
                    f"Ray did not start ({first_line(error)}); try again when the machine is less busy, or "
                    "do without it (--jobs 1, runtime.server_tasks = 1)"
                ) from error


def init_ray(**options: Any) -> None:
    """Try to start Ray once."""
    import ray

    with warnings.catch_warnings():
        # Of what a later Ray will do with accelerators that a task did not ask for.
        warnings.simplefilter("ignore", FutureWarning)
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **options,
        )


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, of which Ray may make pages."""
    first = next((line for line in str(error).splitlines() if line.strip()), "no reason is known")
    return harmless(first)


def tasks_wanted(runtime: RuntimeConfig, compute: Compute) -> int:
    """Return how many clusters are worked on at once as tasks of Ray; one means in this process.

    That is ``runtime.server_tasks``; 0 stands for the accelerators, where there are any. Where a simulation's
    clients hold accelerators, which they do from the first round to the last, the server keeps to its own.
    """
    count = runtime.server_tasks
    if compute.device.type == "cpu":
        return max(count, 1)
    return 1 if accelerators_are_held() else min(count or sys.maxsize, torch.accelerator.device_count())


def accelerators_are_held() -> bool:
    """Return whether a Ray is running of whose accelerators any is taken."""
    if "ray" not in sys.modules:
        return False
    import ray

    if not ray.is_initialized():
        return False
    free = ray.available_resources()
    every = ray.cluster_resources()
    return bool(free.get("GPU", 0.0) < every.get("GPU", 0.0))


class RayTasks:
    """Calls pieces of work in processes of their own, each with an accelerator, or a core without one.

    Ray is started with the first call, and ended by `close` unless it was running before.

    Parameters
    ----------
    count : int
        Pieces at once.
    compute : Compute
        Where this process computes. A task computes on the same kind of device.
    """

    def __init__(self, count: int, compute: Compute) -> None:
        self.count = count
        self.compute = compute
        self.lock = threading.Lock()
        self.numbers = itertools.count()
        self.watchers: dict[int, Step] = {}
        self.opened = ExitStack()
        # Ray's processes end with the thread that started them, so it must be one that outlives every piece.
        self.keeper = ThreadPoolExecutor(1)
        self.start: Future[tuple[Any, Any]] | None = None

    def call(
        self,
        work: Callable[..., Result],
        *arguments: Any,
        after_step: Step = lambda step: None,
        check: Check = lambda: None,
    ) -> Result:
        """Return what `work` returns in a process of its own (see `fedbicross_flwr.parallel.Call`).

        Raises
        ------
        MachineError
            When Ray does not start, or the process ended early. What `work` raises is raised here as well.
        """
        remote, steps = self.started(check)
        import ray
        from ray.exceptions import RayError, RayTaskError

        number = next(self.numbers)
        self.watchers[number] = after_step
        task = remote.remote(work, arguments, number, steps)
        try:
            done: list[Any] = []
            while not done:
                done, _ = ray.wait([task], timeout=PATIENCE)
                self.tell(steps)
                check()
            result: Result = ray.get(task)
            return result
        except RayTaskError as error:
            raise error.cause from (None if isinstance(error.cause, FedBiCrossError) else error)
        except RayError as error:
            raise MachineError(
                f"a task of Ray ended early ({type(error).__name__}): {first_line(error)}"
            ) from error
        finally:
            del self.watchers[number]
            # It was given up, or is done and heeds it no more. Without Ray it is gone already.
            with suppress(RayError):
                ray.cancel(task, force=True)

    def tell(self, steps: Any) -> None:
        """Pass on what all tasks have reported so far."""
        with self.lock:
            for number, step in steps.get_nowait_batch(steps.qsize()):
                if (after_step := self.watchers.get(number)) is not None:
                    after_step(step)

    def started(self, check: Check) -> tuple[Any, Any]:
        """Return what `begin` gave, once for all callers."""
        with self.lock:
            if self.start is None:
                self.start = self.keeper.submit(self.begin)
        while not self.start.done():
            wait([self.start], timeout=PATIENCE)
            check()
        return self.start.result()

    def begin(self) -> tuple[Any, Any]:
        """Start Ray, unless it is running; return `piece` as a remote function, and where tasks report."""
        import ray
        from ray.util.queue import Queue

        gpus = 0 if self.compute.device.type == "cpu" else 1
        if not ray.is_initialized():
            running = own_ray(self.count, num_gpus=gpus * self.count)
            self.opened.enter_context(running)
        # No cores are asked for: a simulation's clients hold them all, and wait while the server works.
        remote: Any = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0)(piece)
        steps = Queue(actor_options={"num_cpus": 0})
        self.opened.callback(steps.shutdown, force=True)
        return remote, steps

    def close(self) -> None:
        """End what was started."""
        self.keeper.submit(self.opened.close).result()
        self.keeper.shutdown()


def piece(work: Callable[..., Result], arguments: tuple[Any, ...], number: int, steps: Any) -> Result:
    """Do a piece of work in a process of Ray's, on one thread, as it would be done at the server."""
    torch.set_num_threads(1)
    return call_here(work, *arguments, after_step=lambda step: steps.put((number, step)))


@contextmanager
def ray_tasks(runtime: RuntimeConfig, compute: Compute) -> Iterator[RayTasks | None]:
    """Return what calls pieces as tasks of Ray where that is wanted, for as long as it is needed."""
    count = tasks_wanted(runtime, compute)
    if count <= 1:
        yield None
        return
    tasks = RayTasks(count, compute)
    try:
        yield tasks
    finally:
        tasks.close()
