"""SGD as every network here is trained: its settings, and the loop over batches of rounds 1 and 2."""

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
from fedbicross_flwr.config import ClientConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.labelled_images import predict_logits

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


Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits (b, C), rows (b,))``: the rows say which images of the training set the logits are of; with
companions there are more logits than rows."""


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
