"""FedISCA: equal to a plain restatement, fresh noise an epoch, its schedule, resuming, and that it learns."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import (
    CPU,
    all_equal,
    blobs,
    noise,
    settings,
    tiny_resnet,
    tiny_spec,
)
from tiny import one_thread as one_thread
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from fedbicross_flwr.batch_norm import batch_norms, running
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.config_fedbicross import InversionConfig
from fedbicross_flwr.ensemble import Ensemble
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.labelled_images import predict_logits
from fedbicross_flwr.methods.fedisca import (
    Student,
    distil,
    fedisca,
    inversion_config,
    synthesise,
    teacher_config,
)
from fedbicross_flwr.methods.protocol import ClientUpload, ServerOutcome, ServerTask
from fedbicross_flwr.methods.student import start_student
from fedbicross_flwr.models import StateDict, load_state, state_of
from fedbicross_flwr.noise_adaptation import teacher_scores
from fedbicross_flwr.progress import Progress, Silent
from fedbicross_flwr.runs.folder import RunFolder
from fedbicross_flwr.seeds import torch_generator

T = 4
BATCH = 6


def federation(count: int = 3) -> list[ClientUpload]:
    return [ClientUpload(i, 10 + i, state_of(tiny_resnet(i))) for i in range(count)]


def configured(**overrides: Any) -> RunConfig:
    small = {"epochs": 2, "steps": T, "batch_size": BATCH, "lr": 0.02}
    return settings(**{f"fedisca__{name}": value for name, value in (small | overrides).items()})


def server_task(config: RunConfig) -> ServerTask:
    return ServerTask(tiny_spec(), config, CPU, Silent())


def run(count: int = 3, **overrides: Any) -> ServerOutcome:
    return fedisca(federation(count), server_task(configured(**overrides)))


@cache
def finished() -> ServerOutcome:
    """One run of the small settings; tests only read it."""
    return run()


def teachers(count: int = 3, aggregation: str = "logits") -> Ensemble:
    return Ensemble([load_state(tiny_spec(), upload.state) for upload in federation(count)], aggregation)


def drifting() -> dict[int, Tensor]:
    """Iterates that were not inverted, each with statistics of its own."""
    return {t: (2.0 - 0.4 * t) * noise(BATCH, 1, 28, 28, seed=t) + 0.1 * t for t in range(1, T + 1)}


def softened(scores: Tensor) -> Tensor:
    return (scores / 20.0).softmax(1)


def plain_loss(student: Tensor, real: Tensor, adapted: Tensor, t: int) -> Tensor:
    """The formula of the paper at T = 20, as sums over classes."""

    def divergence(teacher: Tensor) -> Tensor:
        p, q = softened(teacher), softened(student)
        return (p * (p.log() - q.log())).sum(1).mean()

    return 20.0**2 * (t / T * divergence(real) + (1 - t / T) * divergence(adapted))


def test_one_step_is_the_formula() -> None:
    config = configured().fedisca
    student = Student(tiny_resnet(7).train(), config, CPU)
    twin = copy.deepcopy(student.model)
    images, real, adapted = noise(BATCH, 1, 28, 28), noise(BATCH, 3, seed=1), noise(BATCH, 3, seed=2)
    plain_loss(twin(images), real, adapted, 1).backward()
    student.step(images, real, adapted, 1 - 1 / T, lr=0.3)
    for found, parameter in zip(student.model.parameters(), twin.parameters(), strict=True):
        assert parameter.grad is not None
        expected = parameter - 0.3 * (parameter.grad + 5e-4 * parameter)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert not torch.equal(found, parameter)


def plain_epoch(start: nn.Module, members: list[nn.Module], iterates: dict[int, Tensor]) -> nn.Module:
    """One epoch as the paper tells it: a reverse sweep, then a forward sweep; two sets of models."""
    adapted = [copy.deepcopy(member).train() for member in members]
    with torch.no_grad():
        for t in range(T, 0, -1):
            for model in adapted:  # PyTorch's momentum is .1, which is FedISCA's .9
                model(iterates[t])
    student = copy.deepcopy(start).train()
    optimiser = torch.optim.SGD(student.parameters(), 0.02, momentum=0.9, weight_decay=5e-4)
    for t in range(1, T + 1):
        optimiser.param_groups[0]["lr"] = {1: 0.02, 2: 0.02, 3: 0.002, 4: 0.0002}[t]
        with torch.no_grad():
            real = sum(model.eval()(iterates[t]) for model in members) / len(members)
            noisy = sum(model.eval()(iterates[t]) for model in adapted) / len(members)
        assert isinstance(real, Tensor) and isinstance(noisy, Tensor)
        optimiser.zero_grad()
        plain_loss(student(iterates[t]), real, noisy, t).backward()
        optimiser.step()
    return student


def test_an_epoch_is_its_plain_restatement() -> None:
    task = server_task(configured(epochs=1))
    ensemble = teachers()
    members = [copy.deepcopy(model) for model in ensemble.members]
    synthesis = synthesise(0, ensemble, task)
    start = start_student("random", federation(), task)
    expected = plain_epoch(start, members, synthesis.iterates)
    found = fedisca(federation(), task).models[0]
    for name, value in state_of(expected).items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)
    moved = [not torch.allclose(found[name], value) for name, value in start.named_parameters()]
    assert sum(moved) > len(moved) / 2


def test_the_noise_teacher_answers_by_statistics_of_its_own() -> None:
    ensemble, iterates = teachers(), drifting()
    before = state_of(ensemble)
    answers = {
        mode: teacher_scores(ensemble, iterates, [1, 2], teacher_config(config.fedisca), CPU)
        for mode in ("reverse_ema", "batch", "none")
        for config in [configured(noise_adaptation=mode)]
    }
    plain = answers["none"][0]
    for mode in ("reverse_ema", "batch"):
        assert torch.equal(answers[mode][0][1], plain[1])
        assert (answers[mode][1][1] - plain[1]).abs().max() > 1e-2
    assert torch.equal(answers["none"][1][1], plain[1])
    assert (answers["batch"][1][1] - answers["reverse_ema"][1][1]).abs().max() > 1e-2
    assert all_equal(before, state_of(ensemble))


def test_the_student_learns_from_the_noise_teacher() -> None:
    models = [run(noise_adaptation=mode).models[0] for mode in ("reverse_ema", "batch", "none")]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (models[i]["fc.weight"] - models[j]["fc.weight"]).abs().max() > 1e-4
    assert all_equal(models[0], finished().models[0])


def test_the_reverse_sweep_reads_every_iterate() -> None:
    # T = 70 is past the window that FedBiCross stops at; the oldest iterate read must be the last.
    iterates = {t: noise(4, 1, 28, 28, seed=t) for t in range(1, 71)}
    config = teacher_config(configured(noise_momentum=0.99).fedisca)
    _, first = teacher_scores(teachers(1), iterates, [1], config, CPU)
    iterates[70] = 5.0 * iterates[70]
    _, second = teacher_scores(teachers(1), iterates, [1], config, CPU)
    assert not torch.equal(first[1], second[1])


def test_iterates_are_distinct_copies() -> None:
    synthesis = synthesise(0, teachers(), server_task(configured()))
    images = [synthesis.iterates[t] for t in range(1, T + 1)]
    assert len({one.data_ptr() for one in images}) == T == len(synthesis.iterates)
    for before, after in itertools.pairwise(images):
        assert 1e-3 < (before - after).abs().mean() < 0.1
    assert torch.equal(synthesis.images, images[-1]) and synthesis.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_noise_is_fresh_and_adam_starts_anew_in_every_epoch() -> None:
    ensemble, task = teachers(), server_task(configured())
    first, second = synthesise(0, ensemble, task), synthesise(1, ensemble, task)
    assert (first.iterates[1] - second.iterates[1]).abs().mean() > 0.5
    for epoch, synthesis in ((0, first), (1, second)):
        start = torch.randn((BATCH, 1, 28, 28), generator=torch_generator(0, "fedisca", round=epoch))
        # The first step of a new Adam has the size of its learning rate, whatever the gradient is; one
        # that remembers gradients of other images would take steps of all sizes.
        sizes = (synthesis.iterates[1] - start).abs()
        assert ((sizes - 0.05).abs() < 1e-3).float().mean() > 0.95
    assert torch.equal(second.iterates[T], synthesise(1, ensemble, task).iterates[T])


@contextmanager
def sgd_rates() -> Iterator[list[float]]:
    """Collect the learning rate of every SGD step taken inside."""
    rates: list[float] = []

    def read(optimiser: Optimizer, args: Any, kwargs: Any) -> None:
        if isinstance(optimiser, torch.optim.SGD):
            rates.append(optimiser.param_groups[0]["lr"])

    handle = register_optimizer_step_pre_hook(read)
    try:
        yield rates
    finally:
        handle.remove()


@pytest.mark.parametrize(("epochs", "steps"), [(4, 2), (2, 4), (1, 8)])
def test_the_rate_falls_at_half_and_three_quarters_of_the_whole(epochs: int, steps: int) -> None:
    with sgd_rates() as rates:
        run(1, epochs=epochs, steps=steps, batch_size=2)
    assert rates == pytest.approx([0.02] * 4 + [0.002] * 2 + [0.0002] * 2)


def test_published_settings() -> None:
    config = RunConfig().fedisca
    assert (config.epochs, config.steps, config.batch_size, config.temperature) == (100, 500, 256, 20.0)
    assert (config.lr, config.momentum, config.weight_decay) == (1e-3, 0.9, 5e-4)
    made = inversion_config(config, InversionConfig(teachers="in_turn", images_at_once=8, lr=7.0))
    assert (made.teachers, made.images_at_once) == ("in_turn", 8)
    assert (made.iterations, made.batch_size, made.lr, made.jitter) == (500, 256, 0.05, 2)
    assert (made.tv, made.tv_weight, made.bn_models, made.bn_weight) == ("norm", 2.5e-5, "sum", 10.0)


def test_what_comes_out() -> None:
    outcome = finished()
    assert len(outcome.models) == 1 and outcome.assignment == {0: 0, 1: 0, 2: 0}
    assert [(one.round, one.cluster) for one in outcome.findings.inversions] == [(0, 0), (1, 0)]
    assert all(one.curves.shape == (T, 6) for one in outcome.findings.inversions)
    ((images, labels),) = outcome.findings.synthetic
    last = synthesise(1, teachers(), server_task(configured()))
    assert torch.equal(images, last.images) and torch.equal(labels, last.labels)
    # The BatchNorm term of an ensemble is there: its gap is far from zero at the start.
    assert outcome.findings.inversions[0].curves[0, 1] > 1.0


def test_a_seed_is_one_result() -> None:
    torch.manual_seed(99)
    assert all_equal(run().models[0], finished().models[0])
    other = fedisca(
        federation(),
        server_task(settings(seed=1, fedisca__epochs=2, fedisca__steps=T, fedisca__batch_size=BATCH)),
    )
    assert not all_equal(other.models[0], finished().models[0])


def test_the_order_of_clients_does_not_matter() -> None:
    turned = fedisca(federation()[::-1], server_task(configured()))
    assert turned.assignment == {0: 0, 1: 0, 2: 0}
    for name, value in finished().models[0].items():
        torch.testing.assert_close(turned.models[0][name], value, rtol=1e-3, atol=1e-3, msg=name)


def test_an_average_start_moves_away_from_the_average() -> None:
    task = server_task(configured())
    average = state_of(start_student("average", federation(), task))
    found = run(student_init="average").models[0]
    gap = (found["fc.weight"] - average["fc.weight"]).abs().max()
    random = (finished().models[0]["fc.weight"] - average["fc.weight"]).abs().max()
    assert 0 < gap < random


class StoppedError(Exception):
    pass


class StopsAt(Silent):
    """Progress that ends the run at a step of the distillation, and remembers what it saw."""

    def __init__(self, step: int = 0) -> None:
        self.step = step
        self.seen: list[tuple[str, int]] = []

    def advance(self, stage: str, done: int, total: int, *, client: int | None = None) -> None:
        self.seen.append((stage, done))
        if (stage, done) == ("distillation", self.step):
            raise StoppedError


@cache
def uninterrupted() -> ServerOutcome:
    return fedisca(federation(1), server_task(configured(epochs=3)))


@pytest.mark.parametrize(
    ("stop", "most_parts", "first_again"),
    [(T + 1, 10, T + 1), (2 * T + 2, 10, 2 * T + 1), (T + 1, 2, 1), (2 * T + 2, 2, 2 * T + 1)],
)
def test_interrupted_and_continued_is_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, most_parts: int, first_again: int
) -> None:
    config, whole = configured(epochs=3), uninterrupted()
    monkeypatch.setattr("fedbicross_flwr.methods.epochs.PARTS", most_parts)

    def attempt(progress: Progress) -> ServerOutcome:
        folder = RunFolder.open(tmp_path / "run", config, "data")
        return fedisca(federation(1), ServerTask(tiny_spec(), config, CPU, progress, folder))

    with pytest.raises(StoppedError):
        attempt(StopsAt(stop))
    progress = StopsAt()
    again = attempt(progress)
    assert all_equal(again.models[0], whole.models[0])
    assert min(done for _, done in progress.seen) == first_again
    for found, expected in zip(again.findings.inversions, whole.findings.inversions, strict=True):
        assert found.round == expected.round and torch.equal(found.curves, expected.curves)
    assert torch.equal(again.findings.synthetic[0][0], whole.findings.synthetic[0][0])


def test_momentum_is_part_of_the_state() -> None:
    config = configured().fedisca
    student = Student(tiny_resnet(7).train(), config, CPU)
    inputs = noise(BATCH, 1, 28, 28), noise(BATCH, 3, seed=1), noise(BATCH, 3, seed=2)
    student.step(*inputs, 0.5, lr=0.1)
    kept = student.state()
    student.step(*inputs, 0.5, lr=0.1)
    other = Student(tiny_resnet(8).train(), config, CPU)
    other.load(kept)
    other.step(*inputs, 0.5, lr=0.1)
    assert all_equal(student.state(), other.state())
    without = Student(tiny_resnet(8).train(), config, CPU)
    without.load({name: value for name, value in kept.items() if name.startswith("model.")})
    without.step(*inputs, 0.5, lr=0.1)
    assert not all_equal(student.state(), without.state())


def test_the_student_trains_by_batch_statistics_and_keeps_running_ones() -> None:
    student = Student(tiny_resnet(7).train(), configured().fedisca, CPU)
    before = [running(layer)[0].clone() for layer in batch_norms(student.model)]
    task = server_task(configured(epochs=1))
    ensemble = teachers()
    distil(0, ensemble, synthesise(0, ensemble, task), student, task)
    layers = batch_norms(student.model)
    for mean, layer in zip(before, layers, strict=True):
        assert not torch.equal(mean, running(layer)[0])
        assert layer.num_batches_tracked is not None and int(layer.num_batches_tracked) == T


def test_divergence_is_told_not_shipped() -> None:
    with pytest.raises(FedBiCrossError, match=r"diverged in epoch 1; lower fedisca\.lr = 1e\+30"):
        run(1, lr=1e30, batch_size=2)
    with pytest.raises(FedBiCrossError, match=r"not finite; lower fedisca\.inversion_lr = 1e\+30"):
        run(1, inversion_lr=1e30, batch_size=2)


def opinionated(seed: int) -> ClientUpload:
    """A client whose model takes nearly everything for class 1, and hardly anything for class 2."""
    model = tiny_resnet(seed)
    with torch.no_grad():
        model.get_parameter("fc.bias").copy_(torch.tensor([0.0, 3.0, -3.0]))
    return ClientUpload(seed, 10, state_of(model))


def test_the_student_approaches_its_teachers() -> None:
    uploads = [opinionated(seed) for seed in (0, 1)]
    task = server_task(configured(steps=10, lr=0.05, temperature=4.0))
    ensemble = Ensemble([load_state(tiny_spec(), upload.state) for upload in uploads], "logits")
    real = blobs(60).images  # images of a kind that neither has seen
    with torch.no_grad():
        taught = ensemble.scores(real, CPU).log_softmax(1)

    def distance(state: StateDict) -> float:
        answers = predict_logits(load_state(tiny_spec(), state), real, CPU)
        return float(F.kl_div(answers.log_softmax(1), taught, reduction="batchmean", log_target=True))

    assert distance(state_of(start_student("random", uploads, task))) > 0.5
    assert distance(fedisca(uploads, task).models[0]) < 0.1
