"""Networks: the registry and what every network must offer."""

from fedbicross_flwr.models.registry import ModelSpec, StateDict, build_model, load_state, state_of

__all__ = ["ModelSpec", "StateDict", "build_model", "load_state", "state_of"]
