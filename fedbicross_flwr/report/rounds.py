"""What ``run.json`` says of the rounds of one of Flower's own strategies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedbicross_flwr.report.json_node import Node


@dataclass(frozen=True)
class RoundsRecord:
    """The rounds of one run.

    Parameters
    ----------
    rounds : int
        How many there were, R.
    accuracy : tuple of float
        Accuracy 0..1 of the global model on the whole test split: before the first round, then after each.
        Its length is R + 1.
    """

    rounds: int
    accuracy: tuple[float, ...]


def load_rounds(folder: Path) -> RoundsRecord | None:
    """Return the rounds of a finished run; None for a method of one shot.

    Raises
    ------
    FedBiCrossError
        When ``run.json`` is absent or damaged.
    """
    said = Node.read(folder / "run.json").get("flower")
    if said is None:
        return None
    rounds = said["rounds"].integer(low=1)
    accuracy = said["accuracy"].list(rounds + 1)
    return RoundsRecord(rounds, tuple(value.number(0, 1) for value in accuracy))
