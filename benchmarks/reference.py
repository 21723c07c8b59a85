"""The stages as their equations read: what the fast code is timed against and held equal to.

One model after another, float32, the default memory layout, teachers with trainable weights, BatchNorm
statistics read in hooks through autograd, losses copied to the host at each step, the whole trajectory kept,
teachers asked again whenever their answer is needed. This is how research code of this kind is commonly
written. It has PyTorch's threads and kernels as they come: nothing here is slowed down on purpose.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbicross_flwr.batch_norm import batch_norms
from fedbicross_flwr.inversion_loss import norm_variation


def train(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], lr: float, momentum: float, decay: float
) -> list[float]:
    """Train on batches of (images, labels) by SGD; return the losses."""
    optimiser = torch.optim.SGD(model.parameters(), lr, momentum=momentum, weight_decay=decay)
    model.train()
    losses = []
    for images, labels in batches:
        optimiser.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@dataclass
class Inversion:
    """Eqs. 1 and 2 for the mean of the models' logits.

    Parameters
    ----------
    models : sequence of nn.Module
        In eval mode.
    labels, noise : Tensor
        int64 (B,), and x^(0) (B, channels, 28, 28).
    jitter : int
        Rolls are drawn from -jitter..jitter by `generator`.
    """

    models: Sequence[nn.Module]
    labels: Tensor
    noise: Tensor
    lr: float
    bn_weight: float
    tv_weight: float
    jitter: int
    generator: torch.Generator
    trajectory: list[Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def run(self, iterations: int) -> Tensor:
        """Return x^(T)."""
        images = self.noise.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([images], self.lr)
        distances: list[Tensor] = []

        def read(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(layer, nn.BatchNorm2d)
            assert layer.running_mean is not None and layer.running_var is not None
            mean = inputs[0].mean(dim=(0, 2, 3))
            var = inputs[0].var(dim=(0, 2, 3), correction=0)
            distances.append((mean - layer.running_mean).norm() + (var - layer.running_var).norm())

        handles = [
            layer.register_forward_pre_hook(read) for model in self.models for layer in batch_norms(model)
        ]
        for _ in range(iterations):
            distances.clear()
            optimiser.zero_grad()
            for model in self.models:
                model.zero_grad()
            rows, columns = torch.randint(
                -self.jitter, self.jitter + 1, (2,), generator=self.generator
            ).tolist()
            seen = images.roll((rows, columns), dims=(2, 3))
            logits = torch.stack([model(seen) for model in self.models]).mean(0)
            loss = F.cross_entropy(logits, self.labels) + self.tv_weight * norm_variation(seen)
            loss = loss + self.bn_weight * torch.stack(distances).sum()
            loss.backward()
            optimiser.step()
            self.losses.append(loss.item())
            self.trajectory.append(images.detach().clone().cpu())
        for handle in handles:
            handle.remove()
        return images.detach()


@torch.no_grad()
def adapt(models: Sequence[nn.Module], trajectory: Sequence[Tensor], momentum: float) -> list[nn.Module]:
    """Return copies of the models with the statistics of Eq. 3, reading the trajectory in reverse."""
    adapted = [copy.deepcopy(model).train() for model in models]
    for layer in (layer for model in adapted for layer in batch_norms(model)):
        layer.momentum = 1.0 - momentum
    for images in reversed(trajectory):
        for model in adapted:
            model(images)
    return [model.eval() for model in adapted]


def answer(models: Sequence[nn.Module], images: Tensor) -> Tensor:
    """Return the mean of the models' logits."""
    with torch.no_grad():
        return torch.stack([model(images) for model in models]).mean(0)


def kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher || student) of logits, times temperature^2."""
    p = F.softmax(teacher / temperature, 1)
    return F.kl_div(F.log_softmax(student / temperature, 1), p, reduction="batchmean") * temperature**2


@dataclass
class Cluster:
    """A cluster's models, their noise-adapted copies, its trajectory, and the rows of both levels."""

    models: Sequence[nn.Module]
    adapted: Sequence[nn.Module]
    trajectory: Sequence[Tensor]
    train: Tensor
    validation: Tensor


