"""The loss of an inversion, and its gradient at the images through all teachers of a cluster (Eq. 2).

It is ``L_DI(x; F, y) = CE(F(x), y) + a_TV R_TV(x) + a_BN R_BN(x)``; R_BN is read as `batch_norm` has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def descend_together(
    members: Sequence[nn.Module],
    ensemble: Ensemble,
    seen: Tensor,
    labels: Tensor,
    config: InversionConfig,
    compute: Compute,
) -> tuple[Tensor, Tensor]:
    """Add the gradient of Eq. 2 to the images that `seen` was made of, in one backward pass.

    Parameters
    ----------
    members : sequence of nn.Module
        The ensemble's models, each as a `StatisticsModel`.
    ensemble : Ensemble
        Says how their logits become scores.
    seen : Tensor
        The jittered images (B, channels, 28, 28), with a graph to the ones that are optimised.
    labels : Tensor
        int64 (B,), on the device.
    config : InversionConfig
        The weights of Eq. 2.
    compute : Compute
        The device and the arithmetic.

    Returns
    -------
    tuple of Tensor
        The ensemble's scores (B, C), and the unweighted terms (3,): cross-entropy, R_BN, R_TV.
    """
    scores, batch_norm = answer(members, ensemble, seen, config.bn_models, compute)
    cross_entropy, variation = F.cross_entropy(scores, labels), VARIATIONS[config.tv](seen)
    (cross_entropy + config.tv_weight * variation + config.bn_weight * batch_norm).backward()
    return scores.detach(), torch.stack([cross_entropy, batch_norm, variation]).detach()


def descend_in_turn(
    members: Sequence[nn.Module],
    ensemble: Ensemble,
    seen: Tensor,
    labels: Tensor,
    config: InversionConfig,
    compute: Compute,
) -> tuple[Tensor, Tensor]:
    """Do what `descend_together` does with one member's activations in memory at a time.

    What the loss wants of a member depends on what all of them answer. So all answer first and nothing is
    kept; then each answers once more, and passes its part of the gradient on before the next.
    """
    with torch.no_grad(), compute.autocast():
        logits = torch.stack([model(seen).float() for model in ensemble.members])
    scores = ensemble.combine(logits.requires_grad_())
    cross_entropy = F.cross_entropy(scores, labels)
    (wanted,) = torch.autograd.grad(cross_entropy, logits)
    weight = 1.0 if config.bn_models == "sum" else 1.0 / len(members)
    batch_norm = torch.zeros_like(cross_entropy)
    # A leaf that collects the members' parts, so that nothing is kept from one to the next.
    collected = seen.detach().requires_grad_(True)
    for model, slope in zip(members, wanted, strict=True):
        member_logits, distance = member_answer(model, collected, compute)
        torch.autograd.backward(
            [member_logits, distance], [slope, torch.full_like(distance, config.bn_weight * weight)]
        )
        batch_norm += weight * distance.detach()
    variation = VARIATIONS[config.tv](collected)
    (config.tv_weight * variation).backward()
    seen.backward(collected.grad)
    return scores.detach(), torch.stack([cross_entropy, batch_norm, variation]).detach()


Descent = Callable[
    [Sequence[nn.Module], Ensemble, Tensor, Tensor, InversionConfig, Compute], tuple[Tensor, Tensor]
]

DESCENTS: Mapping[str, Descent] = {"together": descend_together, "in_turn": descend_in_turn}
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
