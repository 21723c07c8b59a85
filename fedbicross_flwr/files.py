"""Writing a file so that a reader never meets half of it; what is said of paths that cannot be used."""

from __future__ import annotations

import errno
import os
import re
import secrets
import tempfile
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from fedbicross_flwr.errors import LONGEST_TEXT, FedBiCrossError, MachineError

LONGEST_BASE = 20
"""Ray puts sockets about 70 characters below its folder, and a socket's path has about 104."""

TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.DOTALL)
"""The names that `written` gives."""
LEFT_AFTER: Final = 86400.0
"""Seconds after which nobody writes a temporary file any more: its process was killed."""


def write_bytes(path: Path, content: bytes) -> Path:
    """Write `content` to `path`, wholly or not at all, as `written` says."""
    with written(path) as temporary:
        temporary.write_bytes(content)
    return path


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give an empty file of a temporary name in the same folder; renamed to `path` when the block ends.

    The folder is made when it is absent. Nothing is left behind when the write fails; what a process leaves
    that is killed is for `remove_leftovers`. A link stays one: the file that it leads to is written.

    Raises
    ------
    MachineError
        When the folder cannot be made, or the file cannot be written.
    FedBiCrossError
        When `path` is a folder or a device.
    """
    try:
        if path.exists() and not path.is_file():
            raise FedBiCrossError(
                f"cannot write {path}: it is there already and is no ordinary file; give the name of a file"
            )
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            # Who may read it is the caller's to say, by umask and by the folder.
            temporary.touch(exist_ok=False)
            yield temporary
            with temporary.open("rb") as stream:
                # Else a power cut may leave the new name with nothing behind it.
                os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(
            f"cannot write {path}: {error.strerror or error}; check the folder's permissions and free space"
        ) from error


def is_temporary(name: str) -> bool:
    """Return whether a name is one that `written` gives a file until it is whole."""
    return TEMPORARY.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of files in a folder, and in the folders in it.

    A file that was touched within `LEFT_AFTER` seconds may be another process's that is still at work.
    """
    before = time.time() - LEFT_AFTER
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names if is_temporary(name)):
            # It may be another's, or another process may do the same at this very moment.
            with suppress(OSError):
                if path.lstat().st_mtime < before:
                    path.unlink()


def expanded(path: Path) -> Path:
    """Return a path with a leading ``~`` written out.

    Raises
    ------
    FedBiCrossError
        When no home folder of that user is known, or the path is none: a zero byte is in it, or links that
        lead in a circle.
    """
    try:
        whole = path.expanduser()
    except RuntimeError:
        raise FedBiCrossError(f"{path}: that user has no home folder here; write the path in full") from None
    try:
        whole.stat()
    except ValueError as error:
        raise FedBiCrossError(f"{path}: no such path can be ({error}); give another") from None
    except OSError as error:
        # Any other is told by whoever reads or writes there.
        if error.errno == errno.ELOOP:
            raise FedBiCrossError(f"{path}: no such path can be ({error.strerror}); give another") from None
    return whole


def check_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse to write a command's result over one of the files that it is made from.

    Parameters
    ----------
    out : Path
        What is to be written.
    inputs : iterable of Path
        What is read. One that cannot be looked at is refused where it is read.

    Raises
    ------
    FedBiCrossError
        When they are one file, by whatever links or spellings.
    """
    for path in inputs:
        with suppress(OSError):
            if out.samefile(path):
                raise FedBiCrossError(
                    f"{out} is read by this command and would be overwritten; name another file to write"
                )


def shown(text: str) -> str:
    """Return a text with names in it as one line for a terminal: what cannot be printed is escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def is_text(name: str) -> bool:
    """Return whether a name is text, and not bytes in another encoding than UTF-8."""
    return name == name.encode("utf-8", "ignore").decode("utf-8")


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC).

    macOS takes the letters of a folder's name apart, so that one name is two texts that look alike.
    """
    return unicodedata.normalize("NFC", name)


def refuse_pipe(path: Path) -> None:
    """Refuse what is neither a file nor a folder: who reads a pipe may wait for ever.

    Raises
    ------
    FedBiCrossError
        For a pipe or device.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise FedBiCrossError(f"{path} is a pipe or device; give the name of an ordinary file")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever the system refuses while `path`, or what lies in it, is read into one line.

    Raises
    ------
    FedBiCrossError
        With the file or folder that is at fault.
    """
    try:
        yield
    except OSError as error:
        raise FedBiCrossError(unusable(error, path)) from error


def concerns_files(error: OSError) -> bool:
    """Return whether an error is of a file or of a full disk; any other is no mistake of the user."""
    return error.filename is not None or disk_is_full(error)


def unusable(error: OSError, path: Path | None = None) -> str:
    """Return what the system refused, as one line: the file, why, and what to do.

    Parameters
    ----------
    error : OSError
        Names the file itself where it can.
    path : Path, optional
        What else is named.
    """
    named = path if error.filename is None else error.filename
    name = "" if named is None else f"{named}: "
    if len(name) > LONGEST_TEXT:
        name = f"{name[:LONGEST_TEXT]}...: "
    remedy = "check the path, and who may use it and the folders that it lies in"
    return f"{name}{error.strerror or error}; {'make room' if disk_is_full(error) else remedy}"


def base_for_sockets() -> Path:
    """Return where to make a temporary folder that Ray's sockets can lie in."""
    base = Path(tempfile.gettempdir())
    if len(str(base)) > LONGEST_BASE and os.access("/tmp", os.W_OK | os.X_OK):
        return Path("/tmp")
    return base


def disk_is_full(error: BaseException) -> bool:
    """Return whether an error, or one that it came from, says that there is no room left to write.

    An error that came out of another process has its text alone, so the text counts as well.
    """
    full = (errno.ENOSPC, errno.EDQUOT)
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in full:
            return True
        if any(os.strerror(code) in str(found) for code in full):
            return True
        found = found.__cause__ or found.__context__
    return False
