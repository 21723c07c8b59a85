"""Flower's own strategies, as methods of a run, and what they need of it.

They take many rounds, so that what one round costs in accuracy can be seen. The strategies themselves are
Flower's, in `server_app.baselines`.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.distillation import fine_tuned
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.flower_names import is_flower, strategy_of
from fedbicross_flwr.methods.protocol import ClientUpload, Method, ServerOutcome, ServerTask


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
