"""Networks: the registry and what every network must offer."""

from fedbicross_flwr.models.registry import (
    ModelSpec,
    StateDict,
    all_finite,
    blocks_of,
    build_model,
    check_model_name,
    load_state,
    state_of,
    with_tensors,
)

__all__ = [
    "ModelSpec",
    "StateDict",
    "all_finite",
    "blocks_of",
    "build_model",
    "check_model_name",
    "load_state",
    "state_of",
    "with_tensors",
]
