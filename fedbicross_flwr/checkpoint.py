"""A network in training as tensors by name, so that a stage can be kept and gone on with.

The counterpart of `fedbicross_flwr.models.state_of` for SGD with momentum: the model alone is not all that
the next step depends on.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedbicross_flwr.models import state_of

MODEL, MOMENTUM = "model.", "momentum."


def training_state(model: nn.Module, optimiser: torch.optim.SGD) -> dict[str, Tensor]:
    """Return copies on the CPU of the model and of the momenta, of which there are none before a step."""
    tensors = {MODEL + name: value for name, value in state_of(model).items()}
    for index, parameter in enumerate(parameters_of(optimiser)):
        buffer = optimiser.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            tensors[f"{MOMENTUM}{index}"] = buffer.detach().cpu().clone()
    return tensors


def load_training_state(model: nn.Module, optimiser: torch.optim.SGD, state: Mapping[str, Tensor]) -> None:
    """Go back to what `training_state` returned; other names in `state` are passed over."""
    model.load_state_dict(
        {name.removeprefix(MODEL): value for name, value in state.items() if name.startswith(MODEL)}
    )
    for index, parameter in enumerate(parameters_of(optimiser)):
        if (buffer := state.get(f"{MOMENTUM}{index}")) is not None:
            optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)


def parameters_of(optimiser: torch.optim.SGD) -> list[Tensor]:
    """Return all that is optimised, in order."""
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]
