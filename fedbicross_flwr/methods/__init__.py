"""One-shot methods, by name, and Flower's strategies; `fedbicross_flwr.method_names` lists ours."""

from collections.abc import Mapping
from importlib import import_module

from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.flower_names import FLOWER_NAMES, is_flower
from fedbicross_flwr.method_names import ONE_SHOT
from fedbicross_flwr.methods.flower_rounds import flower_method
from fedbicross_flwr.methods.protocol import (
    ClientUpload,
    Findings,
    Method,
    ServerOutcome,
    ServerTask,
    StageResult,
    Stages,
)

METHODS: Mapping[str, Method] = {one.name: import_module(one.module).METHOD for one in ONE_SHOT}


def method_named(name: str, rounds: int | None = None) -> Method:
    """Return a method.

    Parameters
    ----------
    name : str
        Of `METHODS`, or one of Flower's strategies, such as ``flower:FedAvg``.
    rounds : int, optional
        How many rounds such a strategy takes, for its title.

    Raises
    ------
    FedBiCrossError
        When there is none of that name; the near ones are named.
    """
    if is_flower(name):
        return flower_method(name, rounds)
    if name not in METHODS:
        known = (*METHODS, *FLOWER_NAMES)
        raise FedBiCrossError(
            f"method = {name!r} is not a method{near_names(name, known)}; there are {', '.join(known)}"
        )
    return METHODS[name]


__all__ = [
    "METHODS",
    "ClientUpload",
    "Findings",
    "Method",
    "ServerOutcome",
    "ServerTask",
    "StageResult",
    "Stages",
    "method_named",
]
