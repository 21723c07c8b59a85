"""What stage 2 replays, in which order, and how the synthetic images are split between its two levels."""

from __future__ import annotations

import pytest
import torch
from tiny import generator

from fedbicross_flwr.config_fedbicross import CrossClusterConfig, split_sizes
from fedbicross_flwr.cross_cluster import split_indices
from fedbicross_flwr.cross_replay import replay_schedule, replayed_steps


@pytest.mark.parametrize(("size", "fraction"), [(96, 0.8), (256, 0.8), (10, 0.7), (4, 0.5), (37, 0.65)])
def test_split_indices_are_disjoint_complete_and_balanced(size: int, fraction: float) -> None:
    labels = torch.arange(size) % 5
    train, validation = split_indices(labels, fraction)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(size))
    assert (len(train), len(validation)) == split_sizes(size, fraction)
    assert train.tolist() == sorted(train.tolist()) and validation.tolist() == sorted(validation.tolist())
    shares = torch.bincount(labels[validation], minlength=5) - torch.bincount(labels, minlength=5) * (
        1 - fraction
    )
    assert shares.abs().max() < 1.5


def test_split_of_80_20_in_labels_by_hand() -> None:
    # Ten images of each label: two of each are kept for validation, whatever their order.
    labels = torch.tensor([0, 1, 2] * 10)[torch.randperm(30, generator=generator(3))]
    _, validation = split_indices(labels, 0.8)
    assert torch.bincount(labels[validation]).tolist() == [2, 2, 2]


def test_replay_in_order_shuffled_sweeps_and_late_fraction() -> None:
    plain = CrossClusterConfig(replay_fraction=1.0, replay_order="in_order", sweeps=1)
    assert replay_schedule(5, plain, generator()) == [1, 2, 3, 4, 5]
    late = CrossClusterConfig(replay_fraction=0.3, replay_order="in_order", sweeps=2)
    assert replay_schedule(10, late, generator()) == [8, 9, 10, 8, 9, 10]
    assert replayed_steps(3, CrossClusterConfig(replay_fraction=0.01)) == [3]
    shuffled = CrossClusterConfig(replay_fraction=0.5, replay_order="shuffled", sweeps=3)
    order = replay_schedule(40, shuffled, generator(1))
    sweeps = [order[start : start + 20] for start in (0, 20, 40)]
    assert len(order) == 60 and all(sorted(sweep) == list(range(21, 41)) for sweep in sweeps)
    assert sweeps[0] != sweeps[1] != sweeps[2] and sweeps[0] != sorted(sweeps[0])
    assert order == replay_schedule(40, shuffled, generator(1)) != replay_schedule(40, shuffled, generator(2))
