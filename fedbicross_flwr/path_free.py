"""Takes a site's paths out of a line before the line leaves the site.

A message names the file that is at fault, for whoever can look at it. The coordinating centre cannot, and the
name of a file may be that of a patient.
"""

from __future__ import annotations

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


def spellings(path: Path) -> Iterator[str]:
    """Yield the ways in which a message may write a path."""
    yield str(path)
    yield str(path.expanduser())
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
    """Return where a path ends: names may hold spaces and colons, so the longest that exists is taken."""
    for end in range(len(text), least, -1):
        try:
            if Path(text[start:end]).exists():
                return end
        except (OSError, ValueError):  # too long a name, or a zero byte
            continue
    found = END.search(text, least)
    return found.start() if found else len(text)
