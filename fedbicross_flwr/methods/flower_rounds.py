"""Flower's own strategies, as methods of a run: their names, titles and notes, and what they need of a run.

They take many rounds, so that what one round costs in accuracy can be seen. The strategies themselves are
Flower's, in `server_app.baselines`; a test holds the names here and there equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.distillation import fine_tuned
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.methods.protocol import ClientUpload, Method, ServerOutcome, ServerTask

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


def flower_method(method: str, rounds: int | None = None) -> Method:
    """Return a strategy as a `Method`, which fine-tunes with stage 3's budget as the baselines do.

    Parameters
    ----------
    method : str
        A name of `FLOWER_NAMES`.
    rounds : int, optional
        For the title; without it, ``many rounds``.
    """
    name = strategy_of(method)
    count = "many rounds" if rounds is None else f"{rounds} round{'s' if rounds > 1 else ''}"

    def serve(uploads: Sequence[ClientUpload], task: ServerTask) -> ServerOutcome:
        raise needs_flower(method)

    title = f"{name}, {count}"
    return Method(title, serve, fine_tuned, f"{title}, fine-tuned")


def check_rounds(config: RunConfig, runner: str) -> None:
    """Hold a strategy of Flower's against the rest of the run; other methods pass.

    Parameters
    ----------
    runner : str
        ``"flower"`` or ``"in-process"``.

    Raises
    ------
    FedBiCrossError
        When the run is made without Flower, or there are fewer epochs than rounds.
    """
    if not is_flower(config.method):
        return
    if runner != "flower":
        raise needs_flower(config.method)
    epochs, rounds = config.client.epochs, config.flower.rounds
    if epochs < rounds:
        raise FedBiCrossError(
            f"client.epochs = {epochs} is less than flower.rounds = {rounds}: every round needs an epoch; "
            "raise the one or lower the other"
        )


def needs_flower(method: str) -> FedBiCrossError:
    """Return the error that a method cannot be run in process."""
    return FedBiCrossError(f"method = {method!r} runs under Flower only; leave out --in-process")
