"""Stage 1, synthesis: images from an ensemble, without data (Section III-A2, Eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config_fedbicross import InversionConfig
from fedbicross_flwr.ensemble import Ensemble
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.inversion_loss import DESCENTS

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""What the setting ``inversion.trajectory_dtype`` names; ``auto`` is what the networks compute in."""

DIAGNOSTICS = (
    "cross_entropy",
    "batch_norm",
    "total_variation",
    "agreement",
    "confidence",
    "classes_covered",
)
"""What is recorded at every step: the three terms of Eq. 2 (unweighted), the share of images that the
ensemble takes for their label, its mean highest probability, and how many classes it answers with."""


@dataclass(frozen=True)
class Synthesis:
    """The inversion of one ensemble.

    Parameters
    ----------
    iterates : dict of int to Tensor
        The kept x^(t), 1 <= t <= T, each (B, channels, 28, 28) without jitter; x^(T) is always kept, in
        float32.
    labels : Tensor
        Target labels, int64 (B,).
    diagnostics : Tensor
        float32 (T, 6), one row a step, columns as in `DIAGNOSTICS`; row t - 1 describes x^(t-1), the
        images that step t started from.
    """

    iterates: dict[int, Tensor]
    labels: Tensor
    diagnostics: Tensor

    @property
    def iterations(self) -> int:
        """Return T."""
        return max(self.iterates)

    @property
    def images(self) -> Tensor:
        """Return the final images x^(T)."""
        return self.iterates[self.iterations]


def balanced_labels(size: int, prior: Tensor) -> Tensor:
    """Return labels 0..C-1 in turn, int64 (size,)."""
    return torch.arange(size) % len(prior)


def prior_labels(size: int, prior: Tensor) -> Tensor:
    """Return labels in proportion to `prior` (C,), rounded by largest remainder, classes in turn."""
    quota = prior.double() / prior.double().sum() * size
    counts = quota.floor()
    remainder = int(size - counts.sum())
    counts[(quota - counts).argsort(descending=True, stable=True)[:remainder]] += 1
    labels = torch.repeat_interleave(torch.arange(len(prior)), counts.long())
    # Spread every class over the batch, so that any part of it holds the same mixture.
    rank = torch.cat([(torch.arange(int(n)) + 0.5) / n for n in counts if n > 0])
    return labels[rank.argsort(stable=True)]


LABELS: Mapping[str, Callable[[int, Tensor], Tensor]] = {
    "balanced": balanced_labels,
    "cluster_prior": prior_labels,
    "classifier_norms": prior_labels,
}
"""``(images, prior (C,)) -> labels``"""


def roll(images: Tensor, jitter: int, generator: torch.Generator) -> Tensor:
    """Roll the batch by integers drawn uniformly from -jitter..jitter, one for each axis."""
    if not jitter:
        return images
    rows, columns = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist()
    return images.roll((rows, columns), dims=(2, 3))


def invert(
    ensemble: Ensemble,
    labels: Tensor,
    channels: int,
    keep: Collection[int],
    config: InversionConfig,
    generator: torch.Generator,
    compute: Compute,
    after_step: Callable[[int], None] = lambda t: None,
) -> Synthesis:
    """Optimise noise until the ensemble takes it for `labels` (Eqs. 1 and 2).

    Parameters
    ----------
    ensemble : Ensemble
        The frozen teacher F_k. Every member keeps its own BatchNorm statistics.
    labels : Tensor
        int64 (B,).
    channels : int
        Image channels.
    keep : collection of int
        The steps t whose x^(t) is kept besides the last; memory grows with their number, not with T.
    config : InversionConfig
        T, Adam's step, the weights of Eq. 2, the jitter.
    generator : torch.Generator
        Draws the initial noise and the jitter.
    compute : Compute
        The device and the arithmetic.
    after_step : callable, optional
        Called with t = 1..T.

    Returns
    -------
    Synthesis
        The kept iterates, the labels on the CPU, and a row of diagnostics a step.
    """
    descend = DESCENTS[config.teachers](ensemble, config, compute)
    labels = labels.to(compute.device)
    noise = torch.randn((len(labels), channels, 28, 28), generator=generator)
    images = noise.to(compute.device).requires_grad_(True)
    optimiser = torch.optim.Adam([images], config.lr)
    wanted = {*keep} - {config.iterations}
    iterates: dict[int, Tensor] = {}
    dtype = DTYPES.get(config.trajectory_dtype, compute.dtype)
    diagnostics = torch.empty(config.iterations, len(DIAGNOSTICS), device=compute.device)
    for t in range(1, config.iterations + 1):
        optimiser.zero_grad(set_to_none=True)
        seen = compute.images(roll(images, config.jitter, generator))
        scores, terms = descend(seen, labels)
        optimiser.step()
        diagnostics[t - 1] = torch.cat([terms, describe(scores, labels)])
        if t in wanted:
            # `images` is changed in place by the next step: what is kept must be a copy.
            iterates[t] = images.detach().to(dtype, copy=True)
        after_step(t)
    iterates[config.iterations] = images.detach().clone()
    return Synthesis(iterates, labels.cpu(), diagnostics.cpu())


def check_finite(synthesis: Synthesis, key: str, lr: float) -> None:
    """Refuse images that diverged, before they are kept and learned from.

    Parameters
    ----------
    key, lr : str, float
        The setting of Adam's step, and its value.

    Raises
    ------
    FedBiCrossError
        Naming the setting.
    """
    if not bool(torch.isfinite(synthesis.images).all()):
        raise FedBiCrossError(f"the inversion diverged: its images are not finite; lower {key} = {lr:g}")


def describe(scores: Tensor, labels: Tensor) -> Tensor:
    """Return (agreement, confidence, classes covered) of one step; nothing is copied to the host."""
    confidence, answers = F.softmax(scores, 1).max(1)
    covered = F.one_hot(answers, scores.shape[1]).any(0).sum()
    return torch.stack([(answers == labels).float().mean(), confidence.mean(), covered.float()])
