"""The noise-adapted teacher F~_k (Section III-A3, Eq. 3): the ensemble with other BatchNorm statistics.

The weights are the ensemble's own; only the running statistics differ, so they are exchanged for the
time of a call instead of copying the models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedbicross_flwr.batch_norm import batch_norms, copied_buffers, exchange
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config_fedbicross import TeacherConfig
from fedbicross_flwr.ensemble import Ensemble
from fedbicross_flwr.parallel import Step

Iterates = Mapping[int, Tensor]
"""Some iterates x^(t) of an inversion by their t, 1 <= t <= T; each (B, channels, h, w)."""


class Statistics:
    """A second set of BatchNorm buffers for an ensemble, started at the originals.

    Inside a ``with`` the ensemble uses them.
    """

    def __init__(self, ensemble: Ensemble, momentum: float) -> None:
        self.layers = [layer for model in ensemble.members for layer in batch_norms(model)]
        self.buffers = copied_buffers(self.layers)
        self.momentum = momentum
        self._originals: list[dict[str, Any]] = []

    def __enter__(self) -> Statistics:
        self._originals = exchange(self.layers, self.buffers)
        return self

    def __exit__(self, *exception: object) -> None:
        exchange(self.layers, self._originals)

    @torch.no_grad()
    def update(self, ensemble: Ensemble, images: Tensor, compute: Compute) -> Tensor:
        """Move the statistics towards those of `images`: one line of Eq. 3; return the members' logits.

        This is PyTorch's BatchNorm in training mode with momentum 1 - beta: a layer sees its input as
        normalised by the batch so far, and the variance is the unbiased one. The logits are those of the
        batch's own statistics.
        """
        former = [layer.momentum for layer in self.layers]
        with self:
            for layer in self.layers:
                layer.train()
                layer.momentum = 1.0 - self.momentum
            try:
                return ensemble.member_logits(images, compute)
            finally:
                for layer, value in zip(self.layers, former, strict=True):
                    layer.eval()
                    layer.momentum = value


def adapt_statistics(
    ensemble: Ensemble, iterates: Iterates, config: TeacherConfig, compute: Compute
) -> Statistics:
    """Return the noise-adapted statistics of Eq. 3: the iterates are read in reverse, t = T..1.

    Read in reverse, x^(t) ends with weight (1 - beta) beta^(t-1): the first iterates, which are nearly
    noise, count most. With ``noise_window`` W > 0 only t <= W are read, which changes a share beta^W.
    """
    statistics = Statistics(ensemble, config.noise_momentum)
    for t in sorted(steps_read(max(iterates), config), reverse=True):
        statistics.update(ensemble, load(iterates, t, compute), compute)
    return statistics


def steps_read(iterations: int, config: TeacherConfig) -> range:
    """Return the t whose iterates the configured noise adaptation reads, besides the replayed ones."""
    if config.noise_adaptation == "reverse_ema":
        return range(1, min(config.noise_window or iterations, iterations) + 1)
    if config.noise_adaptation == "progressive":
        return range(1, iterations + 1)
    return range(0)


def load(iterates: Iterates, t: int, compute: Compute) -> Tensor:
    """Return x^(t) in float32 on the device."""
    return compute.images(iterates[t].float())


def by_reverse_average(
    ensemble: Ensemble, iterates: Iterates, replayed: Sequence[int], config: TeacherConfig, compute: Compute
) -> Iterator[tuple[int, Tensor]]:
    """Yield ``(t, scores of F~ on x^(t))`` with the statistics of Eq. 3."""
    with adapt_statistics(ensemble, iterates, config, compute):
        for t in replayed:
            yield t, ensemble.scores(load(iterates, t, compute), compute)


def by_batch(
    ensemble: Ensemble, iterates: Iterates, replayed: Sequence[int], config: TeacherConfig, compute: Compute
) -> Iterator[tuple[int, Tensor]]:
    """Yield the scores with every layer normalising by the batch itself (FedISCA's released code)."""
    statistics = Statistics(ensemble, config.noise_momentum)
    for t in replayed:
        yield t, ensemble.combine(statistics.update(ensemble, load(iterates, t, compute), compute))


def progressively(
    ensemble: Ensemble, iterates: Iterates, replayed: Sequence[int], config: TeacherConfig, compute: Compute
) -> Iterator[tuple[int, Tensor]]:
    """Yield the scores with the moving average of the statistics of x^(1), ..., x^(t)."""
    statistics = Statistics(ensemble, config.noise_momentum)
    wanted = set(replayed)
    for t in sorted(iterates):
        images = load(iterates, t, compute)
        statistics.update(ensemble, images, compute)
        if t in wanted:
            with statistics:
                scores = ensemble.scores(images, compute)
            yield t, scores


ADAPTATIONS: Mapping[str, Callable[..., Iterator[tuple[int, Tensor]]]] = {
    "reverse_ema": by_reverse_average,
    "batch": by_batch,
    "progressive": progressively,
}


@torch.no_grad()
def teacher_scores(
    ensemble: Ensemble,
    iterates: Iterates,
    replayed: Sequence[int],
    config: TeacherConfig,
    compute: Compute,
    after_step: Step = lambda step: None,
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Return the scores of F and of F~ on every replayed iterate.

    They are computed once for a source and shared by all target clusters.

    Parameters
    ----------
    ensemble : Ensemble
        F, in eval mode; its statistics are exchanged for the time of the call, and given back.
    iterates : mapping of int to Tensor
        The x^(t) that are replayed, and those that the noise adaptation reads (`steps_read`).
    replayed : sequence of int
        The t that are answered for.
    config : TeacherConfig
        How F~'s statistics are made.
    compute : Compute
        The device and the arithmetic.
    after_step : callable, optional
        Called with 1, 2, ... for each answer of F and then of F~.

    Returns
    -------
    tuple of dict of int to Tensor
        The scores of F, then of F~, by t: each float32 (B, C). Without noise adaptation F~ is F.
    """
    plain: dict[int, Tensor] = {}
    for step, t in enumerate(replayed, start=1):
        plain[t] = ensemble.scores(load(iterates, t, compute), compute)
        after_step(step)
    if config.noise_adaptation == "none":
        return plain, plain
    adapted: dict[int, Tensor] = {}
    answers = ADAPTATIONS[config.noise_adaptation](ensemble, iterates, replayed, config, compute)
    for step, (t, scores) in enumerate(answers, start=len(replayed) + 1):
        adapted[t] = scores
        after_step(step)
    return plain, adapted