@dataclass
class CrossCluster:
    """Eqs. 5 to 8 for all targets.

    Parameters
    ----------
    students : sequence of nn.Module
        G_k in training mode, changed in place.
    weights : Tensor
        w, (K, K), changed in place.
    together : bool
        The images of all clusters pass through a student in one batch, so that BatchNorm mixes them.
    """

    clusters: Sequence[Cluster]
    students: Sequence[nn.Module]
    weights: Tensor
    temperature: float
    lr: float
    weight_lr: float
    momentum: float
    decay: float
    together: bool = False
    optimisers: list[torch.optim.SGD] = field(init=False)

    def __post_init__(self) -> None:
        self.optimisers = [
            torch.optim.SGD(student.parameters(), self.lr, momentum=self.momentum, weight_decay=self.decay)
            for student in self.students
        ]

    def passes(
        self, student: nn.Module, batches: Sequence[tuple[Cluster, Tensor]], t: int
    ) -> Iterator[tuple[Tensor, Cluster, Tensor]]:
        """Yield a student's answers to each batch, its cluster and the images: some rows of the cluster's."""
        images = [cluster.trajectory[t - 1].to(self.weights.device)[rows] for cluster, rows in batches]
        if self.together:
            parts = iter(student(torch.cat(images)).split([len(part) for part in images]))
        else:
            parts = (student(part) for part in images)
        for (cluster, _), part, logits in zip(batches, images, parts, strict=True):
            yield logits, cluster, part

    def loss(self, logits: Tensor, cluster: Cluster, images: Tensor, t: int, iterations: int) -> Tensor:
        """Return L_KD^(t) (Eq. 5) of a student's answers to a cluster's images."""
        share = 1.0 - t / iterations
        plain = kl(answer(cluster.models, images), logits, self.temperature)
        adapted = kl(answer(cluster.adapted, images), logits, self.temperature)
        return (1.0 - share) * plain + share * adapted

    def step(self, t: int, iterations: int) -> None:
        """Do an inner and an outer step of every target at iterate t."""
        for k, (student, optimiser) in enumerate(zip(self.students, self.optimisers, strict=True)):
            parameters = list(student.parameters())
            training = [(one, one.train) for one in self.clusters]
            gradients = [
                torch.autograd.grad(
                    self.loss(*answered, t, iterations), parameters, retain_graph=self.together
                )
                for answered in self.passes(student, training, t)
            ]
            weights = self.weights[k].tolist()
            for index, parameter in enumerate(parameters):
                parameter.grad = torch.zeros_like(parameter)
                for weight, gradient in zip(weights, gradients, strict=True):
                    parameter.grad += weight * gradient[index]
            optimiser.step()
            validation = [(one, one.validation) for one in self.clusters]
            # In a mixture all images pass, and the target's own are judged.
            judged = validation if self.together else [validation[k]]
            own = list(self.passes(student, judged, t))[k if self.together else 0]
            after = torch.autograd.grad(self.loss(*own, t, iterations), parameters)
            products = [
                torch.stack([(a * b).sum() for a, b in zip(after, gradient, strict=True)]).sum()
                for gradient in gradients
            ]
            slopes = -self.lr * torch.stack(products)
            self.weights[k] = onto_simplex(self.weights[k] - self.weight_lr * slopes)


def onto_simplex(vector: Tensor) -> Tensor:
    """Return the nearest point of the simplex, by bisection of the amount that is taken from every entry."""
    low, high = float(vector.min()) - 1.0, float(vector.max())
    for _ in range(60):
        middle = (low + high) / 2
        if float((vector - middle).clamp_min(0.0).sum()) > 1.0:
            low = middle
        else:
            high = middle
    return (vector - high).clamp_min(0.0)


def personalise(
    student: nn.Module,
    teachers: tuple[nn.Module, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    lr: float,
    momentum: float,
    decay: float,
    gamma: float,
    delta: float,
) -> list[float]:
    """Distil by Eq. 9, asking the cluster model and the client's own model for each batch."""
    optimiser = torch.optim.SGD(student.parameters(), lr, momentum=momentum, weight_decay=decay)
    cluster, own = (teacher.eval() for teacher in teachers)
    student.train()
    losses = []
    for images, labels in batches:
        optimiser.zero_grad()
        logits = student(images)
        loss = F.cross_entropy(logits, labels)
        loss = loss + gamma * kl(answer([cluster], images), logits, 1.0)
        loss = loss + delta * kl(answer([own], images), logits, 1.0)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses
