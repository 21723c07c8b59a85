"""A federation learned both ways: the reference in the clusters that it is given, and near enough."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import accuracy
from benchmarks.cell import grouped, plain_federation, turns
from benchmarks.stages import Bench
from fedbicross_flwr.compute import Compute, cpu_threads
from fedbicross_flwr.models import build_model

SMALL = replace(
    accuracy.SIZES, width=4, images=16, iterations=2, epochs=6, batch=16, clients=3, client_images=16
)
BENCH = Bench(SMALL, Compute(torch.device("cpu")), workers=1)


def test_both_sides_learn_the_same_federation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "SIZES", SMALL)
    few = {"data.phantom_train": 480, "data.phantom_test": 96, "partition.alpha": float("inf")}
    monkeypatch.setattr(accuracy, "DATA", few)
    with cpu_threads(1):
        found = accuracy.compare(BENCH, 0)
    assert list(found) == ["ours", "reference"]
    for side in found.values():
        assert set(side) == {*accuracy.ROWS, "seconds"} and side["seconds"] > 0
        assert side["local-only"] > 0.3, "eight classes, of which one is guessed right by chance"
    assert abs(found["ours"]["local-only"] - found["reference"]["local-only"]) < 0.25


def test_the_reference_learns_in_the_clusters_that_it_is_given() -> None:
    datas = [BENCH.data(16, client) for client in range(3)]
    with cpu_threads(1):
        sent, shipped, personal = plain_federation(BENCH, datas, {0: 1, 1: 0, 2: 1})
    assert shipped[0] is shipped[2] and shipped[1] is not shipped[0]
    assert not torch.equal(personal[0].state_dict()["fc.weight"], shipped[0].state_dict()["fc.weight"])
    assert len({id(model) for model in (*sent, *personal)}) == 6


def test_the_references_draws_follow_the_seed_and_its_students_the_rate() -> None:
    datas = [BENCH.data(16, client) for client in range(2)]
    clusters = {0: 0, 1: 1}
    still = replace(BENCH, sizes=replace(SMALL, student_lr=0.0))
    with cpu_threads(1):
        first, other = (plain_federation(BENCH, datas, clusters, seed) for seed in (0, 1))
        _, unmoved, _ = plain_federation(still, datas, clusters)
    for mine, theirs in zip([first[0], first[1]], [other[0], other[1]], strict=True):
        assert not torch.equal(mine[0].state_dict()["fc.weight"], theirs[0].state_dict()["fc.weight"])
    start = build_model(SMALL.spec, 0).state_dict()["fc.weight"]
    assert torch.equal(unmoved[0].state_dict()["fc.weight"], start)
    assert not torch.equal(first[1][0].state_dict()["fc.weight"], start)


def test_clients_are_grouped_by_the_clusters_that_they_are_in() -> None:
    first, second, third = BENCH.models(3)
    assert grouped([first, second, third], {0: 1, 1: 0, 2: 1}) == [[second], [first, third]]
    assert grouped([first, second, third], turns(3, 2)) == [[first, third], [second]]
