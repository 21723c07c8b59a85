"""Pieces of work side by side: order, failures, interruption, threads."""

from __future__ import annotations

import threading
import time

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
