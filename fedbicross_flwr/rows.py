"""The rows of the results table: what stands beside what, and what it costs to send.

A row's key travels in metrics; its name is what people read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedbicross_flwr.flower_names import NOTES, is_flower, strategy_of
from fedbicross_flwr.methods import method_named


@dataclass(frozen=True)
class Row:
    """What a line of the results table is about.

    Parameters
    ----------
    name : str
        As printed.
    kind : {"control", "baseline", "ours", "ceiling"}
        A ceiling is no method: it costs or knows more than a method may.
    note : str
        One sentence.
    models_up, models_down : int
        Models that each client sends and receives; ``-1`` stands for one of each client.
    more_up, more_down : int
        Bytes that each client sends and receives besides.
    """

    name: str
    kind: str
    note: str
    models_up: int = 0
    models_down: int = 0
    more_up: int = 0
    more_down: int = 0


ROWS: Mapping[str, Row] = {
    "local-only": Row("local-only", "control", "Each client's own round-1 model; nothing is shared."),
    "same-budget": Row(
        "local-only, same budget",
        "control",
        "The client's own model, trained on for stage 3's epochs, so that training longer is no advantage.",
    ),
    "fedavg": Row("FedAvg-1", "baseline", "Sample-weighted mean of all uploads.", 1, 1),
    "ensemble": Row(
        "ensemble of all uploads",
        "ceiling",
        "Mean of all clients' logits: no single model, and every client would need all the others'.",
        1,
        -1,
    ),
}
"""Rows that every run has, in the order of the table; the method's own two follow."""


def rows_of(name: str, more_up: int = 0, rounds: int = 1, more_down: int = 0) -> dict[str, Row]:
    """Return the rows of a run of one method, in the order of the table.

    Parameters
    ----------
    more_up : int, default 0
        Bytes that the method has each client send besides its model.
    rounds : int, default 1
        Rounds of one of Flower's strategies; one-shot methods have one.
    more_down : int, default 0
        Bytes that each client is sent besides its model, for stage 3.

    Raises
    ------
    FedBiCrossError
        When there is no method of that name.
    """
    if is_flower(name):
        return rows_of_rounds(name, rounds)
    method = method_named(name)
    common = {key: row for key, row in ROWS.items() if key != name}
    personal = "The client's personal model after stage 3, made of the model it was sent."
    return {
        **common,
        "cluster-model": Row(
            method.title, method.kind, "The model as it is shipped to the client.", 1, 1, more_up
        ),
        "personal": Row(method.personal_title, method.kind, personal, 1, 1, more_up, more_down),
    }


def rows_of_rounds(name: str, rounds: int) -> dict[str, Row]:
    """Return the rows of one of Flower's strategies: the controls, and its own two.

    What the server makes of the uploads of one round is not part of it: no client uploads its own model.
    Each round sends the global model to the client and its update back; the last model is sent once more.
    """
    method = method_named(name, rounds)
    controls = {key: row for key, row in ROWS.items() if row.kind == "control"}
    personal = "The global model, fine-tuned by the client with stage 3's budget."
    return {
        **controls,
        "cluster-model": Row(method.title, method.kind, NOTES[strategy_of(name)], rounds, rounds + 1),
        "personal": Row(method.personal_title, method.kind, personal, rounds, rounds + 1),
    }
