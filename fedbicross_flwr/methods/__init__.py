"""One-shot methods, by name, and Flower's strategies. A new method is a file here and an entry below.

To stand in comparisons it is named in `fedbicross_flwr.compare.variants` as well (``docs/extending.md``).
"""

from collections.abc import Mapping

from fedbicross_flwr.distillation import fine_tuned, personalise
from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.flower_names import FLOWER_NAMES, is_flower
from fedbicross_flwr.methods.coboosting import coboosting
from fedbicross_flwr.methods.dafl import dafl
from fedbicross_flwr.methods.dense import dense
from fedbicross_flwr.methods.fedavg import fedavg, received
from fedbicross_flwr.methods.fedbicross import fedbicross
from fedbicross_flwr.methods.fedisca import fedisca
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

METHODS: Mapping[str, Method] = {
    "fedavg": Method("FedAvg-1", fedavg, fine_tuned, "FedAvg-1, fine-tuned", receive=received),
    "dafl": Method("DAFL", dafl, fine_tuned, "DAFL, fine-tuned"),
    "dense": Method("DENSE", dense, fine_tuned, "DENSE, fine-tuned"),
    "fedisca": Method("FedISCA", fedisca, fine_tuned, "FedISCA, fine-tuned"),
    "coboosting": Method("Co-Boosting", coboosting, fine_tuned, "Co-Boosting, fine-tuned"),
    "fedbicross": Method(
        "FedBiCross without personal distillation", fedbicross, personalise, "FedBiCross", "ours"
    ),
}


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
