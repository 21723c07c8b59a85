"""Pieces of work side by side: order, failures, interruption, threads."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import pytest
import torch

from fedbicross_flwr.parallel import Check, side_by_side


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    def work(item: int, check: Check) -> tuple[int, int]:
        time.sleep(0.02 * (3 - item))
        return item, torch.get_num_threads()

    assert side_by_side(work, [0, 1, 2], workers) == [(0, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failure_ends_the_others_soon_and_is_raised(failing: int) -> None:
    steps = 0

    def work(item: int, check: Check) -> None:
        nonlocal steps
        if item == failing:
            raise ZeroDivisionError
        while steps < 1000:
            check()
            steps += 1
            time.sleep(0.01)

    with pytest.raises(ZeroDivisionError):
        side_by_side(work, [0, 1, 2], 3)
    assert steps < 500


def test_items_really_run_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=20)
    assert side_by_side(lambda item, check: meeting.wait() >= 0, [0, 1], 2) == [True, True]


def test_the_callers_number_of_threads_is_given_back() -> None:
    before = torch.get_num_threads()
    side_by_side(lambda item, check: item, [0, 1], 1)
    side_by_side(lambda item, check: item, [0, 1], 2)
    assert torch.get_num_threads() == before


@dataclass
class Watch:
    """Notes who makes a step, who is under way, and how many compute at once."""

    steps: int = 4
    order: list[int] = field(default_factory=list)
    begun_in: list[int] = field(default_factory=list)
    under_way: set[int] = field(default_factory=set)
    most: int = 0
    computing: int = 0
    most_computing: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self, item: int, check: Check) -> int:
        self.under_way.add(item)
        self.begun_in.append(item)
        self.most = max(self.most, len(self.under_way))
        for _ in range(self.steps):
            with self.lock:
                self.computing += 1
                self.most_computing = max(self.most_computing, self.computing)
            time.sleep(0.02)
            with self.lock:
                self.computing -= 1
                self.order.append(item)
            check()
        self.under_way.discard(item)
        return item

    def begun(self, item: int) -> int:
        return self.order.index(item)

    def ended(self, item: int) -> int:
        return len(self.order) - 1 - self.order[::-1].index(item)


@pytest.mark.parametrize(
    ("items", "workers", "most"), [(3, 2, 3), (5, 2, 3), (4, 2, 2), (5, 3, 5), (1, 2, 1), (9, 2, 3)]
)
def test_items_that_do_not_come_out_even_take_turns(items: int, workers: int, most: int) -> None:
    watch = Watch()
    assert side_by_side(watch.work, range(items), workers) == list(range(items))
    assert watch.most_computing == min(items, workers) and watch.most == most
    uneven = items % workers if items > workers else 0
    last = range(items - uneven - workers, items) if uneven else range(0)
    for one in last:
        assert all(watch.begun(one) < watch.ended(other) for other in last), "they begin before any ends"
        assert all(watch.begun(one) > watch.ended(early) for early in range(last.start - workers + 1))


@pytest.mark.parametrize(("items", "workers"), [(9, 2), (20, 3)])
def test_no_item_waits_while_later_ones_begin(items: int, workers: int) -> None:
    watch, taken = Watch(steps=2), list[tuple[int, int]]()
    side_by_side(watch.work, range(items), workers, lambda item: taken.append((item, len(watch.begun_in))))
    for place, item in enumerate(watch.begun_in):
        assert abs(place - item) < 2 * workers, "they begin in their order, or nearly so"
    for item, begun in taken[: items // 2]:
        assert begun < item + 4 * workers, "results are taken as they come, not at the end"


def test_work_that_only_waits_elsewhere_takes_no_turns() -> None:
    watch = Watch()
    side_by_side(watch.work, range(3), 2, in_turns=False)
    assert watch.most == 2 and watch.begun(2) > min(watch.ended(0), watch.ended(1))


def test_a_failure_ends_those_that_wait_for_a_turn_as_well() -> None:
    steps: list[int] = []

    def work(item: int, check: Check) -> None:
        for step in range(1000):
            if item == 2 and step == 3:
                raise ZeroDivisionError
            time.sleep(0.005)
            steps.append(item)
            check()

    with pytest.raises(ZeroDivisionError):
        side_by_side(work, range(3), 2)
    assert len(steps) < 100 and steps.count(2) == 3
