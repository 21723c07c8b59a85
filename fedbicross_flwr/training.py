"""A client's supervised training (round 1), and the loop over batches that stage 3 shares with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbicross_flwr.batch_norm import SourceStatistics, batch_norms
from fedbicross_flwr.compute import Compute, moved
from fedbicross_flwr.config import ClientConfig, RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.models import ModelSpec, StateDict, build_model, state_of
from fedbicross_flwr.progress import TRAINING, Progress
from fedbicross_flwr.seeds import derive_seed, torch_generator

SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "step": lambda done: 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01,
}
"""Factor of the learning rate by the fraction of the work that is done, 0 <= done < 1."""


class SgdSettings(Protocol):
    """What the sections of the configuration that train a network have in common."""

    @property
    def lr(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


def sgd(parameters: Iterable[nn.Parameter], settings: SgdSettings) -> torch.optim.SGD:
    """Return the optimiser of every network that is trained here: SGD with momentum and weight decay."""
    return torch.optim.SGD(
        parameters, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


@dataclass(frozen=True)
class LabelledImages:
    """A client's images in normalised space, float32 (n, channels, 28, 28), and int64 labels (n,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, validation_fraction: float) -> tuple[LabelledImages, LabelledImages]:
        """Return (training, validation): the first part is kept for validation; training keeps two images."""
        count = max(min(int(len(self) * validation_fraction), len(self) - 2), 0)
        return (
            LabelledImages(self.images[count:], self.labels[count:]),
            LabelledImages(self.images[:count], self.labels[:count]),
        )

    def to(self, compute: Compute) -> LabelledImages:
        """Move to the device."""
        return LabelledImages(compute.images(self.images), self.labels.to(compute.device))


@dataclass(frozen=True)
class Recipe:
    """How SGD is run; the fields are those of `ClientConfig`, and the setting that `lr` comes from."""

    epochs: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    batch_size: int
    augment: bool
    lr_key: str = "client.lr"

    @classmethod
    def of(cls, client: ClientConfig) -> Recipe:
        """Return the recipe of round 1."""
        return cls(
            client.epochs,
            client.lr,
            client.momentum,
            client.weight_decay,
            client.schedule,
            client.batch_size,
            client.augment,
        )


@dataclass(frozen=True)
class LocalModel:
    """What a client's training gives.

    `validation_accuracy` has one entry an epoch, nan without validation images; `chosen_epoch` is 1, 2, ...
    """

    state: StateDict
    chosen_epoch: int
    validation_accuracy: tuple[float, ...]

    @property
    def best_validation_accuracy(self) -> float:
        """Return the accuracy at the chosen epoch, nan without validation images."""
        return self.validation_accuracy[self.chosen_epoch - 1]


Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits (b, C), rows (b,))``: the rows say which images of the training set the logits are of; with
companions there are more logits than rows."""


@dataclass(frozen=True)
class ClientTask:
    """What a client's work needs besides its images: who it is, what to train, where, and who watches."""

    client: int
    spec: ModelSpec
    config: RunConfig
    compute: Compute
    progress: Progress


def train_client(data: LabelledImages, task: ClientTask) -> LocalModel:
    """Train f_i on a client's own images (Section III; settings of Section IV-A).

    The epoch is chosen by the client's own validation images, never by test images.

    Raises
    ------
    FedBiCrossError
        When the client has too few images or classes to learn from.
    """
    config, compute = task.config, task.compute
    start = None if config.client.initial_weights == "shared" else task.client
    model = compute.place(build_model(task.spec, derive_seed(config.seed, "initial-weights", start)))
    return fit_client(model, data, task, torch_generator(config.seed, "training", task.client))


def fit_client(
    model: nn.Module,
    data: LabelledImages,
    task: ClientTask,
    order: torch.Generator,
    epochs: range | None = None,
    penalty: Callable[[], Tensor] | None = None,
) -> LocalModel:
    """Run the client's recipe on its own images, and keep the epoch that ``client.checkpoint`` says.

    Parameters
    ----------
    model : nn.Module
        On the device; changed in place.
    data : LabelledImages
        All of the client's images; the first part of them chooses the epoch.
    order : torch.Generator
        Draws the order of the images and their augmentation.
    epochs : range, optional
        Which of the recipe's epochs are run, counted from 0; all by default. `LocalModel` counts these alone.
    penalty : callable, optional
        Gives a term that is added to the cross-entropy at each step.

    Raises
    ------
    FedBiCrossError
        When the client has too few images or classes to learn from, or the training diverges.
    """
    config, compute = task.config, task.compute
    training, validation = data.to(compute).split(config.client.validation_fraction)
    check_trainable(training, config.client)
    recipe = Recipe.of(config.client)
    accuracies: list[float] = []
    best = Best()

    def after_epoch(epoch: int) -> None:
        accuracies.append(accuracy(model, validation, compute))
        if config.client.checkpoint == "best":
            best.offer(accuracies[-1], len(accuracies), model)
        task.progress.advance(TRAINING, epoch, recipe.epochs, client=task.client)

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        supervised = F.cross_entropy(logits, training.labels[rows])
        return supervised + penalty() if penalty else supervised

    fit(model, training.images, loss, recipe, order, compute, after_epoch, epochs=epochs)
    chosen, state = best.choice or (len(accuracies), state_of(model))
    return LocalModel(state, chosen, tuple(accuracies))


