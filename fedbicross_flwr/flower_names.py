"""Flower's own strategies by name, with a sentence on each; a test holds the names to `server_app.baselines`.

Apart from what they do, so that a setting or an option is checked before PyTorch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "flower:"

NOTES: Mapping[str, str] = {
    "FedAvg": "The sample-weighted mean, each round (McMahan et al., 2017).",
    "FedProx": "FedAvg; clients are held near the model they received (Li et al., 2020).",
    "FedAvgM": "FedAvg with momentum on the server (Hsu et al., 2019).",
    "FedAdam": "Adam on the server (Reddi et al., 2021).",
    "FedAdagrad": "Adagrad on the server (Reddi et al., 2021).",
    "FedYogi": "Yogi on the server (Reddi et al., 2021).",
    "FedMedian": "The median of each weight (Yin et al., 2018).",
    "FedTrimmedAvg": "The mean of each weight without its ends (Yin et al., 2018).",
    "Krum": "The one client's model that is nearest to its neighbours (Blanchard et al., 2017).",
    "QFedAvg": "Clients with a higher loss weigh more (Li et al., 2020, q-FFL).",
}
"""One sentence on each strategy, by Flower's own name for it."""

FLOWER_NAMES = tuple(PREFIX + name for name in NOTES)


def is_flower(method: str) -> bool:
    """Return whether a method's name is that of one of Flower's strategies."""
    return method in FLOWER_NAMES


def strategy_of(method: str) -> str:
    """Return Flower's name of the strategy: ``FedAvg`` of ``flower:FedAvg``."""
    return method.removeprefix(PREFIX)
