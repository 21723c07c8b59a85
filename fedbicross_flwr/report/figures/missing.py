"""Why a figure cannot be drawn, said once: to the caller as an error, on the page as a sentence."""

from __future__ import annotations

from typing import TypeVar

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.report.record import RunRecord

Part = TypeVar("Part")


class NothingToDrawError(FedBiCrossError):
    """A run lacks what a figure shows; the message is a sentence for the reader of the report."""


def needed(run: RunRecord, part: Part | None, file: str) -> Part:
    """Return a part of the run, or raise `NothingToDrawError` when the run wrote no such file."""
    if part is None or part == ():
        raise NothingToDrawError(f"The run folder {run.folder.name} holds no {file}.")
    return part
