"""R_BN of Eq. 2 where a batch passes through a frozen teacher in parts, so that memory is that of one part.

The statistics are those of the whole batch, which no part knows. But in eval mode images have nothing else to
do with each other, and the gradient of R_BN is affine in a layer's input, by channel. So all parts pass once,
and their statistics are read and put together; that gives the slope and the offset of each channel, with
which each part can pass once more and have its gradient to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedbicross_flwr.batch_norm import (
    channel_statistics,
    gaps,
    input_gradient,
    normalise,
    replace_batch_norms,
    scale_of,
    share_tensors,
    statistics_gradient,
)
from fedbicross_flwr.compute import Compute


class Moments(NamedTuple):
    """Mean and biased variance of each channel, float32 (channels,), over so many `pixels`."""

    mean: Tensor
    var: Tensor
    pixels: int


def pooled_moments(parts: Sequence[Moments]) -> Moments:
    """Return the moments of all parts as one."""
    pixels = sum(part.pixels for part in parts)
    mean = torch.stack([part.mean * (part.pixels / pixels) for part in parts]).sum(0)
    spread = [(part.var + (part.mean - mean).square()) * (part.pixels / pixels) for part in parts]
    return Moments(mean, torch.stack(spread).sum(0), pixels)


class _NormaliseAndAdd(torch.autograd.Function):
    """``x -> eval-mode BatchNorm of x``, whose gradient has ``slope * x + offset`` added to it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.BatchNorm2d, slope: Tensor, offset: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale_of(layer), slope, offset)
        return normalise(layer, x)

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, ...]:
        return input_gradient(output_gradient, *ctx.saved_tensors), None, None, None


class PartwiseBatchNorm(nn.Module):
    """An eval-mode BatchNorm that first reads the statistics of parts, and then adds the gradient of R_BN.

    Parameters
    ----------
    layer : nn.BatchNorm2d
        The layer to stand in for; its tensors are shared, not copied.
    """

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        super().__init__()
        self.layer = layer
        self.read: list[Moments] = []
        self.added: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` with the running statistics."""
        if self.added is None:
            self.read.append(Moments(*channel_statistics(x), x.numel() // x.shape[1]))
            return normalise(self.layer, x)
        output: Tensor = _NormaliseAndAdd.apply(  # type: ignore[no-untyped-call]  # as PyTorch declares it
            x, self.layer, *self.added
        )
        return output

    def compare(self, weight: float) -> Tensor:
        """Add `weight` times the gradient of R_BN from now on; return R_BN of all that was read, a scalar."""
        mean, var, pixels = pooled_moments(self.read)
        mean_gap, var_gap = gaps(self.layer, mean, var)
        self.added = statistics_gradient(mean, mean_gap, var_gap, pixels, weight)
        distance: Tensor = mean_gap.norm() + var_gap.norm()
        return distance


class PartwiseModel:
    """A frozen network that a batch passes through twice, in parts.

    Parameters
    ----------
    model : nn.Module
        Stays as it is; the copy shares its tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers: list[PartwiseBatchNorm] = []
        self.model = share_tensors(model)
        replace_batch_norms(self.model, self._stand_in)

    def _stand_in(self, layer: nn.BatchNorm2d) -> nn.Module:
        self.layers.append(PartwiseBatchNorm(layer))
        return self.layers[-1]

    @torch.no_grad()
    def read(self, parts: Sequence[Tensor], weight: float, compute: Compute) -> tuple[Tensor, Tensor]:
        """Let all parts pass, and keep nothing of them but their statistics.

        Parameters
        ----------
        parts : sequence of Tensor
            Images (n, channels, h, w) each.
        weight : float
            Of R_BN in the loss whose gradient `accumulate_gradient` adds.
        compute : Compute
            The arithmetic.

        Returns
        -------
        tuple of Tensor
            Float32 logits of all parts (B, C), and the scalar R_BN over all layers.
        """
        for layer in self.layers:
            layer.read, layer.added = [], None
        with compute.autocast():
            logits = torch.cat([self.model(part).float() for part in parts])
        return logits, torch.stack([layer.compare(weight) for layer in self.layers]).sum()

    def accumulate_gradient(self, part: Tensor, logit_gradient: Tensor, compute: Compute) -> None:
        """Add to ``part.grad`` what the loss asks for through this network.

        Parameters
        ----------
        part : Tensor
            One of the parts that were read, as a leaf that takes a gradient.
        logit_gradient : Tensor
            Of the loss, at this part's logits, float32 (n, C).
        compute : Compute
            The arithmetic.
        """
        with compute.autocast():
            logits = self.model(part)
        logits.float().backward(logit_gradient)
