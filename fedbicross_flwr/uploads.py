"""What a server demands of an upload, and a client of a shipment; and how many bytes travelled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.methods.protocol import ClientUpload
from fedbicross_flwr.models import ModelSpec, StateDict
from fedbicross_flwr.models.checks import model_problem
from fedbicross_flwr.shipment import Shipment


def check_upload(client: int, state: Mapping[str, Tensor], num_samples: int, spec: ModelSpec) -> None:
    """Hold an upload against the network that the federation agreed on.

    Raises
    ------
    FedBiCrossError
        When names, shapes or types differ, a value is not finite, a variance is negative, or the sample
        count is not positive. The message says which.
    """
    problem = model_problem(state, spec)
    if not problem and num_samples <= 0:
        problem = f"it says it was trained on {num_samples} images"
    if problem:
        raise FedBiCrossError(f"upload of client {client} is refused: {problem}")


def check_shipment(shipment: Shipment, spec: ModelSpec) -> None:
    """Hold what the server sent against the network that the federation agreed on.

    Raises
    ------
    FedBiCrossError
        When the model is another one or has values that it cannot have, or the images to rehearse do not fit.
    """
    problem = model_problem(shipment.model, spec)
    if not problem and shipment.replay is not None:
        images, scores = shipment.replay.images, shipment.replay.scores
        if tuple(images.shape[1:]) != (spec.channels, 28, 28) or tuple(scores.shape[1:]) != (
            spec.num_classes,
        ):
            problem = f"images of shape {tuple(images.shape)} and answers of shape {tuple(scores.shape)}"
        elif not (torch.isfinite(images).all() and torch.isfinite(scores).all()):
            problem = "images or answers hold values that are not finite"
    if problem:
        raise FedBiCrossError(f"what the server sent is refused: {problem}")


def check_subspace(client: int, subspace: Tensor | None, spec: ModelSpec, rank: int) -> None:
    """Hold the subspace that PACFL has a client send against what it must be.

    Raises
    ------
    FedBiCrossError
        When it is missing, has another shape or type, or is empty or not finite.
    """
    shape = (spec.num_classes, spec.channels * 28 * 28, rank)
    if subspace is None:
        problem = "it lacks the subspace that clustering.by = 'pacfl' needs"
    elif tuple(subspace.shape) != shape or subspace.dtype != torch.float32:
        problem = f"its subspace is {subspace.dtype} {tuple(subspace.shape)} instead of float32 {shape}"
    elif not torch.isfinite(subspace).all() or not subspace.any():
        problem = "its subspace is empty or holds values that are not finite"
    else:
        return
    raise FedBiCrossError(f"upload of client {client} is refused: {problem}")


def upload_tensors(upload: ClientUpload) -> StateDict:
    """Return all tensors that a client sent."""
    return upload.state if upload.subspace is None else {**upload.state, "subspace": upload.subspace}


def upload_bytes(upload: ClientUpload) -> int:
    """Return the bytes of all that a client sent."""
    return payload_bytes(upload_tensors(upload))


def payload_bytes(state: StateDict) -> int:
    """Return the bytes of a model's arrays, which is what travels but for a few words around them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