def check_trainable(data: LabelledImages, client: ClientConfig) -> None:
    """Refuse data that no classifier can be trained on."""
    if len(data) < 2:
        raise FedBiCrossError(f"{len(data)} training image(s) found, but at least 2 are needed to train")
    classes = int(data.labels.unique().numel())
    if classes < client.min_classes:
        raise FedBiCrossError(
            f"training images of {classes} class(es) found, but client.min_classes = {client.min_classes}; "
            "add images of other classes, or set client.min_classes = 1 to let such a client in"
        )


class Best:
    """Keeps the model with the highest validation accuracy; of equal ones the later, as it saw more."""

    def __init__(self) -> None:
        self.accuracy = -math.inf
        self._kept: tuple[int, StateDict] | None = None

    def offer(self, accuracy: float, epoch: int, model: nn.Module) -> None:
        """Keep a copy of `model` if it is at least as good; nan (no validation images) keeps nothing.

        The copy stays on the device: most of them are soon replaced by a better one.
        """
        if accuracy >= self.accuracy:
            copied = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            self.accuracy, self._kept = accuracy, (epoch, copied)

    @property
    def choice(self) -> tuple[int, StateDict] | None:
        """Return the epoch and the state, on the CPU, of the model that is kept; None if there is none."""
        if self._kept is None:
            return None
        epoch, copied = self._kept
        return epoch, {name: tensor.cpu().contiguous() for name, tensor in copied.items()}


def fit(
    model: nn.Module,
    images: Tensor,
    loss: Loss,
    recipe: Recipe,
    generator: torch.Generator,
    compute: Compute,
    after_epoch: Callable[[int], None] = lambda epoch: None,
    companions: Callable[[], Tensor] | None = None,
    epochs: range | None = None,
) -> None:
    """Run SGD over shuffled batches.

    Parameters
    ----------
    model : nn.Module
        On the device; changed in place, and left in training mode.
    images : Tensor
        float32 (n, channels, h, w), on the device.
    loss : callable
        ``loss(logits, rows)`` of a batch; `rows` are its indices into `images`, int64.
    recipe : Recipe
        SGD's settings, the schedule, which spans all of the recipe's epochs, and the augmentation.
    generator : torch.Generator
        Draws the order of the images and their augmentation.
    compute : Compute
        The device and the arithmetic.
    after_epoch : callable, optional
        Called with 1, 2, ...
    companions : callable, optional
        Gives further images for each batch; their logits follow those of the batch's own. They are normalised
        by their own statistics and leave the running ones alone: what the model will meet is like `images`,
        and these may not be.
    epochs : range, optional
        Which of the recipe's epochs are run, counted from 0; all by default.

    Raises
    ------
    FedBiCrossError
        When the loss or the answers are no longer finite, as a learning rate far too large makes them.
    """
    optimiser = sgd(model.parameters(), recipe)
    factor = SCHEDULES[recipe.schedule]
    apart = SourceStatistics(batch_norms(model))
    for epoch in range(recipe.epochs) if epochs is None else epochs:
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * factor(epoch / recipe.epochs)
        model.train()
        last = torch.zeros(())
        for rows in batches(len(images), recipe.batch_size, generator):
            rows = moved(rows, images.device)
            batch = images[rows]
            if recipe.augment:
                batch = crop_and_flip(batch, generator)
            optimiser.zero_grad(set_to_none=True)
            logits = compute.logits(model, compute.images(batch))
            if companions is not None:
                with apart.record(0.0):
                    beside = compute.logits(model, compute.images(companions()))
                logits = torch.cat([logits, beside])
            last = loss(logits, rows)
            last.backward()
            optimiser.step()
        if not torch.isfinite(last.detach()):
            raise FedBiCrossError(
                f"training diverged in epoch {epoch + 1} (loss {float(last.detach())}); "
                f"lower {recipe.lr_key} = {recipe.lr:g}"
            )
        after_epoch(epoch + 1)
    # The loss is of the model before its last step.
    if not torch.isfinite(predict_logits(model, images[: recipe.batch_size], compute)).all():
        raise FedBiCrossError(f"training diverged in its last step; lower {recipe.lr_key} = {recipe.lr:g}")


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the shuffled indices 0..count-1 in batches of `size`.

    A last batch of one image joins the one before it: BatchNorm needs more than one value a channel.
    """
    order = torch.randperm(count, generator=generator)
    bounds = list(range(0, count, size))
    if len(bounds) > 1 and count - bounds[-1] == 1:
        bounds.pop()
    for start, stop in zip(bounds, [*bounds[1:], count], strict=True):
        yield order[start:stop]


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Return a random crop of each padded image, half of them mirrored; shape as before."""
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4, value=-1.0)
    offsets = moved(torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator), images.device)
    flips = moved(torch.rand(count, 1, generator=generator) < 0.5, images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)
    columns = offsets[1] + torch.arange(width, device=images.device)
    columns = torch.where(flips, columns.flip(1), columns)
    image = torch.arange(count, device=images.device).view(-1, 1, 1)
    # Indexing with a slice between index arrays puts the channel axis last.
    return padded[image, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


@torch.no_grad()
def predict_logits(model: nn.Module, images: Tensor, compute: Compute, batch_size: int = 512) -> Tensor:
    """Return float32 logits (n, C) in eval mode, `batch_size` images at a time.

    The images are float32 (n, channels, h, w) on the model's device; the model's mode is given back.
    """
    mode = model.training
    model.eval()
    parts = [compute.logits(model, compute.images(part)) for part in images.split(batch_size)]
    model.train(mode)
    return torch.cat(parts)


def accuracy(model: nn.Module, data: LabelledImages, compute: Compute) -> float:
    """Return the share of correct predictions, nan without images."""
    if not len(data):
        return math.nan
    return float((predict_logits(model, data.images, compute).argmax(1) == data.labels).float().mean())
