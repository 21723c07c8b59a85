"""The one student of a global one-shot method: where it starts, and how its result is handed out.

A global method ends with one model for everybody. It says how that model is made; the rest is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.methods.epochs import Training
from fedbicross_flwr.methods.fedavg import average_states
from fedbicross_flwr.methods.protocol import ClientUpload, Findings, ServerOutcome, ServerTask
from fedbicross_flwr.models import build_model, load_state, state_of
from fedbicross_flwr.seeds import derive_seed


def random_start(uploads: Sequence[ClientUpload], task: ServerTask) -> nn.Module:
    """Return a network with random weights, the same for every method of a run."""
    return build_model(task.spec, derive_seed(task.config.seed, "student"))


def average_start(uploads: Sequence[ClientUpload], task: ServerTask) -> nn.Module:
    """Return the sample-weighted average of all uploads, which is FedAvg-1."""
    weights = [float(upload.num_samples) for upload in uploads]
    return load_state(task.spec, average_states([upload.state for upload in uploads], weights))


STUDENTS: Mapping[str, Callable[[Sequence[ClientUpload], ServerTask], nn.Module]] = {
    "random": random_start,
    "average": average_start,
}


def start_student(kind: str, uploads: Sequence[ClientUpload], task: ServerTask) -> nn.Module:
    """Return the student before its first step: on the device, trainable, in training mode.

    Parameters
    ----------
    kind : str
        A name in `STUDENTS`.

    Raises
    ------
    FedBiCrossError
        For another name.
    """
    if kind not in STUDENTS:
        raise FedBiCrossError(
            f"student_init = {kind!r} is not known{near_names(kind, STUDENTS)}; "
            f"there is: {', '.join(STUDENTS)}"
        )
    return task.compute.place(STUDENTS[kind](uploads, task)).requires_grad_(True).train()


def student_outcome(
    uploads: Sequence[ClientUpload], training: Training, aimed: bool = True, **findings: Any
) -> ServerOutcome:
    """Give the trained student to every client.

    Parameters
    ----------
    training : Training
        Which is over.
    aimed : bool, default True
        Whether the images were made for their labels; see `Findings`.
    **findings
        What else the method found.
    """
    # Copies: of a pool the last batch is a view, which would keep all of it in memory.
    images = training.images.detach().float().cpu().clone(memory_format=torch.contiguous_format)
    synthetic = ((images, training.labels.detach().cpu().clone()),)
    found = Findings(synthetic=synthetic, aimed=aimed, **findings)
    return ServerOutcome((state_of(training.student),), {upload.client: 0 for upload in uploads}, found)


def check_finite(title: str, epoch: int, losses: Mapping[str, Tensor], task: ServerTask) -> None:
    """Refuse to go on once a loss is not finite, as a learning rate far too large makes it.

    Parameters
    ----------
    epoch : int
        0, 1, ...; called once an epoch, since it waits for the device.
    losses : mapping of str to Tensor
        Scalars by the setting that is to be lowered, such as ``"dense.lr"``.

    Raises
    ------
    FedBiCrossError
        Naming the setting of the first loss that is not finite, and its value.
    """
    values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
    settings = task.config.flat()
    for key, value in zip(losses, values, strict=True):
        if not math.isfinite(value):
            raise FedBiCrossError(
                f"{title} diverged in epoch {epoch + 1} (loss {value}); lower {key} = {settings[key]:g}"
            )
