"""Independent pieces of a server's stage, such as its clusters, side by side on the CPU's cores.

Every piece computes on one thread. Sums then do not depend on the number of cores, and small networks gain
more from pieces side by side than from threads inside an operation, which wait for each other at its end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import torch

from fedbicross_flwr.compute import cpu_threads

Item = TypeVar("Item")
Result = TypeVar("Result")
Check = Callable[[], None]
"""To be called now and then by a piece of work; raises when the others were given up."""

Step = Callable[[int], None]
"""To be called with 1, 2, ... after each step of a piece of work."""


class Call(Protocol):
    """Calls one independent piece of work, here or where there is room for it."""

    def __call__(
        self,
        work: Callable[..., Result],
        *arguments: Any,
        after_step: Step = ...,
        check: Check = ...,
    ) -> Result:
        """Return ``work(*arguments, after_step)``; `check` is called now and then, and may raise.

        What `work` changes in its arguments may be lost: it returns all that counts.
        """


def call_here(
    work: Callable[..., Result],
    *arguments: Any,
    after_step: Step = lambda step: None,
    check: Check = lambda: None,
) -> Result:
    """Call a piece of work in this thread; see `Call`."""

    def stepped(step: int) -> None:
        after_step(step)
        check()

    return work(*arguments, stepped)


class GivenUpError(Exception):
    """Ends a piece of work whose result nobody waits for any more."""


def side_by_side(
    work: Callable[[Item, Check], Result],
    items: Sequence[Item],
    workers: int,
    take: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Return ``[work(item, check) for item in items]``, on up to `workers` cores at once.

    Parameters
    ----------
    work : callable
        Must not share state between items. It calls ``check()`` once a step, so that an interruption or a
        failure elsewhere ends it soon.
    workers : int
        With one, everything happens in the calling thread.
    take : callable, optional
        Called with each result, in the calling thread and in the order of the items, once it and all before
        it are there.
    """
    results: list[Result] = []

    def keep(result: Result) -> None:
        take(result)
        results.append(result)

    if workers <= 1 or len(items) <= 1:
        with cpu_threads(1):
            for item in items:
                keep(work(item, lambda: None))
        return results
    given_up = threading.Event()

    def check() -> None:
        if given_up.is_set():
            raise GivenUpError

    def attempt(item: Item) -> Result:
        try:
            return work(item, check)
        except BaseException:
            # Here, as the calling thread may be waiting for an earlier item that goes on for hours.
            given_up.set()
            raise

    # The number of threads inside an operation is a property of the calling thread.
    pool = ThreadPoolExecutor(min(workers, len(items)), initializer=torch.set_num_threads, initargs=(1,))
    with pool:
        futures = [pool.submit(attempt, item) for item in items]
        try:
            for future in futures:
                keep(future.result())
        except BaseException as error:
            given_up.set()
            pool.shutdown(cancel_futures=True)
            if (reason := reason_of(error, futures)) is not error:
                raise reason  # noqa: B904 (with its own cause, which may be a full disk)
            raise
    return results


def reason_of(error: BaseException, futures: Sequence[Future[Any]]) -> BaseException:
    """Return what made an item give up, if that is what the error says; the error itself otherwise."""
    if not isinstance(error, GivenUpError):
        return error
    found = (future.exception() for future in futures if not future.cancelled())
    return next((one for one in found if one and not isinstance(one, GivenUpError)), error)
