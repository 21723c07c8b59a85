"""A client's images with their labels, and what a model answers to them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedbicross_flwr.compute import Compute


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
