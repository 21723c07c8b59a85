"""What DENSE and Co-Boosting share: synthetic batches join a pool, and the student learns from all of it.

Each epoch a fresh generator is trained to make one batch (`synthesise`), the batch joins the `Pool`, and the
student takes one pass over the whole pool (`distil`). The methods differ in the generator's loss and in what
the student is shown. `PoolTraining` is all that an epoch leaves to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbicross_flwr.batch_norm import StatisticsModel
from fedbicross_flwr.checkpoint import load_training_state, training_state
from fedbicross_flwr.compute import Compute, moved
from fedbicross_flwr.distillation import kl_divergence
from fedbicross_flwr.ensemble import Ensemble
from fedbicross_flwr.generator import Generator, draw_images
from fedbicross_flwr.inversion_loss import answer
from fedbicross_flwr.models import ModelSpec
from fedbicross_flwr.sgd import SgdSettings, batches, crop_and_flip, sgd

ADAM_BETAS = (0.5, 0.999)
POOL = "pool."

Teacher = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``images -> (scores (n, C), weighted BatchNorm term)``, both with gradients to the images."""

GeneratorLoss = Callable[[Tensor, Tensor], Tensor]
"""``(images, labels) -> scalar``"""

Lesson = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``rows of the pool -> (images, teacher's scores)``: what the student is shown in one step."""


class PoolSettings(SgdSettings, Protocol):
    """The settings that `DenseConfig` and `CoBoostingConfig` have in common."""

    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def latent(self) -> int: ...
    @property
    def generator_width(self) -> int: ...
    @property
    def generator_lr(self) -> float: ...
    @property
    def temperature(self) -> float: ...
    @property
    def pool(self) -> int: ...


class Pool:
    """All batches so far, or the newest ones, and what every upload says of them.

    As uploads are frozen and in eval mode, their logits are computed once, when a batch joins.

    Parameters
    ----------
    limit : int
        Images that are kept; 0 keeps all.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0

    def __len__(self) -> int:
        return self.size

    def shown(self, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        """Return images (n, channels, h, w) of rows (n,), cropped and flipped if a generator is given."""
        images = self.images[rows]
        return images if augment is None else crop_and_flip(images, augment)

    def add(self, images: Tensor, labels: Tensor, ensemble: Ensemble, compute: Compute) -> None:
        """Copy a batch into the pool: images (B, channels, h, w), int64 labels (B,)."""
        with torch.no_grad():
            logits = ensemble.member_logits(images, compute)
        self.extend(images, labels, logits)

    def extend(self, images: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Copy batches into the pool with what the uploads say of them, (m, B, C), on the same device."""
        if self.size:
            # Tensors, not lists of batches: a copy is made, and nothing that changes later is referred to.
            images = torch.cat([self.images, images])
            labels = torch.cat([self.labels, labels])
            logits = torch.cat([self.logits, logits], 1)
        else:
            images, labels = images.clone(), labels.clone()
        keep = self.limit or len(labels)
        self.images, self.labels, self.logits = images[-keep:], labels[-keep:], logits[:, -keep:]
        self.size = len(self.labels)

    def newest(self, count: int) -> dict[str, Tensor]:
        """Return the `count` newest images, or all if there are fewer, as `extend` takes them; no copies."""
        return {
            "images": self.images[-count:],
            "labels": self.labels[-count:],
            "logits": self.logits[:, -count:],
        }


class PoolTraining:
    """A student with its optimiser, and the pool that it learns from (`methods.epochs.Training`).

    Parameters
    ----------
    student : nn.Module
        On the device, in training mode; changed in place.
    settings : PoolSettings
        The method's.
    """

    def __init__(self, student: nn.Module, settings: PoolSettings, compute: Compute) -> None:
        self.student = student
        self.settings = settings
        self.compute = compute
        self.pool = Pool(settings.pool * settings.batch_size)
        self.optimiser = sgd(student.parameters(), settings)

    @property
    def images(self) -> Tensor:
        """Return the last batch, (B, channels, 28, 28)."""
        return self.pool.images[-self.settings.batch_size :]

    @property
    def labels(self) -> Tensor:
        """Return its labels, int64 (B,)."""
        return self.pool.labels[-self.settings.batch_size :]

    def state(self, epochs: range) -> dict[str, Tensor]:
        """Return the student, its momenta, and the batches that joined the pool in `epochs`."""
        batches = self.pool.newest(len(epochs) * self.settings.batch_size)
        kept = {f"{POOL}{name}": value.cpu().contiguous() for name, value in batches.items()}
        return {**training_state(self.student, self.optimiser), **kept}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what `state` returned; its batches join the pool."""
        load_training_state(self.student, self.optimiser, state)
        device = self.compute.device
        images = self.compute.images(state[f"{POOL}images"])
        self.pool.extend(images, state[f"{POOL}labels"].to(device), state[f"{POOL}logits"].to(device))


def teacher_with_statistics(ensemble: Ensemble, bn_weight: float, compute: Compute) -> Teacher:
    """Return a call that gives the ensemble's scores and ``bn_weight`` times the mean of R_BN over members.

    Every member compares with its own running statistics (`fedbicross_flwr.batch_norm`).
    """
    if not bn_weight:
        return lambda images: (ensemble.scores(images, compute), torch.zeros((), device=images.device))
    members = nn.ModuleList(StatisticsModel(model) for model in ensemble.members)

    def call(images: Tensor) -> tuple[Tensor, Tensor]:
        scores, loss = answer(members, ensemble, images, "mean", compute)
        return scores, bn_weight * loss

    return call


def lesson_of(pool: Pool, ensemble: Ensemble, augment: torch.Generator | None, compute: Compute) -> Lesson:
    """Return what shows the pool's images, cropped and flipped if a generator is given, and their scores."""

    def lesson(rows: Tensor) -> tuple[Tensor, Tensor]:
        images = pool.shown(rows, augment)
        if augment is None:
            return images, ensemble.combine(pool.logits[:, rows])
        with torch.no_grad():
            return images, ensemble.scores(images, compute)

    return lesson


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(teacher || student) of each image, times temperature^2, shape (n,).

    Unlike `kl_divergence`, both sides carry a gradient: a generator looks for images on which they differ.
    """
    terms = F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        reduction="none",
        log_target=True,
    )
    return terms.sum(1) * temperature**2


def synthesise(
    loss: GeneratorLoss,
    settings: PoolSettings,
    spec: ModelSpec,
    random: torch.Generator,
    compute: Compute,
    clip: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor]:
    """Train a fresh generator and its z for random labels; return the step with the lowest loss.

    Parameters
    ----------
    loss : callable
        The generator's loss of a batch. It must not change what it closes over: no network in training mode.
    random : torch.Generator
        Draws the generator's weights, z and the labels.
    clip : float, default inf
        Largest norm of the gradient of all that is trained.

    Returns
    -------
    images : Tensor
        float32 (B, channels, 28, 28), detached. Step t's loss is that of the images before its update.
    labels : Tensor
        int64 (B,), uniform over the classes.
    lowest : Tensor
        The loss of these images, a scalar; infinite when no step had a finite one.
    """
    shape = (settings.latent, spec.channels, "sigmoid", "normal", random, settings.generator_width)
    generator = compute.place(Generator(*shape))
    z = torch.randn(settings.batch_size, settings.latent, generator=random).to(compute.device)
    labels = torch.randint(spec.num_classes, (settings.batch_size,), generator=random).to(compute.device)
    trained = [*generator.parameters(), z.requires_grad_(True)]
    optimiser = torch.optim.Adam(trained, settings.generator_lr, betas=ADAM_BETAS)
    lowest = torch.full((), math.inf, device=compute.device)
    best = torch.zeros((), device=compute.device)
    for _ in range(settings.steps):
        images = draw_images(generator, z, compute)
        value = loss(images, labels)
        optimiser.zero_grad(set_to_none=True)
        # Only for `trained`: the student is part of the loss, but its gradients belong to the distillation.
        value.backward(inputs=trained)
        step(optimiser, trained, clip)
        better = value.detach() < lowest
        # `where` keeps a copy and needs no answer from the device.
        lowest, best = torch.where(better, value.detach(), lowest), torch.where(better, images.detach(), best)
    return compute.images(best.expand_as(images)), labels, lowest


def distil(
    student: nn.Module,
    optimiser: torch.optim.Optimizer,
    count: int,
    lesson: Lesson,
    settings: PoolSettings,
    random: torch.Generator,
    compute: Compute,
    clip: float = math.inf,
) -> Tensor:
    """Take one pass over `count` images of the pool, shuffled; return the last batch's loss, detached.

    The loss is KL(teacher || student) at the settings' temperature, times its square.

    Parameters
    ----------
    student : nn.Module
        Changed in place, by `optimiser`.
    count : int
        Images of the pool.
    lesson : callable
        Gives images (n, channels, h, w) and the teacher's scores (n, C) for rows of the pool, int64 (n,).
    settings : PoolSettings
        The batch size and the temperature.
    random : torch.Generator
        Draws the order of the images.
    compute : Compute
        The device and the arithmetic.
    clip : float, default inf
        Largest norm of the student's gradient.
    """
    student.train()
    trained = list(student.parameters())
    loss = torch.zeros((), device=compute.device)
    for rows in batches(count, settings.batch_size, random):
        images, scores = lesson(moved(rows, compute.device))
        loss = kl_divergence(scores, compute.logits(student, compute.images(images)), settings.temperature)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        step(optimiser, trained, clip)
    return loss.detach()


def step(optimiser: torch.optim.Optimizer, trained: Sequence[Tensor], clip: float) -> None:
    """Take a step along the gradient, shortened to the norm `clip` if it is longer."""
    if clip < math.inf:
        nn.utils.clip_grad_norm_(trained, clip)
    optimiser.step()
