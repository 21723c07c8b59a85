"""The image generator of DAFL, DENSE and Co-Boosting: a small network from noise z to a batch of images.

One body serves all three (Chen et al., ICCV 2019; Zhang et al., NeurIPS 2022)::

    z -> linear 128 x H/4 x W/4 -> BN -> up x2 -> conv 128, BN, LReLU .2
      -> up x2 -> conv 64, BN, LReLU .2 -> conv

The methods differ in what follows the last convolution (`OUTPUTS`) and in the initial weights (`INITS`).
Images are in normalised space, where a pixel is from [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fedbicross_flwr.compute import Compute


class SigmoidPixels(nn.Module):
    """A sigmoid, which gives raw pixels from [0, 1], then their normalisation (mean .5, deviation .5)."""

    def forward(self, values: Tensor) -> Tensor:
        """Return pixels from [-1, 1]."""
        return 2.0 * torch.sigmoid(values) - 1.0


def tanh_batch_norm(channels: int) -> nn.Module:
    """Return DAFL's output: tanh, then BatchNorm without scale and offset.

    Every channel of a batch has mean 0 and deviation 1, so pixels may leave [-1, 1].
    """
    return nn.Sequential(nn.Tanh(), nn.BatchNorm2d(channels, affine=False))


def sigmoid_pixels(channels: int) -> nn.Module:
    """Return the output of DENSE and Co-Boosting."""
    return SigmoidPixels()


OUTPUTS: Mapping[str, Callable[[int], nn.Module]] = {
    "tanh_batch_norm": tanh_batch_norm,
    "sigmoid": sigmoid_pixels,
}

Layer = nn.Linear | nn.Conv2d


def fan_in_uniform(layer: Layer, random: torch.Generator) -> None:
    """Draw weights and biases from U(-1/sqrt(n), 1/sqrt(n)) for n inputs, PyTorch's own initialisation."""
    bound = 1.0 / math.sqrt(layer.weight[0].numel())
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=random)


def narrow_normal(layer: Layer, random: torch.Generator) -> None:
    """Draw weights from N(0, .02); biases are 0."""
    nn.init.normal_(layer.weight, 0.0, 0.02, generator=random)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


INITS: Mapping[str, Callable[[Layer, torch.Generator], None]] = {
    "uniform": fan_in_uniform,
    "normal": narrow_normal,
}


class Generator(nn.Module):
    """A generator on the CPU, in training mode: its BatchNorm layers use the batch's own statistics.

    Parameters
    ----------
    latent : int
        Length of z.
    channels : int
        Image channels, 1 or 3.
    output : str
        A name in `OUTPUTS`.
    init : str
        A name in `INITS`, for linear and convolution layers; BatchNorm layers start as the identity.
    random : torch.Generator
        Draws the initial weights; PyTorch's global generator is not touched.
    width : int, default 64
        Channels before the last convolution; the layers before have twice as many.
    size : int, default 28
        Height and width of the images, a multiple of four.
    eps : float, default 1e-5
        Of the BatchNorm layers behind the first two convolutions.
    """

    def __init__(
        self,
        latent: int,
        channels: int,
        output: str,
        init: str,
        random: torch.Generator,
        width: int = 64,
        size: int = 28,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        corner = size // 4
        with torch.device("meta"):  # so that no layer draws from the global generator
            self.body = nn.Sequential(
                nn.Linear(latent, 2 * width * corner**2),
                nn.Unflatten(1, (2 * width, corner, corner)),
                nn.BatchNorm2d(2 * width),
                nn.Upsample(scale_factor=2),
                nn.Conv2d(2 * width, 2 * width, 3, padding=1),
                nn.BatchNorm2d(2 * width, eps),
                nn.LeakyReLU(0.2, inplace=True),
                nn.Upsample(scale_factor=2),
                nn.Conv2d(2 * width, width, 3, padding=1),
                nn.BatchNorm2d(width, eps),
                nn.LeakyReLU(0.2, inplace=True),
                nn.Conv2d(width, channels, 3, padding=1),
            )
            self.output = OUTPUTS[output](channels)
        self.to_empty(device="cpu")
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                INITS[init](layer, random)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.reset_parameters()

    def forward(self, z: Tensor) -> Tensor:
        """Return float32 images (n, channels, size, size) for z (n, latent)."""
        # The output is small and decides what the teachers see: float32 also under autocast.
        images: Tensor = self.output(self.body(z).float())
        return images


def draw_images(generator: nn.Module, z: Tensor, compute: Compute) -> Tensor:
    """Return images in the layout that the teachers like best; gradients reach `generator` and z."""
    with compute.autocast():
        images: Tensor = generator(z)
    return compute.images(images)
