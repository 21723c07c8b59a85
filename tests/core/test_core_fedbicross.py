"""How FedBiCross puts its parts together: which models, weights, images and answers each of them is given."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from generated import SPEC, assert_close, server_task
from generated import smooth_model as smooth_model
from tiny import CPU, all_equal
from tiny import one_thread as one_thread
from torch import Tensor

from fedbicross_flwr.clustering import Clustering
from fedbicross_flwr.cross_cluster import Source
from fedbicross_flwr.ensemble import Ensemble, class_shares, ensemble_scores
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.methods.cluster_starts import STARTS
from fedbicross_flwr.methods.cluster_synthesis import build_sources, synthesise_all
from fedbicross_flwr.methods.fedavg import average_states
from fedbicross_flwr.methods.fedbicross import build_clusters, build_targets, fedbicross, made_to_rehearse
from fedbicross_flwr.methods.protocol import ClientUpload
from fedbicross_flwr.models import StateDict, build_model, load_state, state_of
from fedbicross_flwr.noise_adaptation import teacher_scores
from fedbicross_flwr.seeds import torch_generator

ASSIGNMENT = (0, 1, 0, 2)
SIMILARITY = np.array([[1.0, 0.5, 0.2], [0.5, 1.0, -0.4], [0.2, -0.4, 1.0]])
SETTINGS: dict[str, Any] = {
    "clustering__clusters": 3,
    "inversion__iterations": 3,
    "inversion__batch_size": 12,
    "cross_cluster__replay_fraction": 1.0,
    "cross_cluster__sweeps": 1,
}


def uploads() -> list[ClientUpload]:
    """Four clients whose models differ; the third has the most images of its cluster."""
    states = [state_of(build_model(SPEC, 40 + client)) for client in range(4)]
    for client, state in enumerate(states):
        state["fc.weight"][client % SPEC.num_classes] *= 4.0  # a class that it saw often
    return [ClientUpload(client, (30, 40, 50, 20)[client], states[client]) for client in range(4)]


def clustering() -> Clustering:
    tendency = np.full((4, SPEC.num_classes), 1 / SPEC.num_classes)
    return Clustering(ASSIGNMENT, np.eye(4), SIMILARITY, None, tendency)


def average(*clients: int) -> StateDict:
    chosen = [uploads()[client] for client in clients]
    return average_states([one.state for one in chosen], [float(one.num_samples) for one in chosen])


@pytest.mark.parametrize(
    ("start", "clients"), [("average", (0, 2)), ("federation", (0, 1, 2, 3)), ("member", (2,))]
)
def test_where_a_cluster_model_starts(start: str, clients: tuple[int, ...]) -> None:
    everyone = uploads()
    model = STARTS[start]([everyone[0], everyone[2]], everyone, 0, server_task())
    assert all_equal(state_of(model), average(*clients))


def test_random_starts_differ_by_cluster_and_by_seed() -> None:
    starts = [
        state_of(STARTS["random"](uploads(), uploads(), cluster, server_task(seed=seed)))["fc.weight"]
        for cluster, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2]) and not torch.equal(starts[0], starts[3])


def test_every_target_has_its_own_row_of_weights_and_its_own_start() -> None:
    options = {"cross_cluster__weights": "similarity", "cross_cluster__student_init": "average"}
    targets = build_targets(uploads(), clustering(), server_task(**SETTINGS, **options))
    expected = np.clip(SIMILARITY, 0, None)
    expected /= expected.sum(1, keepdims=True)
    assert [target.cluster for target in targets] == [0, 1, 2]
    for target, row, members in zip(targets, expected, ((0, 2), (1,), (3,)), strict=True):
        assert target.weights.tolist() == pytest.approx(row.tolist())
        assert all_equal(state_of(target.model), average(*members))


@pytest.mark.parametrize("scope", ["cluster", "federation"])
def test_a_cluster_is_inverted_by_its_own_and_answered_by_whom_the_scope_says(scope: str) -> None:
    task = server_task(**SETTINGS, teacher__scope=scope)
    clusters = build_clusters(uploads(), clustering(), task)
    images = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    for cluster, members in zip(clusters, ((0, 2), (1,), (3,)), strict=True):
        answerers = members if scope == "cluster" else (0, 1, 2, 3)
        assert tuple(one.client for one in cluster.members) == members
        assert tuple(one.client for one in cluster.answerers) == answerers
        for ensemble, clients in ((cluster.ensemble, members), (cluster.teacher, answerers)):
            models = [load_state(SPEC, uploads()[client].state).eval() for client in clients]
            plain = Ensemble(models, task.config.teacher.aggregation)
            assert torch.allclose(
                ensemble_scores(ensemble, images, CPU), ensemble_scores(plain, images, CPU), atol=1e-6
            )


def test_labels_are_in_proportion_to_what_the_members_classifiers_tell() -> None:
    task = server_task(**SETTINGS, inversion__labels="classifier_norms")
    clusters = build_clusters(uploads(), clustering(), task)
    for cluster, made in zip(clusters, synthesise_all(0, clusters, clustering(), task), strict=True):
        shares = torch.stack([class_shares(load_state(SPEC, one.state)) for one in cluster.members]).mean(0)
        counts = torch.bincount(made.labels, minlength=SPEC.num_classes)
        assert counts.sum() == 12 and (counts - 12 * shares).abs().max() < 1.0
        assert counts.max() - counts.min() > 2, "or equal shares would pass"


def test_a_source_has_the_plain_and_the_adapted_answers_of_its_own_teacher() -> None:
    task = server_task(**SETTINGS)
    clusters = build_clusters(uploads(), clustering(), task)
    syntheses = synthesise_all(0, clusters, clustering(), task)
    for source, cluster, made in zip(
        build_sources(0, clusters, syntheses, task), clusters, syntheses, strict=True
    ):
        replayed = sorted(source.iterates)
        plain, adapted = teacher_scores(cluster.teacher, made.iterates, replayed, task.config.teacher, CPU)
        assert replayed == [1, 2, 3]
        for t in replayed:
            assert torch.equal(source.teacher[t], plain[t]) and torch.equal(source.adapted[t], adapted[t])
            assert not torch.allclose(plain[t], adapted[t], atol=1e-3), "or the two could be exchanged"


def test_a_later_synthesis_round_goes_on_where_the_former_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rate falls over all rounds together, and weights are kept from one to the next."""
    seen: list[tuple[int, int, Tensor]] = []
    module = sys.modules[fedbicross.__module__]
    optimise = module.optimise

    def watched(targets: Any, sources: list[Source], order: Any, iterations: int, *rest: Any) -> Tensor:
        seen.append((rest[0], rest[1], torch.stack([target.weights.clone() for target in targets])))
        history: Tensor = optimise(targets, sources, order, iterations, *rest)
        return history

    monkeypatch.setattr(module, "optimise", watched)
    task = server_task(**SETTINGS, cross_cluster__synthesis_rounds=2, cross_cluster__weights="learned")
    found = fedbicross(uploads(), task).findings
    assert [(done, total) for done, total, _ in seen] == [(0, 6), (3, 6)]
    assert found.weights is not None and len(found.weights) == 7
    assert torch.equal(found.weights[3], seen[1][2]) and torch.equal(found.weights[0], seen[0][2])


