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

OTHER_PATH: Final = re.compile(r"(?<![\w.*<>/)-])~?/[^\s:;,'\"()]+")
"""What looks like an absolute path; `train/<class>` in an explanation does not."""
END: Final = re.compile(r"[\s:;,'\"()]")


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
        text = replace_below(text, form, word)
    return " ".join(OTHER_PATH.sub("a path of the site", text).split())


def is_there(path: str) -> bool:
    """Return whether there is such a file, folder or link, whatever it leads to."""
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):  # too long a name, or a zero byte
        return False


def spellings(path: Path) -> Iterator[str]:
    """Yield the ways in which a message may write a path: messages write absolute ones."""
    yield str(path.expanduser().absolute())
    yield str(path.expanduser().resolve())


def replace_below(text: str, root: str, word: str) -> str:
    """Replace every path that begins with `root`."""
    start = text.find(root)
    while start >= 0:
        end = end_of_path(text, start, start + len(root))
        text = text[:start] + word + text[end:]
        start = text.find(root, start + len(word))
    return text


def end_of_path(text: str, start: int, least: int) -> int:
    """Return where a path ends.

    Names may hold spaces and colons, so the longest path that exists is taken; what follows up to a space
    or a colon is the name of a file that does not.
    """
    exist = (end for end in range(len(text), least, -1) if is_there(text[start:end]))
    found = END.search(text, next(exist, least))
    return found.start() if found else len(text)
