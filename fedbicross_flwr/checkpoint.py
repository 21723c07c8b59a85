"""A network in training as tensors by name, so that a stage can be kept and gone on with.

The counterpart of `fedbicross_flwr.models.state_of` for SGD with momentum and for Adam: the model alone is
not all that the next step depends on.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedbicross_flwr.artifacts import under
from fedbicross_flwr.models import state_of

MODEL, OPTIMISER = "model.", "optimiser."


def training_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return copies on the CPU of the model and of what the optimiser remembers: nothing before a step."""
    tensors = {MODEL + name: value for name, value in state_of(model).items()}
    for index, parameter in enumerate(parameters_of(optimiser)):
        for key, value in optimiser.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMISER}{index}.{key}"] = value.detach().cpu().clone()
    return tensors


def load_training_state(
    model: nn.Module, optimiser: torch.optim.Optimizer, state: Mapping[str, Tensor]
) -> None:
    """Go back to what `training_state` returned; other names in `state` are passed over."""
    model.load_state_dict(under(MODEL, state))
    optimiser.state.clear()
    parameters = parameters_of(optimiser)
    for name, value in under(OPTIMISER, state).items():
        index, key = name.split(".")
        parameter = parameters[int(index)]
        # Adam's count of steps is a number, the rest lies in memory as the parameter does.
        kept = torch.empty_like(parameter).copy_(value) if value.dim() else value.clone()
        optimiser.state[parameter][key] = kept


def parameters_of(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """Return all that is optimised, in order."""
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]
