"""The teacher of a cluster: the ensemble F_k (Section III-A1) and how its members are averaged.

An ensemble returns *scores*: numbers whose softmax is the teacher's distribution, so that a temperature
acts on logits when logits are averaged, and on log-probabilities when probabilities are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbicross_flwr.compute import Compute

Combiner = Callable[[Tensor, Tensor], Tensor]
"""``(logits (m, n, C), class weights (m, C)) -> scores (n, C)``"""


def mean_logits(logits: Tensor, class_weights: Tensor) -> Tensor:
    """Average logits, as the paper does."""
    return logits.mean(0)


def mean_probabilities(logits: Tensor, class_weights: Tensor) -> Tensor:
    """Average probabilities."""
    return weighted_mixture(logits, torch.ones_like(logits[..., :1]))


def confidence_weighted(logits: Tensor, class_weights: Tensor) -> Tensor:
    """Average probabilities, each model weighted by 1 - normalised entropy of what it says of the image."""
    log_probabilities = F.log_softmax(logits, -1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1, keepdim=True)
    classes = torch.full((), float(logits.shape[-1]), device=logits.device)
    confidence = 1.0 - entropy / classes.log()
    # A floor, so that models which know nothing at all still have a mean.
    return weighted_mixture(logits, confidence.clamp_min(1e-4))


def class_weighted(logits: Tensor, class_weights: Tensor) -> Tensor:
    """Average probabilities, each class by the models that seem to have seen it most (`class_shares`)."""
    return weighted_mixture(logits, class_weights.unsqueeze(1))


def weighted_mixture(logits: Tensor, weights: Tensor) -> Tensor:
    """Return the log of the weighted mean of probabilities, normalised over classes."""
    scores = torch.logsumexp(F.log_softmax(logits, -1) + weights.log(), 0)
    return F.log_softmax(scores, -1)


COMBINERS: Mapping[str, Combiner] = {
    "logits": mean_logits,
    "probabilities": mean_probabilities,
    "confidence": confidence_weighted,
    "class_weighted": class_weighted,
}


def classifier_norms(model: nn.Module) -> Tensor:
    """Return the L2 norm of each class's row of the last layer, shape (C,).

    A class that a client saw often pulls its row far from the small initial weights, so the norms tell
    something of the client's label distribution without asking the client for it.
    """
    fc = model.fc
    assert isinstance(fc, nn.Linear)
    norms: Tensor = fc.weight.detach().float().norm(dim=1)
    return norms


def class_shares(model: nn.Module) -> Tensor:
    """Return an estimate of a client's label distribution from its upload alone, (C,), summing to 1.

    Weight decay and the shared start leave the row of a class that was never seen the shortest, so what is
    above the shortest row is put in proportion. A floor keeps every share above zero.
    """
    norms = classifier_norms(model)
    above = norms - norms.min() + SHARE_FLOOR * norms.mean().clamp_min(SHARE_FLOOR)
    return above / above.sum()


SHARE_FLOOR = 1e-3
"""Of the mean norm: what a class has that seems never to have been seen."""


class Ensemble(nn.Module):
    """Frozen models in eval mode that answer together.

    Parameters
    ----------
    models : sequence of nn.Module
        The members; they are frozen and put into eval mode.
    aggregation : str
        A name in `COMBINERS`.
    """

    class_weights: Tensor

    def __init__(self, models: Sequence[nn.Module], aggregation: str) -> None:
        super().__init__()
        self.members = nn.ModuleList(models).eval().requires_grad_(False)
        self.aggregation = aggregation
        shares = torch.stack([class_shares(model) for model in models])
        self.register_buffer("class_weights", shares / shares.sum(0, keepdim=True))

    def train(self, mode: bool = True) -> Ensemble:
        """Stay in eval mode: a teacher is never trained."""
        return super().train(False)

    def combine(self, logits: Tensor) -> Tensor:
        """Return scores (n, C) from the members' float32 logits (m, n, C)."""
        return COMBINERS[self.aggregation](logits, self.class_weights)

    def member_logits(self, images: Tensor, compute: Compute) -> Tensor:
        """Return each member's float32 logits, shape (m, n, C)."""
        return torch.stack([compute.logits(model, images) for model in self.members])

    def scores(self, images: Tensor, compute: Compute) -> Tensor:
        """Return the ensemble's scores (n, C) for images (n, channels, h, w)."""
        return self.combine(self.member_logits(images, compute))


@torch.no_grad()
def ensemble_scores(ensemble: Ensemble, images: Tensor, compute: Compute, batch_size: int = 512) -> Tensor:
    """Return the scores, float32 (n, C), of images (n, channels, h, w), `batch_size` of them at a time."""
    parts = [ensemble.scores(compute.images(part), compute) for part in images.split(batch_size)]
    return torch.cat(parts)
