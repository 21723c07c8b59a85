"""Flower's command line as the scripts of the coordinating centre use it: JSON in, one line on mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from fedbicross_flwr.errors import FedBiCrossError

_FRAME = "│╭╮╰╯─ "


def flwr(*arguments: str) -> dict[str, Any]:
    """Call Flower's command line and return its answer.

    Raises
    ------
    FedBiCrossError
        When it refuses, or answers something else than JSON.
    """
    command = ["flwr", *arguments, "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    what = " ".join(arguments[:2])
    try:
        answer = json.loads(done.stdout)
        if not isinstance(answer, dict):
            raise ValueError
    except ValueError:
        said = [line.strip(_FRAME) for line in (done.stdout + done.stderr).splitlines() if line.strip(_FRAME)]
        raise FedBiCrossError(
            f"the SuperLink does not answer `flwr {what}`: {' '.join(said[-4:]) or 'nothing was said'}; "
            "is it running on this machine?"
        ) from None
    if answer.get("success") is False:
        raise FedBiCrossError(
            f"Flower refused `flwr {what}`: {' '.join(str(answer.get('error-message', answer)).split())}"
        )
    return answer


def as_command(work: Callable[[], int]) -> None:
    """Run a command to its exit; a user's mistake is one line and status 2."""
    try:
        sys.exit(work())
    except FedBiCrossError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
