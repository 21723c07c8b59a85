"""Networks: the registry and what every network must offer."""

from fedbicross_flwr.models.registry import (
    ModelSpec,
    StateDict,
    blocks_of,
    build_model,
    load_state,
    state_of,
    with_tensors,
)

__all__ = [
    "ModelSpec",
    "StateDict",
    "blocks_of",
    "build_model",
    "load_state",
    "state_of",
    "with_tensors",
]
