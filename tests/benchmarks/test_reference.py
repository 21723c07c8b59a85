"""The plain reference of the benchmarks and the software compute the same."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from benchmarks import reference
from benchmarks.cell import whole_cell
from benchmarks.sizes import Sizes
from benchmarks.stages import STAGES, Bench
from benchmarks.timing import time_stage
from fedbicross_flwr.batch_norm import batch_norms, running
from fedbicross_flwr.compute import Compute, cpu_threads
from fedbicross_flwr.cross_cluster import Source, Target, split_indices
from fedbicross_flwr.cross_weights import project_onto_simplex
from fedbicross_flwr.distillation import personalise
from fedbicross_flwr.inversion import balanced_labels, invert
from fedbicross_flwr.models import build_model, load_state, state_of
from fedbicross_flwr.noise_adaptation import adapt_statistics, teacher_scores
from fedbicross_flwr.seeds import derive_seed, torch_generator
from fedbicross_flwr.sgd import batches
from fedbicross_flwr.shipment import Shipment
from fedbicross_flwr.training import train_client

SMALL = Sizes(
    width=4, members=2, images=20, clusters=2, batch=8, steps=2, clients=4, client_images=16, iterations=2
)
CPU = torch.device("cpu")
BENCH = Bench(SMALL, Compute(CPU), workers=2)
ROUGH = Bench(SMALL, Compute(CPU, torch.bfloat16), workers=2)


def precisions(rough: float) -> pytest.MarkDecorator:
    """With the share of the whole move by which our result may miss the reference's, always in float32.

    Rounding grows from step to step, here up to six of them, and on noise gradients nearly cancel: of a
    single step of a client's training bfloat16 misses .3. A wrong gradient misses by one or more.
    """
    return pytest.mark.parametrize(
        ("bench", "off"), [(BENCH, 5e-3), (ROUGH, rough)], ids=["float32", "bfloat16"]
    )


LABELS = balanced_labels(SMALL.images, torch.ones(8))


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def running_of(model: nn.Module) -> list[Tensor]:
    return [buffer for layer in batch_norms(model) for buffer in running(layer)]


def missed(made: Iterable[Tensor], expected: Iterable[Tensor], start: Iterable[Tensor]) -> float:
    """By which share of the way from the start a result misses what is expected."""
    found, wanted, begun = flat(made), flat(expected), flat(start)
    assert not torch.equal(wanted, begun)
    return float((found - wanted).norm() / (wanted - begun).norm())


def trajectory(seed: int) -> dict[int, Tensor]:
    return {t: BENCH.noise(SMALL.images, 10 * seed + t) for t in range(1, SMALL.steps + 1)}


@precisions(0.45)
def test_client_training(bench: Bench, off: float) -> None:
    data, task = bench.data(24), bench.task(1)
    made = load_state(SMALL.spec, train_client(data, task).state)
    order = torch_generator(task.config.seed, "training", 1)
    dealt = [
        (data.images[rows], data.labels[rows])
        for _ in range(SMALL.epochs)
        for rows in batches(len(data), SMALL.batch, order)
    ]
    start = build_model(SMALL.spec, derive_seed(task.config.seed, "initial-weights", None))
    model = copy.deepcopy(start)
    recipe = task.config.client
    losses = reference.train(model, dealt, recipe.lr, recipe.momentum, recipe.weight_decay)
    assert len(losses) == 6
    assert missed(made.parameters(), model.parameters(), start.parameters()) < off
    assert missed(*(running_of(one) for one in (made, model, start))) < off


@pytest.mark.parametrize(("teachers", "at_once"), [("together", 0), ("in_turn", 0), ("in_turn", 8)])
@pytest.mark.parametrize(
    ("bench", "off", "off_loss"), [(BENCH, 1e-3, 1e-4), (ROUGH, 0.3, 1e-2)], ids=["float32", "bfloat16"]
)
def test_inversion(bench: Bench, off: float, off_loss: float, teachers: str, at_once: int) -> None:
    models = BENCH.models(2)
    plain: list[Tensor] = []
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn((SMALL.images, 3, 28, 28), generator=generator)
    loop = reference.Inversion(copy.deepcopy(models), LABELS, noise, 0.05, 10.0, 2.5e-5, 2, generator, plain)
    config = SMALL.config(
        inversion__iterations=4, inversion__teachers=teachers, inversion__images_at_once=at_once
    ).inversion
    last = loop.run(4)
    made = invert(
        bench.ensemble(models), LABELS, 3, range(5), config, torch.Generator().manual_seed(3), bench.compute
    )
    # Adam's first steps have the size of lr whatever the gradient: where it is nearly zero, rounding decides.
    moved = (last - noise).abs().mean()
    assert (made.images - last).abs().mean() < off * moved
    for t, images in enumerate(plain, start=1):
        assert (made.iterates[t].float() - images).abs().mean() < off * moved
    terms = made.diagnostics[:, :3] @ torch.tensor([1.0, 10.0, 2.5e-5])
    torch.testing.assert_close(terms, torch.tensor(loop.losses), rtol=off_loss, atol=1e-4)


@pytest.mark.parametrize(("bench", "off"), [(BENCH, 1e-4), (ROUGH, 1e-2)], ids=["float32", "bfloat16"])
def test_noise_adaptation(bench: Bench, off: float) -> None:
    models, seen = BENCH.models(2), trajectory(0)
    adapted = reference.adapt(models, list(seen.values()), 0.9)
    ensemble = bench.ensemble(models)
    with torch.no_grad(), adapt_statistics(ensemble, seen, SMALL.config().teacher, bench.compute):
        for ours, plain, start in zip(ensemble.members, adapted, models, strict=True):
            assert missed(*(running_of(one) for one in (ours, plain, start))) < off


@pytest.mark.parametrize("normalisation", ["source", "mixture"])
@precisions(0.15)
def test_inner_and_outer_step(bench: Bench, off: float, normalisation: str) -> None:
    groups, rows = [bench.models(2, seed) for seed in (0, 1)], split_indices(LABELS, 0.8)
    seen = [trajectory(seed) for seed in (0, 1)]
    config = SMALL.config(
        cross_cluster__lr=0.05, cross_cluster__weight_lr=0.5, cross_cluster__normalisation=normalisation
    )
    students: list[nn.Module] = [build_model(SMALL.spec, seed) for seed in (0, 1)]
    parts = [
        reference.Cluster(models, reference.adapt(models, list(one.values()), 0.9), list(one.values()), *rows)
        for models, one in zip(groups, seen, strict=True)
    ]
    weights = torch.full((2, 2), 0.5)
    loop = reference.CrossCluster(
        parts,
        [copy.deepcopy(one).train() for one in students],
        weights.clone(),
        *(20.0, 0.05, 0.5, 0.9, 5e-4),
        together=normalisation == "mixture",
    )
    sources = []
    for models, one in zip(groups, seen, strict=True):
        answers = teacher_scores(bench.ensemble(models), one, [1, 2], config.teacher, bench.compute)
        sources.append(Source(one, *answers, *rows))
    targets = [
        Target(k, copy.deepcopy(student), weights[k].clone(), config.cross_cluster, bench.compute)
        for k, student in enumerate(students)
    ]
    for t in (1, 2):
        loop.step(t, SMALL.steps)
        for target in targets:
            target.step(sources, t, SMALL.steps, 0.05, torch.Generator())
    for k, target in enumerate(targets):
        assert (target.weights - 0.5).abs().max() > 1e-4, "the weights must have moved"
        assert missed([target.weights], [loop.weights[k]], [weights[k]]) < off
        assert missed(target.parameters, loop.students[k].parameters(), students[k].parameters()) < off


@precisions(0.3)
def test_personal_distillation(bench: Bench, off: float) -> None:
    data, task = bench.data(24), bench.task(0)
    cluster, own = bench.models(2)
    made = personalise(data, Shipment(state_of(cluster)), state_of(own), task)
    # The reference is given the order that the software draws.
    order = torch_generator(task.config.seed, "personalisation", 0)
    dealt = [
        (data.images[rows], data.labels[rows])
        for _ in range(SMALL.epochs)
        for rows in batches(len(data), SMALL.batch, order)
    ]
    student = copy.deepcopy(cluster)
    before = copy.deepcopy(student)
    losses = reference.personalise(student, (cluster, own), dealt, 1e-3, 0.9, 5e-4, 0.5, 0.3)
    assert len(losses) == 6
    expected = load_state(SMALL.spec, made)
    assert missed(expected.parameters(), student.parameters(), before.parameters()) < off


@pytest.mark.parametrize("vector", [[0.2, 0.3, 0.5], [3.0, -1.0, 0.2], [0.4, 0.4, 0.4], [-5.0, -5.0, -4.9]])
def test_the_reference_projects_as_the_software_does(vector: list[float]) -> None:
    point = torch.tensor(vector)
    torch.testing.assert_close(reference.onto_simplex(point), project_onto_simplex(point), atol=1e-5, rtol=0)


def test_every_stage_can_be_timed() -> None:
    with cpu_threads(1):
        for make in STAGES.values():
            timing = time_stage(make, BENCH, 1)
            assert timing.ours > 0 and timing.plain > 0 and timing.flops > 0, timing.name


def test_a_whole_cell_runs_both_ways_in_the_same_clusters() -> None:
    cell = whole_cell(BENCH)
    with cpu_threads(1):
        cell.ours(0)()  # which holds its clusters to the reference's
        cell.plain(0)()
