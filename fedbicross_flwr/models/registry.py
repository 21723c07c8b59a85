"""The models that a federation can agree on, by name.

A model is an `nn.Module` with BatchNorm layers, a last layer called ``fc``, a method ``features`` that
returns what ``fc`` reads, and a property ``blocks`` (see `blocks_of`). To add one, write a builder and name
it in `MODELS`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.models.resnet import ResNet

StateDict = dict[str, Tensor]
"""Parameters and buffers by name: float32, and the int64 batch counters of BatchNorm."""


@dataclass(frozen=True)
class ModelSpec:
    """What it takes to build a network again: enough to reload a model file anywhere."""

    name: str
    num_classes: int
    channels: int
    width: int
    stem: str

    @classmethod
    def of(cls, config: RunConfig, num_classes: int, channels: int) -> ModelSpec:
        """Return the configured network for a data set's classes and channels."""
        model = config.model
        return cls(model.name, num_classes, channels, model.width, model.stem)


def resnet18(spec: ModelSpec) -> nn.Module:
    """Build the ResNet-18 of the paper's experiments (IV-A)."""
    return ResNet(spec.num_classes, spec.channels, spec.width, spec.stem)


MODELS: Mapping[str, Callable[[ModelSpec], nn.Module]] = {"resnet18": resnet18}

_DRAWING = threading.Lock()


def check_model_name(name: str) -> None:
    """Refuse an architecture that is not there.

    Raises
    ------
    FedBiCrossError
        With the near names.
    """
    if name not in MODELS:
        raise FedBiCrossError(
            f"model.name = {name!r} is not known{near_names(name, MODELS)}; there is: {', '.join(MODELS)}"
        )


def build_model(spec: ModelSpec, seed: int) -> nn.Module:
    """Build a network with random weights that depend on `seed` alone.

    Layers draw their initial weights from PyTorch's global generator, so that generator is set for the
    duration of the call and given back as it was. Threads wait for each other meanwhile.

    Raises
    ------
    FedBiCrossError
        For an unknown architecture.
    """
    check_model_name(spec.name)
    with _DRAWING, torch.random.fork_rng(devices=[]):
        # Not `torch.manual_seed`, which sets accelerators' generators as well.
        torch.default_generator.manual_seed(seed)
        return MODELS[spec.name](spec)


def load_state(spec: ModelSpec, state: Mapping[str, Tensor]) -> nn.Module:
    """Build a network and give it copies of `state`; the names and shapes must fit."""
    return with_tensors(spec, {name: tensor.clone() for name, tensor in state.items()})


def with_tensors(spec: ModelSpec, state: Mapping[str, Tensor]) -> nn.Module:
    """Build a network of these very tensors: not to be trained unless they are the caller's to change."""
    with torch.device("meta"):
        model = MODELS[spec.name](spec)
    model.load_state_dict({name: tensor.detach() for name, tensor in state.items()}, assign=True)
    return model


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the parts of a network that `fedbicross_flwr.recomputation` may run twice.

    Each takes one tensor that the one before it gave and draws nothing at random, and together they hold
    nearly all activations.

    Raises
    ------
    FedBiCrossError
        For a network that does not name them.
    """
    if not hasattr(model, "blocks"):
        raise FedBiCrossError(
            f"{type(model).__name__} has no property blocks, which cross_cluster.activations = 'recomputed' "
            "needs; set 'kept'"
        )
    return list(cast("Sequence[nn.Module]", model.blocks))


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether no value is infinite or not a number, as those of a model that diverged are."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def state_of(model: nn.Module) -> StateDict:
    """Return a detached copy of all parameters and buffers, contiguous, on the CPU."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
