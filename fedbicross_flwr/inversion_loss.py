"""The loss of an inversion, and its gradient at the images through all teachers of a cluster (Eq. 2).

It is ``L_DI(x; F, y) = CE(F(x), y) + a_TV R_TV(x) + a_BN R_BN(x)``; R_BN is read as `batch_norm` has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbicross_flwr.batch_norm import StatisticsModel
from fedbicross_flwr.batch_norm_parts import PartwiseModel
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config_fedbicross import InversionConfig
from fedbicross_flwr.ensemble import Ensemble


def differences(images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return horizontal, vertical and both diagonal differences of neighbouring pixels."""
    return (
        images[..., :, 1:] - images[..., :, :-1],
        images[..., 1:, :] - images[..., :-1, :],
        images[..., 1:, 1:] - images[..., :-1, :-1],
        images[..., 1:, :-1] - images[..., :-1, 1:],
    )


def norm_variation(images: Tensor) -> Tensor:
    """Return R_TV as FedISCA has it: the sum of four L2 norms (not squared) over the whole batch."""
    return torch.stack([difference.norm() for difference in differences(images)]).sum()


def mean_square_variation(images: Tensor) -> Tensor:
    """Return the sum of the four mean squared differences, which does not depend on the batch size."""
    return torch.stack([difference.square().mean() for difference in differences(images)]).sum()


VARIATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "norm": norm_variation,
    "mean_square": mean_square_variation,
}


Descent = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``descend(seen, labels) -> (scores, terms)``: see `TogetherDescent`."""


class TogetherDescent:
    """The gradient of Eq. 2 in one backward pass through all teachers of a cluster.

    Parameters
    ----------
    ensemble : Ensemble
        The cluster's teachers, and how their logits become scores.
    config : InversionConfig
        The weights of Eq. 2.
    compute : Compute
        The device and the arithmetic.
    """

    def __init__(self, ensemble: Ensemble, config: InversionConfig, compute: Compute) -> None:
        self.members = [StatisticsModel(model) for model in ensemble.members]
        self.ensemble, self.config, self.compute = ensemble, config, compute

    def __call__(self, seen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gradient to the images that `seen` was made of.

        Parameters
        ----------
        seen : Tensor
            The jittered images (B, channels, 28, 28), with a graph to the ones that are optimised.
        labels : Tensor
            int64 (B,), on the device.

        Returns
        -------
        tuple of Tensor
            The ensemble's scores (B, C), and the unweighted terms (3,): cross-entropy, R_BN, R_TV.
        """
        config = self.config
        scores, batch_norm = answer(self.members, self.ensemble, seen, config.bn_models, self.compute)
        cross_entropy, variation = F.cross_entropy(scores, labels), VARIATIONS[config.tv](seen)
        (cross_entropy + config.tv_weight * variation + config.bn_weight * batch_norm).backward()
        return scores.detach(), torch.stack([cross_entropy, batch_norm, variation]).detach()


class InTurnDescent:
    """What `TogetherDescent` does, with one teacher's activations of some images in memory at a time.

    What the loss wants of a teacher depends on what all of them answer, and on the statistics of all images.
    So all images pass through all teachers first and no activation is kept; then each teacher answers once
    more, for `images_at_once` of them, and passes its part of the gradient on before the next.
    """

    def __init__(self, ensemble: Ensemble, config: InversionConfig, compute: Compute) -> None:
        self.members = [PartwiseModel(model) for model in ensemble.members]
        self.weight = 1.0 if config.bn_models == "sum" else 1.0 / len(self.members)
        self.ensemble, self.config, self.compute = ensemble, config, compute

    def __call__(self, seen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gradient to the images that `seen` was made of; see `TogetherDescent`."""
        config, size = self.config, self.config.images_at_once or len(seen)
        parts = seen.detach().split(size)
        read = [member.read(parts, config.bn_weight * self.weight, self.compute) for member in self.members]
        logits = torch.stack([answered for answered, _ in read]).requires_grad_()
        scores = self.ensemble.combine(logits)
        cross_entropy = F.cross_entropy(scores, labels)
        (wanted,) = torch.autograd.grad(cross_entropy, logits)
        collected = [
            self.part_gradient(part, logit_gradients)
            for part, logit_gradients in zip(parts, wanted.split(size, dim=1), strict=True)
        ]
        variation = VARIATIONS[config.tv](seen)
        torch.autograd.backward(
            [seen, variation], [torch.cat(collected), torch.full_like(variation, config.tv_weight)]
        )
        batch_norm = self.weight * torch.stack([distance for _, distance in read]).sum()
        return scores.detach(), torch.stack([cross_entropy, batch_norm, variation]).detach()

    def part_gradient(self, part: Tensor, logit_gradients: Tensor) -> Tensor:
        """Return the gradient at some images through all teachers, given that at their logits (m, n, C)."""
        # A leaf that collects the teachers' parts, so that nothing is kept from one to the next.
        leaf = part.detach().requires_grad_(True)
        for member, logit_gradient in zip(self.members, logit_gradients, strict=True):
            member.accumulate_gradient(leaf, logit_gradient, self.compute)
        assert leaf.grad is not None
        return leaf.grad


DESCENTS: Mapping[str, Callable[[Ensemble, InversionConfig, Compute], Descent]] = {
    "together": TogetherDescent,
    "in_turn": InTurnDescent,
}
"""What the setting ``inversion.teachers`` names."""


def answer(
    members: Iterable[nn.Module], ensemble: Ensemble, images: Tensor, reduction: str, compute: Compute
) -> tuple[Tensor, Tensor]:
    """Return the ensemble's scores (B, C) and R_BN over all layers of all members."""
    answers = [member_answer(model, images, compute) for model in members]
    total = torch.stack([distance for _, distance in answers])
    scores = ensemble.combine(torch.stack([logits for logits, _ in answers]))
    return scores, total.sum() if reduction == "sum" else total.mean()


def member_answer(model: nn.Module, images: Tensor, compute: Compute) -> tuple[Tensor, Tensor]:
    """Return a `StatisticsModel`'s float32 logits (B, C) and its R_BN over all layers."""
    with compute.autocast():
        logits, distance = model(images)
    return logits.float(), distance
