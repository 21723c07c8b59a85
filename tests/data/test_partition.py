"""The partition: everything once, proportions, determinism, skew, saving, errors, and no network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedbicross_flwr.data.partition import Partition, deal_test, dirichlet_partition
from fedbicross_flwr.errors import FedBiCrossError

CLASSES = 6


def _labels(count: int, seed: int = 0) -> NDArray[np.int64]:
    skewed = np.random.default_rng(seed).dirichlet(np.full(CLASSES, 3.0))
    return np.random.default_rng(seed).choice(CLASSES, count, p=skewed).astype(np.int64)


TRAIN, TEST = _labels(900), _labels(300, 1)


def _covers(shares: tuple[NDArray[np.int64], ...], count: int) -> bool:
    return np.array_equal(np.sort(np.concatenate(shares)), np.arange(count))


@settings(max_examples=25, deadline=None)
@given(
    clients=st.integers(1, 12),
    alpha=st.sampled_from([0.1, 0.3, 1.0, 100.0, float("inf")]),
    balance=st.booleans(),
    seed=st.integers(0, 2**40),
)
def test_both_parts_are_dealt_exactly_once(clients: int, alpha: float, balance: bool, seed: int) -> None:
    partition = dirichlet_partition(
        TRAIN, TEST, clients=clients, alpha=alpha, min_samples=2, balance=balance, seed=seed
    )
    assert partition.num_clients == clients == len(partition.test)
    assert _covers(partition.train, 900) and _covers(partition.test, 300)
    assert min(map(len, partition.train)) >= 2
    assert partition.counts(TRAIN, CLASSES).shape == (clients, CLASSES)
    np.testing.assert_array_equal(partition.counts(TRAIN, CLASSES).sum(0), np.bincount(TRAIN))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), clients=st.integers(1, 7), tests=st.integers(0, 120))
def test_the_test_deal_follows_the_training_proportions(
    data: st.DataObject, clients: int, tests: int
) -> None:
    owner = np.asarray(data.draw(st.lists(st.integers(0, clients - 1), min_size=40, max_size=40)))
    train_labels, test_labels = np.arange(40) % 4, np.arange(tests, dtype=np.int64) % 4
    train = tuple(np.flatnonzero(owner == client) for client in range(clients))
    dealt = deal_test(train_labels, test_labels, train, seed=3)
    assert _covers((np.empty(0, np.int64), *dealt), tests)
    for label in range(4):
        share = np.asarray([(train_labels[rows] == label).sum() for rows in train]) / 10
        got = np.asarray([(test_labels[rows] == label).sum() for rows in dealt])
        # Largest remainder stays within one of the exact share, and gives nothing to whom holds nothing.
        assert (np.abs(got - share * (test_labels == label).sum()) < 1).all()
        assert (got[share == 0] == 0).all()


def test_largest_remainder_by_hand() -> None:
    train = (np.arange(0, 5), np.arange(5, 8), np.arange(8, 10))
    dealt = deal_test(np.zeros(10, np.int64), np.zeros(7, np.int64), train, seed=0)
    assert [len(rows) for rows in dealt] == [4, 2, 1]  # shares 3.5, 2.1, 1.4


def test_deterministic_and_seeded() -> None:
    def deal(seed: int) -> Partition:
        return dirichlet_partition(TRAIN, TEST, clients=5, alpha=0.3, seed=seed)

    first, again, other = deal(1), deal(1), deal(2)
    for mine, same in zip(first.train + first.test, again.train + again.test, strict=True):
        np.testing.assert_array_equal(mine, same)
    assert any(not np.array_equal(a, b) for a, b in zip(first.train, other.train, strict=True))


def test_smaller_alpha_is_more_skewed_and_inf_is_even() -> None:
    def largest_class(alpha: float) -> float:
        shares = []
        for seed in range(5):
            partition = dirichlet_partition(TRAIN, TEST, clients=5, alpha=alpha, seed=seed)
            counts = partition.counts(TRAIN, CLASSES)
            shares.append((counts.max(1) / counts.sum(1)).mean())
        return float(np.mean(shares))

    assert largest_class(0.1) > largest_class(1.0) > largest_class(float("inf"))
    even = dirichlet_partition(TRAIN, TEST, clients=7, alpha=float("inf"), seed=0).counts(TRAIN, CLASSES)
    assert np.ptp(even, axis=0).max() <= 1 and np.ptp(even.sum(1)) <= 1


def test_balance_gives_no_more_to_whom_has_an_equal_share() -> None:
    def violations(balance: bool) -> int:
        found = 0
        for seed in range(6):
            partition = dirichlet_partition(
                TRAIN, TEST, clients=5, alpha=0.2, balance=balance, min_samples=1, seed=seed
            )
            counts = partition.counts(TRAIN, CLASSES)
            held_before = np.cumsum(counts, axis=1) - counts
            # A rounding remainder of one image may still fall to a full client.
            found += int(((held_before > 900 / 5) & (counts > 1)).sum())
        return found

    assert violations(True) == 0 < violations(False)


def test_a_clients_first_tenth_is_no_sorted_slice() -> None:
    partition = dirichlet_partition(TRAIN, TEST, clients=1, alpha=1.0, seed=0)
    first = TRAIN[partition.train[0][:90]]
    assert len(np.unique(first)) == CLASSES and (np.diff(first) < 0).sum() > 10
    assert not np.array_equal(partition.test[0], np.sort(partition.test[0]))


def test_empty_test_part() -> None:
    partition = dirichlet_partition(TRAIN, np.empty(0, np.int64), clients=3, alpha=1.0, seed=0)
    assert [len(rows) for rows in partition.test] == [0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clients": 0}, "partition.clients = 0"),
        ({"alpha": 0.0}, "partition.alpha = 0.0"),
        ({"alpha": -1.0}, "partition.alpha = -1.0"),
        ({"alpha": float("nan")}, "partition.alpha = nan"),
        ({"min_samples": 0}, "partition.min_samples = 0"),
        ({"clients": 100}, "need 1000 training images, the data has 900"),
        ({"clients": 20, "min_samples": 45}, "45 could not be met for 20 clients at partition.alpha = 0.3"),
        ({"alpha": 1e-9, "clients": 9}, "could not be met for 9 clients at partition.alpha = 1e-09"),
    ],
)
def test_settings_that_cannot_be_met(changes: dict[str, float], words: str) -> None:
    arguments = {"clients": 5, "alpha": 0.3, "seed": 0, **changes}
    with pytest.raises(FedBiCrossError, match=words) as raised:
        dirichlet_partition(TRAIN, TEST, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_save_and_load(tmp_path: Path) -> None:
    partition = Partition(
        train=(np.asarray([3, 1]), np.asarray([0, 2, 4])), test=(np.empty(0, np.int64), np.asarray([0]))
    )
    path = tmp_path / "partition.json"
    partition.save(path)
    loaded = Partition.load(path)
    for mine, same in zip(partition.train + partition.test, loaded.train + loaded.test, strict=True):
        np.testing.assert_array_equal(mine, same)
        assert same.dtype == np.int64
    assert [file.name for file in tmp_path.iterdir()] == ["partition.json"]


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"train": [[1]], "test": []}', '{"train": [["a"]], "test": [[0]]}',
     '{"train": [[18446744073709551615]], "test": [[0]]}',
     '{"train": [[-1]], "test": [[0]]}', '{"train": [[0.5]], "test": [[0]]}', '{"train": [], "test": []}'],
)  # fmt: skip
def test_files_that_are_no_partition(text: str, tmp_path: Path) -> None:
    path = tmp_path / "partition.json"
    path.write_text(text)
    with pytest.raises(FedBiCrossError, match=r"partition.json: is not a partition.*deal anew"):
        Partition.load(path)
    with pytest.raises(FedBiCrossError, match="no such partition file"):
        Partition.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("clients", "images", "words"),
    [
        (3, {"train": 9, "test": 2}, "deals to 2 clients, and there are 3"),
        (2, {"train": 8, "test": 2}, "deals image 8 of the train part, which has 8"),
        (2, {"train": 9, "test": 1}, "deals image 1 of the test part, which has 1"),
    ],
)
def test_a_partition_of_other_clients_or_images_is_named(
    clients: int, images: dict[str, int], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "partition.json"
    path.write_text('{"train": [[8], [0]], "test": [[], [1]]}')
    assert Partition.load(path, 2, {"train": 9, "test": 2}).num_clients == 2
    with pytest.raises(FedBiCrossError, match=f"partition.json: {words}; delete it to deal anew"):
        Partition.load(path, clients, images)


def test_no_network_no_warnings_no_progress_bars() -> None:
    code = """
import socket, numpy as np
def refuse(*args, **kwargs):
    print("network", args); raise OSError("refused")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from fedbicross_flwr.data.partition import dirichlet_partition
dirichlet_partition(np.arange(200) % 4, np.arange(20) % 4, clients=6, alpha=.1, min_samples=10, seed=0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")
