"""The one exception that a user's mistake raises.

Everything that is not a mistake of the user stays an ordinary Python exception with its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_TEXT = 600


class FedBiCrossError(Exception):
    """A mistake that the user can mend: bad input, an impossible setting, a run that cannot go on.

    The message is one line which names the file or key, says what was found, and what to do. Command
    line tools print it behind ``error:`` and leave with status 2, without a traceback.
    """


class MachineError(FedBiCrossError):
    """Something that the machine did not do, whatever the data and settings: trying again may help."""


def memory_is_full(error: BaseException) -> bool:
    """Return whether an error says that there is no memory for what was asked.

    Python and NumPy have a type for it, PyTorch one for accelerators, and of a CPU's it has words alone.
    """
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "DefaultCPUAllocator" in str(error)


def harmless(text: str) -> str:
    """Return a text of foreign origin as one line that a terminal shows and a log can keep.

    Control characters, which may rewrite a screen, become spaces; what is beyond `LONGEST_TEXT` is left out.
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in text[: 2 * LONGEST_TEXT])
    line = " ".join(printable.split())
    return line if len(line) <= LONGEST_TEXT else f"{line[:LONGEST_TEXT]} ..."


def near_names(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean a, b?)"`` for the known names close to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(close)}?)" if close else ""
