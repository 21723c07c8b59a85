"""Independent pieces of a server's stage, such as its clusters, side by side on the CPU's cores.

Every piece computes on one thread. Sums then do not depend on the number of cores, and small networks gain
more from pieces side by side than from threads inside an operation, which wait for each other at its end.

Pieces that do not come out even take turns step by step: three on two cores would otherwise leave one core
idle for half of the time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
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


class Turns:
    """So many turns for threads, which get them in the order of asking; who has one may pass it on.

    A semaphore would not do: whoever gives one back and asks again goes before those who wait.

    Parameters
    ----------
    count : int
        Turns that are out at once.
    """

    def __init__(self, count: int) -> None:
        self.free = count
        self.waiting: deque[threading.Event] = deque()
        self.lock = threading.Lock()

    def __enter__(self) -> None:
        """Wait for a turn."""
        with self.lock:
            if self.free:
                self.free -= 1
                return
            mine = threading.Event()
            self.waiting.append(mine)
        mine.wait()

    def __exit__(self, *error: object) -> None:
        """Give the turn to whoever has waited longest."""
        with self.lock:
            if self.waiting:
                self.waiting.popleft().set()
            else:
                self.free += 1

    def pass_on(self) -> None:
        """Let the others go first, if any wait."""
        if self.waiting:
            self.__exit__()
            self.__enter__()


def side_by_side(
    work: Callable[[Item, Check], Result],
    items: Sequence[Item],
    workers: int,
    take: Callable[[Result], None] = lambda result: None,
    in_turns: bool = True,
) -> list[Result]:
    """Return ``[work(item, check) for item in items]``, on up to `workers` cores at once.

    Parameters
    ----------
    work : callable
        Must not share state between items. It calls ``check()`` once a step, so that an interruption or a
        failure elsewhere ends it soon.
    workers : int
        Items that compute at once. With one, everything happens in the calling thread.
    take : callable, optional
        Called with each result, in the calling thread and in the order of the items, once it and all before
        it are there.
    in_turns : bool, default True
        Whether the last items, if they do not come out even, all begin at once and take turns at each
        ``check()``: up to 2 x `workers` - 1 are under way then. Not for work that only waits for another
        process.
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
    turns, room = Turns(workers), Turns(workers)
    uneven = len(items) % workers if in_turns else 0

    def go_on() -> None:
        if given_up.is_set():
            raise GivenUpError

    def check() -> None:
        turns.pass_on()
        go_on()

    def attempt(index: int) -> Result:
        is_last = index >= len(items) - uneven
        try:
            with nullcontext() if is_last else room, turns:
                go_on()
                return work(items[index], check)
        except BaseException:
            # Here, as the calling thread may be waiting for an earlier item that goes on for hours.
            given_up.set()
            raise

    # The number of threads inside an operation is a property of the calling thread.
    threads = min(workers + uneven, len(items))
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    with pool:
        futures = [pool.submit(attempt, index) for index in range(len(items))]
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
