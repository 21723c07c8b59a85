"""A client's supervised training: round 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import ClientConfig, RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.labelled_images import LabelledImages, accuracy
from fedbicross_flwr.models import ModelSpec, StateDict, build_model, state_of
from fedbicross_flwr.progress import TRAINING, Progress
from fedbicross_flwr.seeds import derive_seed, torch_generator
from fedbicross_flwr.sgd import Recipe, fit


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
