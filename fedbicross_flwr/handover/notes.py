"""Which cluster models were handed over: a file a client in the run's folder, written with each hand-over.

They are not in the roster, which belongs to the server alone while it runs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import write_bytes

HANDOVERS: Final = "handovers"


@dataclass(frozen=True)
class HandoverNote:
    """The last hand-over that was written for a client.

    Parameters
    ----------
    client : int
        Its number.
    site : str
        Its name.
    written : str
        When, ISO 8601 in UTC.
    signer : str
        The digits of the key that it was signed with.
    model : str
        Digest of the cluster model in it.
    """

    client: int
    site: str
    written: str
    signer: str
    model: str


def note_handover(run: Path, note: HandoverNote) -> None:
    """Keep a note in a run's folder, in the place of a former one for the same client.

    Raises
    ------
    FedBiCrossError
        When it cannot be written.
    """
    path = run / HANDOVERS / f"client-{note.client:02d}.json"
    write_bytes(path, (json.dumps(asdict(note), indent=1) + "\n").encode())


def read_handovers(run: Path) -> dict[int, HandoverNote]:
    """Return the notes of a run's folder by client; none where nothing was handed over.

    Raises
    ------
    FedBiCrossError
        When one is damaged.
    """
    notes = {}
    for path in sorted((run / HANDOVERS).glob("client-*.json")):
        try:
            note = HandoverNote(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise FedBiCrossError(
                f"{path} cannot be read ({error}); remove it, nothing else needs it"
            ) from error
        notes[note.client] = note
    return notes
