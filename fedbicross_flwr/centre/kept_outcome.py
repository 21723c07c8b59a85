"""The outcome of a deployment's method, kept so that models can be shipped long after it was learned.

``outcome.json`` is written last and says that all of it is there: the cluster models in ``models/`` and the
synthetic images in ``replay.safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from fedbicross_flwr.artifacts import NOT_THERE, digest, read_tensors, write_tensors
from fedbicross_flwr.errors import FedBiCrossError, MachineError
from fedbicross_flwr.files import unusable
from fedbicross_flwr.methods import ServerOutcome
from fedbicross_flwr.runs.folder import RunFolder
from fedbicross_flwr.shipment import Replay

OUTCOME: Final = "outcome.json"
REPLAY: Final = "replay.safetensors"


Spans = Sequence[tuple[str, float, float]]
"""When each stage ran: see `RunFolder.spans`."""


def save_outcome(folder: RunFolder, outcome: ServerOutcome) -> None:
    """Keep an outcome whose models are in the folder already, and when its stages ran."""
    if outcome.replay is not None:
        write_tensors(folder.path / REPLAY, outcome.replay.tensors())
    content = {
        "models": [digest(model) for model in outcome.models],
        "assignment": {str(client): cluster for client, cluster in sorted(outcome.assignment.items())},
        "replay": None if outcome.replay is None else digest(outcome.replay.tensors()),
        "spans": folder.spans,
    }
    folder.write_json(OUTCOME, content)


def load_outcome(folder: RunFolder) -> tuple[ServerOutcome, Spans] | None:
    """Return what `save_outcome` kept, or None where a part of it is missing or damaged.

    Raises
    ------
    MachineError
        When the system does not let a part be read: hours of work are not to be done again for that.
    """
    try:
        content = json.loads((folder.path / OUTCOME).read_text(encoding="utf-8"))
        models = []
        for index, wanted in enumerate(content["models"]):
            state, _ = read_tensors(folder.model_path(index))
            if digest(state) != wanted:
                return None
            models.append(state)
        replay = None
        if content["replay"] is not None:
            tensors, _ = read_tensors(folder.path / REPLAY)
            if digest(tensors) != content["replay"]:
                return None
            replay = Replay.of(tensors)
        assignment = {int(client): int(cluster) for client, cluster in content["assignment"].items()}
        spans = [(str(kind), float(start), float(seconds)) for kind, start, seconds in content["spans"]]
        return ServerOutcome(tuple(models), assignment, replay=replay), spans
    except MachineError:
        raise
    except OSError as error:
        if error.errno not in NOT_THERE:
            raise MachineError(unusable(error)) from error
        return None
    except (FedBiCrossError, ValueError, KeyError, TypeError, AttributeError):
        return None
