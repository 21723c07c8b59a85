"""Whether an upload can be computed with: a training that diverged may leave finite values that cannot.

Everything here reads the model alone, on artificial images.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from fedbicross_flwr.clustering import PROBES
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.labelled_images import predict_logits
from fedbicross_flwr.methods import ServerTask
from fedbicross_flwr.models import StateDict
from fedbicross_flwr.seeds import torch_generator

LARGEST_VALUE: Final = 1e6
LARGEST_LOGIT: Final = 1e8
"""No training that converged comes near, though its answers to loud noise may reach thousands; squared and
summed over layers, larger numbers leave float32."""

PROBES_OF_A_KIND: Final = 32
AMPLITUDES: Final = (0.5, 1.0, 2.0)


def varied_probes(channels: int, seed: int) -> Tensor:
    """Return noise, blobs and colours of several strengths, float32 (n, channels, 28, 28).

    A good model may say the same of all images of one kind of noise, but hardly of all these.
    """
    generator = torch_generator(seed, "upload-flags")
    shape = (PROBES_OF_A_KIND, channels, 28, 28)
    kinds = [draw(shape, generator) * amplitude for draw in PROBES.values() for amplitude in AMPLITUDES]
    return torch.cat(kinds)


def check_sound(client: int, state: StateDict, task: ServerTask) -> None:
    """Refuse an upload whose finite values make numbers that are not, in its answers or in later sums.

    Raises
    ------
    FedBiCrossError
        Naming the tensor and its largest value, or the answers.
    """
    for name, tensor in state.items():
        if tensor.dtype.is_floating_point and tensor.numel():
            largest = float(tensor.abs().max())
            if largest > LARGEST_VALUE:
                raise unsound(client, f"{name} holds {largest:.3g}", LARGEST_VALUE)
    logits = predict_logits(
        task.load(state), varied_probes(task.spec.channels, task.config.seed), task.compute
    )
    largest = float(logits.nan_to_num(torch.inf).abs().max())
    if largest > LARGEST_LOGIT:
        raise unsound(client, f"its answers reach {largest:.3g}", LARGEST_LOGIT)


def unsound(client: int, found: str, limit: float) -> FedBiCrossError:
    """Return that an upload is refused, with what was found in it."""
    return FedBiCrossError(
        f"upload of client {client} is refused: {found}, and nothing above {limit:.0e} comes of a training "
        "that converged; train again with a lower client.lr"
    )
