"""One-shot methods, by name. A new one is a file here and a line below."""

from collections.abc import Mapping

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

METHODS: Mapping[str, Method] = {"fedavg": fedavg, "fedbicross": fedbicross}

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
]
