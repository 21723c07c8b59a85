"""FedAvg-1 (McMahan et al., 2017, with a single round): the sample-weighted mean of all uploads."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedbicross_flwr.methods.protocol import ClientUpload, ServerOutcome, ServerTask
from fedbicross_flwr.models import StateDict


def fedavg(uploads: Sequence[ClientUpload], task: ServerTask) -> ServerOutcome:
    """Average the uploads into one model for everybody."""
    states = [upload.state for upload in uploads]
    average = average_states(states, [float(upload.num_samples) for upload in uploads])
    return ServerOutcome((average,), {upload.client: 0 for upload in uploads})


def average_states(states: Sequence[StateDict], weights: Sequence[float]) -> StateDict:
    """Return the weighted mean of all float tensors, BatchNorm means and variances included.

    Batch counters, which are integers, take their maximum. The sum runs in float64, so that the order of
    the clients does not show in float32.
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
