"""Uploads that are unlike the others, pointed out.

A server cannot tell a poisoned model from an unusual hospital. So only what would take the numbers of the
others with it is refused (`fedbicross_flwr.sound`); what is merely far from the rest is flagged here, and
`deployment.hold_back` decides. Everything reads the models alone, on artificial images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbicross_flwr.labelled_images import predict_logits
from fedbicross_flwr.methods import ClientUpload, ServerTask
from fedbicross_flwr.models import StateDict, with_tensors
from fedbicross_flwr.sound import varied_probes

FAR: Final = 5.0
"""Robust standard deviations from the median at which an upload is flagged."""

MANY: Final = 10.0
"""Times the median number of images at which an upload is flagged."""


@dataclass(frozen=True)
class Evidence:
    """What flags are made of, one row an upload.

    Norms (N,), probabilities on the probes (N, M, C), and how many images each says that it has (N,).
    """

    norms: Tensor
    answers: Tensor
    counts: Tensor


def find_flags(uploads: Sequence[ClientUpload], task: ServerTask) -> dict[int, list[str]]:
    """Return in which way an upload is unlike the others, by client; most have no entry.

    Parameters
    ----------
    uploads : sequence of ClientUpload
        All that came in time. With fewer than three there is no majority, so nothing is flagged.
    """
    if len(uploads) < 3:
        return {}
    probes = varied_probes(task.spec.channels, task.config.seed)
    answers = [F.softmax(predict_logits(task.load(one.state), probes, task.compute), -1) for one in uploads]
    evidence = Evidence(
        torch.stack([parameter_norm(one.state, task) for one in uploads]),
        torch.stack(answers).cpu().double(),
        torch.tensor([float(one.num_samples) for one in uploads], dtype=torch.float64),
    )
    found: dict[int, list[str]] = {}
    for rule in RULES.values():
        for index, text in rule(evidence).items():
            found.setdefault(uploads[index].client, []).append(text)
    return found


def parameter_norm(state: StateDict, task: ServerTask) -> Tensor:
    """Return the L2 norm of all trained weights, without BatchNorm's statistics."""
    parameters = with_tensors(task.spec, state).parameters()
    return torch.stack([one.detach().double().square().sum() for one in parameters]).sum().sqrt()


def by_norm(evidence: Evidence) -> dict[int, str]:
    """Flag a model whose weights are far larger or smaller than the others'."""
    norms, middle = evidence.norms, float(evidence.norms.median())
    far = (norms - middle).abs() / spread(norms, 0.1 * middle)
    return {
        index: f"the norm of its weights is {float(norms[index]):.3g}, the median is {middle:.3g}"
        for index in outliers(far)
    }


def by_agreement(evidence: Evidence) -> dict[int, str]:
    """Flag a model that answers artificial images unlike all the rest (cosine of the probabilities)."""
    flat = evidence.answers.flatten(1)
    others = (flat.sum(0, keepdim=True) - flat) / (len(flat) - 1)
    agreement = F.cosine_similarity(flat, others)
    middle = float(agreement.median())
    below = (middle - agreement) / spread(agreement, 0.1)
    return {
        index: f"its answers agree with the rest by {float(agreement[index]):.2f}, the median is {middle:.2f}"
        for index in outliers(below)
    }


def by_single_class(evidence: Evidence) -> dict[int, str]:
    """Flag a model that sees one class in everything, unless most do."""
    said = evidence.answers.argmax(-1)
    single = (said == said[:, :1]).all(1)
    if 2 * int(single.sum()) >= len(single):
        return {}
    return {
        index: f"it answers class {int(said[index, 0])} whatever it is shown"
        for index in single.nonzero().flatten().tolist()
    }


def by_count(evidence: Evidence) -> dict[int, str]:
    """Flag a site that says it has far more images than the others: averages weigh by that number."""
    counts, middle = evidence.counts, float(evidence.counts.median())
    return {
        int(index): f"it says that it has {int(counts[index]):,} images, the median is {int(middle):,}"
        for index in (counts > MANY * middle).nonzero().flatten().tolist()
    }


RULES: Mapping[str, Callable[[Evidence], dict[int, str]]] = {
    "norm": by_norm,
    "agreement": by_agreement,
    "single class": by_single_class,
    "count": by_count,
}


def spread(values: Tensor, least: float) -> float:
    """Return a robust standard deviation, 1.4826 times the median absolute deviation, and at least `least`.

    Of three alike the deviation says nothing, so a floor keeps small differences from being flagged.
    """
    deviation = 1.4826 * float((values - values.median()).abs().median())
    return max(deviation, least)


def outliers(scores: Tensor) -> list[int]:
    """Return the rows that are far from the median."""
    return [int(index) for index in (scores > FAR).nonzero().flatten().tolist()]
