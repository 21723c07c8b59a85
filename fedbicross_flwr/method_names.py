"""One-shot methods by name: a new one is a file in `fedbicross_flwr.methods` and a line here.

Apart from what they do, so that ``--methods`` is checked before PyTorch is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Listed:
    """A method as it is asked for and compared.

    Parameters
    ----------
    name : str
        As ``method`` and ``--methods`` take it. The module of `fedbicross_flwr.methods` is called alike,
        with ``_`` for ``-``, and its ``METHOD`` is the method.
    title : str
        As tables of comparisons print it.
    note : str
        One sentence.
    """

    name: str
    title: str
    note: str

    @property
    def module(self) -> str:
        """Return the module that the method is in."""
        return f"fedbicross_flwr.methods.{self.name.replace('-', '_')}"


ONE_SHOT: Final = (
    Listed("fedavg", "FedAvg-1", "The sample-weighted mean of all uploads."),
    Listed("dafl", "DAFL", "A generator and a student, trained together on the ensemble of all uploads."),
    Listed("dense", "DENSE", "A growing pool of generated images, distilled into one model."),
    Listed("fedisca", "FedISCA", "Inversion of the ensemble of all uploads, distilled step by step."),
    Listed("coboosting", "Co-Boosting", "Hard generated images and learned weights of the clients."),
    Listed("fedbicross", "FedBiCross", "Clusters, and learned weights across them."),
)
"""In the order of the tables."""
