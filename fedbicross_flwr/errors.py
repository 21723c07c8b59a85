"""The one exception that a user's mistake raises.

Everything that is not a mistake of the user stays an ordinary Python exception with its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedBiCrossError(Exception):
    """A mistake that the user can mend: bad input, an impossible setting, a run that cannot go on.

    The message is one line which names the file or key, says what was found, and what to do. Command
    line tools print it behind ``error:`` and leave with status 2, without a traceback.
    """


class MachineError(FedBiCrossError):
    """Something that the machine did not do, whatever the data and settings: trying again may help."""


def near_names(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean a, b?)"`` for the known names close to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(close)}?)" if close else ""
