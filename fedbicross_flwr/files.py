"""Writing a file so that a reader never meets half of it; where temporary ones go."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from pathlib import Path

from fedbicross_flwr.errors import FedBiCrossError

LONGEST_BASE = 20
"""Ray puts sockets about 70 characters below its folder, and a socket's path has about 104."""


def write_bytes(path: Path, content: bytes) -> Path:
    """Write `content` under a temporary name in the same folder, then rename it to `path`.

    The folder is made when it is absent. Nothing is left behind when the write fails.

    Raises
    ------
    FedBiCrossError
        When the folder cannot be made or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            # Who may read it is the caller's to say, by umask and by the folder.
            with temporary.open("xb") as stream:
                stream.write(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise FedBiCrossError(
            f"cannot write {path}: {error.strerror or error}; check the folder's permissions and free space"
        ) from error
    return path


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
