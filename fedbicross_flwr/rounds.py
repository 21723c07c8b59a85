"""A client's part of one of many rounds: it trains the global model that it received on its own images.

All rounds together are one-shot's round 1 dealt out: the same epochs in all, the same recipe, and a learning
rate that falls over the whole of them. A run of a single round is round 1 itself, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.labelled_images import LabelledImages, predict_logits
from fedbicross_flwr.models import ModelSpec, StateDict, build_model, load_state, state_of
from fedbicross_flwr.seeds import derive_seed, torch_generator
from fedbicross_flwr.training import ClientTask, LocalModel, fit_client


def initial_state(spec: ModelSpec, config: RunConfig) -> StateDict:
    """Return the weights from which all clients of a one-shot run start (``client.initial_weights``)."""
    return state_of(build_model(spec, derive_seed(config.seed, "initial-weights", None)))


def epochs_of(epochs: int, rounds: int, number: int) -> range:
    """Return which of all epochs belong to a round; what does not divide goes to the first rounds.

    Parameters
    ----------
    epochs : int
        All epochs of a client, at least `rounds`.
    rounds : int
        All rounds.
    number : int
        The round: 1, 2, ...
    """
    share, rest = divmod(epochs, rounds)
    first = (number - 1) * share + min(number - 1, rest)
    return range(first, first + share + (number <= rest))


def train_round(
    data: LabelledImages, received: StateDict, task: ClientTask, number: int, proximal_mu: float = 0.0
) -> LocalModel:
    """Train the received model for one round's epochs.

    Parameters
    ----------
    data : LabelledImages
        All of the client's images; its validation images choose the epoch within the round, if
        ``client.checkpoint`` says so.
    received : StateDict
        The global model.
    number : int
        The round: 1, 2, ...
    proximal_mu : float, default 0.0
        FedProx's mu: the loss has the term mu/2 ||w - w_received||^2 over all trained weights (Li et al.,
        2020, Eq. 2).

    Raises
    ------
    FedBiCrossError
        When the client has too few images or classes, or the training diverges.
    """
    config = task.config
    model = task.compute.place(load_state(task.spec, received))
    epochs = epochs_of(config.client.epochs, config.flower.rounds, number)
    # The first round draws as round 1 of a one-shot run does.
    order = torch_generator(config.seed, "training", task.client, None if number == 1 else number)
    penalty = proximal_term(model, proximal_mu) if proximal_mu else None
    # The momentum starts anew, as the round's weights do.
    return fit_client(model, data, task, order, epochs, penalty)


def proximal_term(model: nn.Module, mu: float) -> Callable[[], Tensor]:
    """Return a function that gives mu/2 ||w - w0||^2, w0 being the weights as they are now."""
    anchors = [(weight, weight.detach().clone()) for weight in model.parameters()]

    def term() -> Tensor:
        return 0.5 * mu * torch.stack([(now - anchor).square().sum() for now, anchor in anchors]).sum()

    return term


def training_loss(data: LabelledImages, received: Mapping[str, Tensor], task: ClientTask) -> float:
    """Return the mean cross-entropy of the received model on the client's training images.

    q-FedAvg weighs clients by it (Li et al., 2020, q-FFL: F_k at the global model). In eval mode.
    """
    training, _ = data.to(task.compute).split(task.config.client.validation_fraction)
    model = task.compute.place(load_state(task.spec, received))
    logits = predict_logits(model, training.images, task.compute)
    return float(F.cross_entropy(logits, training.labels))
