"""FedAvg-1 (McMahan et al., AISTATS 2017, Algorithm 1 with a single round): the weighted mean of all uploads.

::

    w = sum_i (n_i / n) w_i        n_i: images of client i, validation images among them;  n = sum_i n_i

The paper averages weights and does not speak of BatchNorm's buffers, which are no weights. Here

- running means and variances take the same weighted mean. The mean of variances leaves out how far the means
  lie apart, and an average of weights is another network, to which averaged statistics need not fit;
- batch counters, which are integers and play no part in a prediction, take their maximum.

``fedavg.bn`` keeps these statistics (``average``, the default), takes those of the first upload, or lets each
client measure them anew on its own training images: the model as shipped then differs from client to client.

There are no published settings but the clients' own training, which all methods share. Uploads start from the
same weights (``client.initial_weights``), as in the paper; an average of independent ones is near chance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final

import torch
from torch.optim.swa_utils import update_bn

from fedbicross_flwr.distillation import fine_tuned
from fedbicross_flwr.labelled_images import LabelledImages
from fedbicross_flwr.methods.protocol import ClientUpload, Method, ServerOutcome, ServerTask
from fedbicross_flwr.models import StateDict, load_state, state_of
from fedbicross_flwr.shipment import Shipment
from fedbicross_flwr.training import ClientTask

BATCH: Final = 256
"""Images that BatchNorm's statistics are measured on at a time; all batches count the same."""
STATISTICS: Final = ("running_mean", "running_var")
"""How the names of BatchNorm's statistics end."""


def fedavg(uploads: Sequence[ClientUpload], task: ServerTask) -> ServerOutcome:
    """Average the uploads into one model for everybody; the setting is ``task.config.fedavg.bn``."""
    states = [upload.state for upload in uploads]
    average = average_states(states, [float(upload.num_samples) for upload in uploads])
    if task.config.fedavg.bn == "first":
        average |= {name: states[0][name].clone() for name in average if name.endswith(STATISTICS)}
    return ServerOutcome((average,), {upload.client: 0 for upload in uploads})


def received(data: LabelledImages, shipment: Shipment, task: ClientTask) -> Shipment:
    """Return the shipped average as a client uses it: as it is, unless ``fedavg.bn = "recalibrate"``.

    Statistics are then those of the client's training images, without its validation images: the mean over
    batches of the batches' means and variances. Neither labels nor gradients have a part in it.
    """
    if task.config.fedavg.bn != "recalibrate":
        return shipment
    compute = task.compute
    training, _ = data.to(compute).split(task.config.client.validation_fraction)
    model = compute.place(load_state(task.spec, shipment.model))
    with compute.autocast():
        # Every batch counts the same, so they are of one size but for one image.
        parts = training.images.tensor_split(math.ceil(len(training.images) / BATCH))
        update_bn((compute.images(part) for part in parts), model)
    return dataclasses.replace(shipment, model=state_of(model))


def average_states(states: Sequence[StateDict], weights: Sequence[float]) -> StateDict:
    """Return the weighted mean of all float tensors, BatchNorm means and variances included.

    Batch counters, which are integers, take their maximum. The sum runs in float64, so that the order of
    the clients does not show in float32.

    Parameters
    ----------
    states : sequence of StateDict
        With the same names and shapes.
    weights : sequence of float
        How much each counts, such as numbers of images; they need not sum to one.
    """
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    result: StateDict = {}
    for name, first in states[0].items():
        stacked = torch.stack([state[name] for state in states])
        if first.dtype.is_floating_point:
            mean = torch.tensordot(shares, stacked.double(), dims=1)
            result[name] = mean.to(first.dtype)
        else:
            result[name] = stacked.amax(0)
    return result


METHOD = Method("FedAvg-1", fedavg, fine_tuned, "FedAvg-1, fine-tuned", receive=received)
