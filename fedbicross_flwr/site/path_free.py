"""Takes a site's paths out of a line before the line leaves the site.

A message names the file that is at fault, for whoever can look at it. The coordinating centre cannot, and the
name of a file may be that of a patient.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from fedbicross_flwr.errors import harmless

OTHER_PATH: Final = re.compile(r"(?<![\w.*<>/)-])~?/(?=[^\s:;,'\"()])")
"""What an absolute path seems to begin with; `train/<class>` in an explanation does not."""
END: Final = re.compile(r"[\s:;,'\"()]|$")
CLOSING: Final[Mapping[str, re.Pattern[str]]] = {quote: re.compile(rf"{quote}(?!\w)") for quote in "'\""}
COLON: Final = re.compile(r":\s")


def path_free(text: str, places: Mapping[str, Path]) -> str:
    """Return a line in which no path of the site is left.

    Parameters
    ----------
    text : str
        The line as the site's log has it.
    places : mapping of str to Path
        What stands for a file or folder, and for all that is in it: ``{"the site's data": data_path}``.

    Returns
    -------
    str
        One line; a path elsewhere becomes ``a path of the site``.
    """
    known = sorted(
        {(form, word) for word, path in places.items() for form in spellings(path)},
        key=lambda pair: -len(pair[0]),
    )
    for form, word in known:
        text = replace_paths(text, re.compile(re.escape(form)), word)
    return harmless(replace_paths(text, OTHER_PATH, "a path of the site"))


def is_there(path: str) -> bool:
    """Return whether there is such a file, folder or link, whatever it leads to, as far as can be seen."""
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):  # too long a name, or a zero byte
        return False


def spellings(path: Path) -> Iterator[str]:
    """Yield the ways in which a message may write a path: messages write absolute ones."""
    try:
        path = path.expanduser()
    except RuntimeError:  # there is no such user, and messages have the path as it was given
        yield str(path)
    yield str(path.absolute())
    yield os.path.realpath(path)


def replace_paths(text: str, root: re.Pattern[str], word: str) -> str:
    """Replace every path that begins with `root`."""
    found = root.search(text)
    while found:
        start, end = found.start(), end_of_path(text, found.start(), found.end())
        text = text[:start] + word + text[end:]
        found = root.search(text, start + len(word))
    return text


def end_of_path(text: str, start: int, least: int) -> int:
    """Return where a path ends.

    Names may hold spaces and colons, so the longest path that exists is taken. Where it does not seem whole,
    what is behind it is a name that was removed meanwhile or that nobody may look at. Nothing says where that
    ends, so all goes to the last quote or colon that may close it: rather an explanation than a name.
    """
    exist = (end for end in range(len(text), least, -1) if is_there(text[start:end]))
    whole = next(exist, least)
    if END.match(text, whole):
        return whole
    closing = CLOSING.get(text[start - 1 : start], COLON)
    return max((found.start() for found in closing.finditer(text, whole)), default=len(text))