@pytest.mark.parametrize("start", ["average", "random"])
def test_the_model_of_one_cluster_does_not_depend_on_the_order_of_clients(start: str) -> None:
    options = SETTINGS | {"clustering__clusters": 1, "cross_cluster__student_init": start}
    first, turned = (fedbicross(sent, server_task(**options)) for sent in (uploads(), uploads()[::-1]))
    assert_close(first.models[0], turned.models[0])
    assert first.assignment == turned.assignment == dict.fromkeys(range(4), 0)


def test_labels_can_be_in_proportion_to_what_the_members_answer_to_probes() -> None:
    told = np.full((4, SPEC.num_classes), 0.1)
    for client, favourite in enumerate((0, 1, 2, 2)):
        told[client, favourite] = 1.0 - 0.1 * (SPEC.num_classes - 1)
    found = Clustering(ASSIGNMENT, np.eye(4), SIMILARITY, None, told)
    task = server_task(**SETTINGS, inversion__labels="cluster_prior")
    clusters = build_clusters(uploads(), found, task)
    for members, made in zip(((0, 2), (1,), (3,)), synthesise_all(0, clusters, found, task), strict=True):
        counts = torch.bincount(made.labels, minlength=SPEC.num_classes).numpy()
        assert counts.sum() == 12 and abs(counts - 12 * told[list(members)].mean(0)).max() < 1.0


def test_what_clients_rehearse_has_the_answers_of_each_cluster_s_teacher() -> None:
    task = server_task(**SETTINGS, teacher__scope="federation")
    clusters = build_clusters(uploads(), clustering(), task)
    made = synthesise_all(0, clusters, clustering(), task)
    replay = made_to_rehearse(clusters, made, task)
    assert torch.equal(replay.images, torch.cat([one.images.half() for one in made]))
    for index, (cluster, one) in enumerate(zip(clusters, made, strict=True)):
        rows = slice(12 * index, 12 * (index + 1))
        answers = ensemble_scores(cluster.teacher, one.images.float(), CPU)
        assert torch.allclose(replay.scores[rows], answers.float(), atol=1e-5)
        others = ensemble_scores(cluster.ensemble, one.images.float(), CPU)
        assert not torch.allclose(answers, others, atol=1e-3), "or it would not matter who answers"


def test_cluster_models_that_diverge_are_not_shipped() -> None:
    task = server_task(**SETTINGS, cross_cluster__lr=1e30)
    with pytest.raises(FedBiCrossError, match=r"diverged; lower cross_cluster\.lr = 1e\+30"):
        fedbicross(uploads(), task)


def test_clusters_and_rounds_begin_with_noise_of_their_own() -> None:
    """With steps that move nothing the iterates are the noise that inversion began with."""
    task = server_task(**{**SETTINGS, "inversion__lr": 1e-9})
    clusters = build_clusters(uploads(), clustering(), task)
    first = {
        (cluster.number, round): one.images.float()
        for round in (0, 1)
        for cluster, one in zip(clusters, synthesise_all(round, clusters, clustering(), task), strict=True)
    }
    for key, images in first.items():
        drawn = torch.randn(images.shape, generator=torch_generator(task.config.seed, "inversion", *key))
        assert torch.allclose(images, drawn, atol=1e-3)
    assert len({images.sum().item() for images in first.values()}) == 6
