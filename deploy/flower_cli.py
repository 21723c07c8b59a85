"""Flower's command line as the scripts of the coordinating centre use it: JSON in, one line on mistakes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import concerns_files, unusable

_FRAME = "│╭╮╰╯─ "
_UNAVAILABLE = "Connection to the SuperLink is unavailable"
"""How Flower's message begins when nobody answers at the connection's address."""


class Arguments(argparse.ArgumentParser):
    """Arguments of a program of this folder; the scripts pass the first two, and users know the others only.

    Parameters
    ----------
    script : str
        The script that users call.
    """

    def __init__(self, script: str) -> None:
        super().__init__(prog=script, add_help=False, allow_abbrev=False)
        self.add_argument("centre", type=Path)
        self.add_argument("connection")

    def error(self, message: str) -> NoReturn:
        """Report a mistake as other mistakes are, without a usage that is not the script's."""
        raise FedBiCrossError(f"{message}; see {self.prog} --help")


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
        raise refusal(what, str(answer.get("error-message", answer)))
    return answer


def refusal(what: str, said: str) -> FedBiCrossError:
    """Return the error to raise for a command of Flower's, by the message that Flower has for it."""
    if _UNAVAILABLE in said:
        return FedBiCrossError(f"the SuperLink does not answer `flwr {what}`; is it running on this machine?")
    return FedBiCrossError(f"Flower refused `flwr {what}`: {' '.join(said.split())}")


def as_command(work: Callable[[], int]) -> None:
    """Run a command to its exit; a user's mistake, or a disk that is full, is one line and status 2."""
    try:
        sys.exit(work())
    except FedBiCrossError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not concerns_files(error):
            raise
        print(f"error: {unusable(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
