"""One-shot methods, by name. A new one is a file here and an entry below."""

from collections.abc import Mapping

from fedbicross_flwr.distillation import fine_tuned, personalise
from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.methods.fedavg import fedavg
from fedbicross_flwr.methods.fedbicross import fedbicross
from fedbicross_flwr.methods.protocol import (
    ClientUpload,
    Findings,
    Method,
    ServerOutcome,
    ServerTask,
    StageResult,
    Stages,
)

METHODS: Mapping[str, Method] = {
    "fedavg": Method("FedAvg-1", fedavg, fine_tuned, "FedAvg-1, fine-tuned"),
    "fedbicross": Method(
        "FedBiCross without personal distillation", fedbicross, personalise, "FedBiCross", "ours"
    ),
}


def method_named(name: str) -> Method:
    """Return a method.

    Raises
    ------
    FedBiCrossError
        When there is none of that name; the near ones are named.
    """
    if name not in METHODS:
        raise FedBiCrossError(
            f"method = {name!r} is not a method{near_names(name, METHODS)}; there are {', '.join(METHODS)}"
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
    "fedavg",
    "fedbicross",
    "method_named",
]
