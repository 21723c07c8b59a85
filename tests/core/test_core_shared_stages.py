"""Stages that runs share: what was made of one run's images is never taken for another's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from generated import server_task, trained_uploads
from generated import smooth_model as smooth_model
from tiny import noise
from tiny import one_thread as one_thread

from fedbicross_flwr.clustering import Clustering
from fedbicross_flwr.cross_cluster import Source
from fedbicross_flwr.ensemble import Ensemble
from fedbicross_flwr.inversion import Synthesis
from fedbicross_flwr.methods.cluster_synthesis import Cluster, build_source, synthesise
from fedbicross_flwr.methods.protocol import ServerTask, StageResult

STEPS = 2


class Shared:
    """Stages that several runs take from one another, by all that shaped them."""

    def __init__(self) -> None:
        self.kept: dict[str, StageResult] = {}

    def run(
        self, name: str, kind: str, compute: Callable[[], StageResult], shaped_by: str = ""
    ) -> StageResult:
        if shaped_by not in self.kept:
            self.kept[shaped_by] = compute()
        return self.kept[shaped_by]


def source_of(stages: Shared, seed: int) -> Source:
    """What one run makes of images that its own inversion came to."""
    uploads = trained_uploads()
    task = dataclasses.replace(
        server_task(cache="shared", inversion__iterations=STEPS, inversion__batch_size=12), stages=stages
    )
    ensemble = Ensemble([task.load(upload.state) for upload in uploads], "logits")
    cluster = Cluster(0, uploads, ensemble, uploads, ensemble)
    iterates = {t: noise(12, 1, 28, 28, seed=seed + t) for t in range(1, STEPS + 1)}
    return build_source(
        0, cluster, Synthesis(iterates, torch.arange(12) % 3, torch.zeros(0)), task, lambda: None
    )


def test_answers_belong_to_the_images_that_were_shown() -> None:
    """On a GPU two runs with the same settings come to images that differ."""
    shared = Shared()
    first, second = source_of(shared, 0), source_of(shared, 100)
    for t in first.iterates:
        assert not torch.equal(first.teacher[t], second.teacher[t])
        assert torch.equal(second.teacher[t], source_of(Shared(), 100).teacher[t])
    assert len(shared.kept) == 2
    assert torch.equal(source_of(shared, 0).teacher[STEPS], first.teacher[STEPS])
    assert len(shared.kept) == 2, "the same images are answered once"


def test_each_round_and_cluster_has_images_of_its_own() -> None:
    shared = Shared()
    uploads = trained_uploads()
    task = dataclasses.replace(
        server_task(cache="shared", inversion__iterations=STEPS, inversion__batch_size=12), stages=shared
    )
    ensemble = Ensemble([task.load(upload.state) for upload in uploads], "logits")
    found = Clustering(
        (0,) * len(uploads), np.eye(len(uploads)), np.eye(2), None, np.full((len(uploads), 3), 1 / 3)
    )
    made = {
        (number, round): synthesise(
            Cluster(number, uploads, ensemble, uploads, ensemble), round, found, task, lambda: None
        ).images
        for number in (0, 1)
        for round in (0, 1)
    }
    assert len(shared.kept) == len(made)
    assert len({images.sum().item() for images in made.values()}) == len(made)


@pytest.mark.parametrize("cache", ["", "shared"])
def test_contents_count_where_stages_are_shared(cache: str) -> None:
    task: ServerTask = server_task(cache=cache)
    one, other = ({"x": torch.full((2,), value)} for value in (1.0, 2.0))
    assert (task.content(one) != task.content(other)) == bool(cache)
