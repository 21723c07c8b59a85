"""A whole cell, from the clients' training to their personal models, both ways."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from benchmarks import reference
from benchmarks.sizes import DISTILLATION, TRAINING, Sizes
from benchmarks.stages import Bench, Piece, Stage, void
from fedbicross_flwr.cross_cluster import split_indices
from fedbicross_flwr.distillation import personalise
from fedbicross_flwr.inversion import balanced_labels
from fedbicross_flwr.labelled_images import LabelledImages
from fedbicross_flwr.methods import METHODS, ClientUpload, ServerOutcome, ServerTask
from fedbicross_flwr.models import StateDict, build_model, state_of
from fedbicross_flwr.parallel import Check, side_by_side
from fedbicross_flwr.progress import Silent
from fedbicross_flwr.shipment import Shipment
from fedbicross_flwr.training import train_client


def whole_cell(bench: Bench) -> Stage:
    """Return the cell; its figures are those of a cell, not of a step."""
    sizes = bench.sizes
    datas = [bench.data(sizes.client_images, client) for client in range(sizes.clients)]
    images = sizes.clients * sizes.client_images

    def ours(index: int) -> Piece:
        return lambda: cell(bench, datas)

    def plain(index: int) -> Piece:
        return lambda: plain_cell(bench, datas)

    name = f"whole cell, N = {sizes.clients}, K = {sizes.clusters}, T = {sizes.iterations}"
    return Stage(name, ours, plain, 1, images, alone=True, warm_up=False, goals={"cpu": 2.5})


def cell(bench: Bench, datas: Sequence[LabelledImages]) -> None:
    """Do what a run does between reading images and scoring models."""
    config = bench.sizes.config(runtime__server_threads=bench.workers)

    def upload(client: int, check: Check) -> ClientUpload:
        model = train_client(datas[client], bench.task(client))
        return ClientUpload(client, len(datas[client]), in_turn(model.state, client, bench.sizes))

    uploads = side_by_side(upload, range(len(datas)), bench.workers)
    task = ServerTask(bench.sizes.spec, config, bench.compute, Silent())
    outcome = serve_in_turn(uploads, task)

    def distil(client: int, check: Check) -> None:
        shipment = Shipment(outcome.models[outcome.assignment[client]], outcome.replay)
        void(personalise(datas[client], shipment, uploads[client].state, bench.task(client)))

    side_by_side(distil, range(len(datas)), bench.workers)


def in_turn(state: StateDict, client: int, sizes: Sizes) -> StateDict:
    """Return a client's model with one row of its classifier lengthened.

    Clustering by the norms of rows then deals clients to clusters in turn, as the reference does: clusters of
    other sizes would take other memory, and share the cores otherwise.
    """
    weight = state["fc.weight"].clone()
    weight[client % sizes.clusters] *= 4.0
    return {**state, "fc.weight": weight}


def uploads_in_turn(models: Sequence[nn.Module], sizes: Sizes) -> list[ClientUpload]:
    """Return an upload of each model, so that clients are dealt to clusters in turn."""
    return [
        ClientUpload(client, 1, in_turn(state_of(model), client, sizes))
        for client, model in enumerate(models)
    ]


def serve_in_turn(uploads: Sequence[ClientUpload], task: ServerTask) -> ServerOutcome:
    """Run stages 1 and 2 on models that are dealt to clusters in turn."""
    outcome = METHODS["fedbicross"].serve(uploads, task)
    assert outcome.assignment == turns(len(uploads), len(outcome.models))
    return outcome


def plain_cell(bench: Bench, datas: Sequence[LabelledImages]) -> None:
    """Do the same by the reference; clients are dealt to clusters in turn."""
    plain_federation(bench, datas, turns(len(datas), bench.sizes.clusters))


def plain_federation(
    bench: Bench, datas: Sequence[LabelledImages], clusters: Mapping[int, int], seed: int = 0
) -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
    """Learn a federation by the reference; return each client's own, cluster's and personal model.

    Parameters
    ----------
    clusters : mapping of int to int
        Each client's cluster.
    seed : int, optional
        Of the networks' first weights and the noise that inversions start from.
    """
    sizes, device = bench.sizes, bench.compute.device
    sent: list[nn.Module] = []
    for data in datas:
        model = build_model(sizes.spec, seed).to(device)
        reference.train(model, bench.dealt(data, sizes.epochs), *TRAINING)
        sent.append(model.eval())
    students = plain_stages(bench, grouped(sent, clusters), seed)
    shipped = [students[clusters[client]] for client in range(len(datas))]
    personal = []
    for data, own, student in zip(datas, sent, shipped, strict=True):
        made = copy.deepcopy(student)
        reference.personalise(made, (student, own), bench.dealt(data, sizes.epochs), *DISTILLATION)
        personal.append(made)
    return sent, shipped, personal


def turns(clients: int, clusters: int) -> dict[int, int]:
    """Return each client's cluster where they are dealt in turn."""
    return {client: client % clusters for client in range(clients)}


def grouped(models: Sequence[nn.Module], clusters: Mapping[int, int]) -> list[list[nn.Module]]:
    """Return the models of each cluster, given each client's."""
    count = max(clusters.values()) + 1
    return [[model for client, model in enumerate(models) if clusters[client] == k] for k in range(count)]


def plain_stages(bench: Bench, groups: Sequence[Sequence[nn.Module]], seed: int = 0) -> list[nn.Module]:
    """Do stages 1 and 2 by the reference on the models of each cluster; return the students G_k."""
    sizes, device = bench.sizes, bench.compute.device
    labels = balanced_labels(sizes.images, torch.ones(sizes.spec.num_classes))
    rows = split_indices(labels, 0.8)
    clusters = []
    for k, members in enumerate(groups):
        noise = bench.noise(sizes.images, 1000 * seed + k)
        inversion = reference.Inversion(
            members, labels.to(device), noise, 0.05, 10.0, 2.5e-5, 2, torch.Generator()
        )
        inversion.run(sizes.iterations)
        adapted = reference.adapt(members, [x.to(device) for x in inversion.trajectory], 0.9)
        clusters.append(reference.Cluster(members, adapted, inversion.trajectory, *rows))
    students = [build_model(sizes.spec, 1000 * seed + k).to(device).train() for k in range(sizes.clusters)]
    weights = torch.full((sizes.clusters, sizes.clusters), 1 / sizes.clusters, device=device)
    replay = reference.CrossCluster(clusters, students, weights, 20.0, sizes.student_lr, 2e-3, 0.9, 5e-4)
    for t in range(1, sizes.iterations + 1):
        replay.step(t, sizes.iterations)
    return students
