"""The rows of the results table: what stands beside what, and what it costs to send.

A row's key travels in metrics; its name is what people read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    """

    name: str
    kind: str
    note: str
    models_up: int = 0
    models_down: int = 0


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


def rows_of(name: str) -> dict[str, Row]:
    """Return the rows of a run of one method, in the order of the table.

    Raises
    ------
    FedBiCrossError
        When there is no method of that name.
    """
    method = method_named(name)
    common = {key: row for key, row in ROWS.items() if key != name}
    personal = "The client's personal model after stage 3, made of the model it was sent."
    return {
        **common,
        "cluster-model": Row(method.title, method.kind, "The model as it is shipped to the client.", 1, 1),
        "personal": Row(method.personal_title, method.kind, personal, 1, 1),
    }
