"""Holds tensors against the network that they are said to be of."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedbicross_flwr.models.registry import ModelSpec, build_model


def model_problem(state: Mapping[str, Tensor], spec: ModelSpec) -> str:
    """Return what is wrong with a model's tensors, or nothing."""
    with torch.device("meta"):
        expected = build_model(spec, seed=0).state_dict()
    return names_problem(state, expected) or next(
        filter(None, (tensor_problem(name, state[name], expected[name]) for name in expected)), ""
    )


def names_problem(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return what is wrong with the names, or nothing."""
    missing, extra = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing:
        return f"{len(missing)} tensor(s) are missing, such as {min(missing)}"
    if extra:
        return f"{len(extra)} tensor(s) are unknown, such as {min(extra)}"
    return ""


def tensor_problem(name: str, tensor: Tensor, expected: Tensor) -> str:
    """Return what is wrong with one tensor, or nothing."""
    if tensor.shape != expected.shape:
        return f"{name} has shape {tuple(tensor.shape)} instead of {tuple(expected.shape)}"
    if tensor.dtype != expected.dtype:
        return f"{name} has type {tensor.dtype} instead of {expected.dtype}"
    if not torch.isfinite(tensor).all():
        return f"{name} holds values that are not finite"
    if name.endswith("running_var") and (tensor < 0).any():
        return f"{name} holds negative variances"
    return ""
