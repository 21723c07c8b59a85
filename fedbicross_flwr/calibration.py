"""Temperature scaling: a personal model's probabilities, softened to what its accuracy supports.

Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017. One positive number divides all logits. It
never changes which class is answered. It is fitted on the client's own local validation images, which no
training step of stage 3 has seen, and stays with the personal model, at the site.
"""

from __future__ import annotations

import math
from typing import Final

import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from fedbicross_flwr.compute import Compute
from fedbicross_flwr.labelled_images import LabelledImages, predict_logits
from fedbicross_flwr.models import StateDict, load_state
from fedbicross_flwr.training import ClientTask

MIN_IMAGES: Final = 10
"""Validation images below which nothing is fitted: a temperature from three images is chance."""

BOUNDS: Final = (0.05, 20.0)
"""Least and greatest temperature."""


def validation_temperature(images: LabelledImages, state: StateDict, task: ClientTask) -> float:
    """Return the temperature of a client's model, fitted on the client's validation images alone.

    Parameters
    ----------
    images : LabelledImages
        All of the client's own images; the part that was trained on is not looked at.
    state : StateDict
        The model.
    task : ClientTask
        Whose work this is. The logits are computed in float32 whatever its precision, as those of
        `fedbicross_flwr.artifacts.Classifier` are.

    Returns
    -------
    float
        1 where there are fewer than `MIN_IMAGES` validation images; else see `fit_temperature`.
    """
    _, validation = images.split(task.config.client.validation_fraction)
    if len(validation) < MIN_IMAGES:
        return 1.0
    compute = Compute(task.compute.device)
    model = compute.place(load_state(task.spec, state))
    return fit_temperature(predict_logits(model, validation.images, compute), validation.labels)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature within `BOUNDS` that minimises the negative log-likelihood.

    Parameters
    ----------
    logits : Tensor
        Floating point (n, C).
    labels : Tensor
        int64 (n,).

    Returns
    -------
    float
        1 where nothing is gained, without images, and where every image is answered right: the likelihood
        then grows without end as the temperature falls to 0, and would make a model claim certainty.
    """
    scores, truth = logits.detach().cpu().double(), labels.cpu()
    if not len(truth) or bool((scores.argmax(1) == truth).all()):
        return 1.0
    # In the inverse temperature the loss is convex, so it has a single valley in the logarithm as well.
    found = minimize_scalar(
        lambda exponent: negative_log_likelihood(scores, truth, math.exp(exponent)),
        bounds=tuple(math.log(bound) for bound in BOUNDS),
        method="bounded",
        options={"xatol": 1e-6},
    )
    temperature = math.exp(float(found.x))
    gained = negative_log_likelihood(scores, truth, temperature) < negative_log_likelihood(scores, truth, 1.0)
    return temperature if gained else 1.0


def negative_log_likelihood(logits: Tensor, labels: Tensor, temperature: float) -> float:
    """Return the mean over images of -log softmax(logits / temperature) at the label, in nats."""
    return float(F.cross_entropy(logits / temperature, labels))
