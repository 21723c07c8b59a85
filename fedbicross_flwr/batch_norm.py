"""BatchNorm statistics of frozen teachers: the term R_BN of Eq. 2, fast and plain.

R_BN compares, at the input x of every BatchNorm layer, the batch's statistics with the layer's own::

    R_BN(x) = || mean(x) - running_mean ||_2 + || var(x) - running_var ||_2        (biased variance)

Reading the statistics through autograd would keep and revisit every activation once more. The gradient
of R_BN is affine in x for each channel, so `FrozenBatchNorm` adds it while the layer's own gradient is
written anyway. `plain_statistics_loss` says the same as the equation does, for tests and readers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _NormaliseAndCompare(torch.autograd.Function):
    """``x -> (eval-mode BatchNorm of x, R_BN of this layer)`` with one fused gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        mean, var = channel_statistics(x)
        mean_gap, var_gap = gaps(layer, mean, var)
        ctx.save_for_backward(x, mean, mean_gap, var_gap, scale_of(layer))
        return normalise(layer, x), mean_gap.norm() + var_gap.norm()

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, mean_gap, var_gap, scale = ctx.saved_tensors
        own = statistics_gradient(mean, mean_gap, var_gap, x.numel() // x.shape[1], loss_gradient)
        return input_gradient(output_gradient, x, scale, *own), None


def normalise(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Return what a BatchNorm layer in eval mode does."""
    return F.batch_norm(x, *running(layer), layer.weight, layer.bias, training=False, eps=layer.eps)


def scale_of(layer: nn.BatchNorm2d) -> Tensor:
    """Return what a layer in eval mode multiplies each channel with, (channels,)."""
    scale: Tensor = layer.weight * torch.rsqrt(running(layer)[1] + layer.eps)
    return scale


def gaps(layer: nn.BatchNorm2d, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Return a batch's mean and variance less the layer's own; R_BN is the sum of their norms."""
    layer_mean, layer_var = running(layer)
    return mean - layer_mean, var - layer_var


def statistics_gradient(
    mean: Tensor, mean_gap: Tensor, var_gap: Tensor, pixels: int, weight: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Return (slope, offset), (channels,) each: ``weight * dR_BN/dx`` is ``slope * x + offset``.

    Parameters
    ----------
    mean : Tensor
        Of the batch, by channel.
    mean_gap, var_gap : Tensor
        The batch's mean and variance less the layer's own.
    pixels : int
        Of the batch, in each channel.
    weight : Tensor or float
        The gradient of the loss at R_BN, a scalar.
    """
    # d||mean - m||/dx = unit(mean - m) / n and d||var - v||/dx = unit(var - v) * 2 (x - mean) / n.
    slope = weight * unit(var_gap) * (2.0 / pixels)
    return slope, weight * unit(mean_gap) / pixels - slope * mean


def input_gradient(
    output_gradient: Tensor, x: Tensor, scale: Tensor, slope: Tensor, offset: Tensor
) -> Tensor:
    """Return the gradient at a layer's input x: ``scale * output_gradient + slope * x + offset``."""
    gradient = scale_and_shift(x, slope, offset)
    gradient += output_gradient * scale.view(1, -1, 1, 1).to(x.dtype)
    return gradient


def unit(vector: Tensor) -> Tensor:
    """Return the vector at length one; zero stays zero, as autograd has it for the norm."""
    result: Tensor = vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
    return result


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance of each channel in float32, shapes (channels,)."""
    if x.device.type == "cpu":
        # The kernel of BatchNorm itself reads x once, whatever its layout and type; `var_mean` needs 12
        # times as long on a CPU. It also moves running statistics, here of nobody, which make it float32.
        nobody = x.new_zeros(2, x.shape[1], dtype=torch.float32)
        mean, var = torch.ops.aten.batch_norm_update_stats(x, nobody[0], nobody[1], 0.0)
        return mean, var
    var, mean = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
    return mean, var


def scale_and_shift(x: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Return ``slope * x + offset`` by channel, in the type of x; `slope` and `offset` are float32.

    BatchNorm of mean 0 and variance 1 is just that, and on CPUs 5 to 20 times as fast as the broadcast.
    """
    return F.batch_norm(x, torch.zeros_like(slope), torch.ones_like(slope), slope, offset, eps=0.0)


class FrozenBatchNorm(nn.Module):
    """An eval-mode BatchNorm that also reports R_BN of its input to `collect`.

    Parameters
    ----------
    layer : nn.BatchNorm2d
        The layer to stand in for; its tensors are shared, not copied.
    collect : callable
        Called with the layer's R_BN, a scalar that carries a gradient to the input.
    """

    def __init__(self, layer: nn.BatchNorm2d, collect: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.layer = layer
        self.collect = collect

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` with the running statistics."""
        output: Tensor
        output, loss = _NormaliseAndCompare.apply(  # type: ignore[no-untyped-call]  # as PyTorch declares it
            x, self.layer
        )
        self.collect(loss)
        return output


class StatisticsModel(nn.Module):
    """A frozen network whose call returns ``(logits, R_BN summed over its layers)``.

    Parameters
    ----------
    model : nn.Module
        Stays as it is; the copy shares its tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.losses: list[Tensor] = []
        self.model = share_tensors(model)
        replace_batch_norms(self.model, lambda layer: FrozenBatchNorm(layer, self.losses.append))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (n, C) and the scalar R_BN."""
        self.losses.clear()
        logits = self.model(images)
        loss = torch.stack(self.losses).sum()
        self.losses.clear()
        return logits, loss


def share_tensors(model: nn.Module) -> nn.Module:
    """Return a copy of the module tree which shares every parameter and buffer with `model`."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the BatchNorm layers of a network, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def replace_batch_norms(model: nn.Module, replace: Callable[[nn.BatchNorm2d], nn.Module]) -> None:
    """Put ``replace(layer)`` in the place of every BatchNorm layer."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, replace(child))


def plain_statistics_loss(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and R_BN as the equation reads: a hook at every BatchNorm input, through autograd."""
    losses: list[Tensor] = []

    def read(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None
        assert layer.running_var is not None
        x = inputs[0].float()
        mean, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), correction=0)
        losses.append((mean - layer.running_mean).norm() + (var - layer.running_var).norm())

    handles = [layer.register_forward_pre_hook(read) for layer in batch_norms(model)]
    try:
        logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    return logits, torch.stack(losses).sum()


class SourceStatistics:
    """The running statistics of BatchNorm layers while several sources pass through in training mode.

    A forward pass inside ``record(weight)`` leaves these alone, though it counts as a batch; `commit` then
    moves them towards the weighted mean of what was recorded, which does not depend on the order of the
    sources.
    """

    def __init__(self, layers: Sequence[nn.BatchNorm2d]) -> None:
        self.layers = layers
        self.momenta = [layer.momentum for layer in layers]
        self.kept = [running(layer) for layer in layers]
        self.sums = [[torch.zeros_like(buffer) for buffer in buffers] for buffers in self.kept]
        self.weight = 0.0

    def record(self, weight: float) -> SourceStatistics:
        """Return a context in which a forward pass counts `weight` times."""
        self.weight = weight
        return self

    def __enter__(self) -> None:
        for layer in self.layers:
            # With momentum 1 the buffers hold this batch's own statistics afterwards. They are new
            # tensors, since autograd refuses a backward pass after its buffers were written again.
            layer.momentum = 1.0
            layer.running_mean, layer.running_var = (buffer.clone() for buffer in running(layer))

    def __exit__(self, *exception: object) -> None:
        for layer, momentum, kept, sums in zip(self.layers, self.momenta, self.kept, self.sums, strict=True):
            for buffer, total in zip(running(layer), sums, strict=True):
                total.add_(buffer, alpha=self.weight)
            layer.momentum = momentum
            layer.running_mean, layer.running_var = kept

    def commit(self) -> None:
        """Move the running statistics towards the weighted sums, by each layer's momentum."""
        for momentum, buffers, sums in zip(self.momenta, self.kept, self.sums, strict=True):
            for buffer, total in zip(buffers, sums, strict=True):
                buffer.lerp_(total, 0.1 if momentum is None else momentum)


BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""What a BatchNorm layer keeps of the batches that it has seen."""


def copied_buffers(layers: Sequence[nn.BatchNorm2d]) -> list[dict[str, Any]]:
    """Return copies of what each layer keeps."""
    return [{name: getattr(layer, name).clone() for name in BUFFERS} for layer in layers]


def exchange(layers: Sequence[nn.BatchNorm2d], buffers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give each layer these buffers; return those that it had."""
    former = [{name: getattr(layer, name) for name in BUFFERS} for layer in layers]
    for layer, values in zip(layers, buffers, strict=True):
        for name, value in values.items():
            setattr(layer, name, value)
    return former


class UntouchedStatistics:
    """Inside, BatchNorm layers have buffers that are thrown away: a forward pass leaves their own alone.

    It may be entered again.
    """

    def __init__(self, layers: Sequence[nn.BatchNorm2d]) -> None:
        self.layers = layers
        self._own: list[dict[str, Any]] = []

    def __enter__(self) -> None:
        self._own = exchange(self.layers, copied_buffers(self.layers))

    def __exit__(self, *exception: object) -> None:
        exchange(self.layers, self._own)


def running(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance of a layer."""
    assert layer.running_mean is not None and layer.running_var is not None
    return layer.running_mean, layer.running_var
