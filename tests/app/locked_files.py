"""Files that nobody may look at, also where root runs the tests."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION_3 = 0x20080522
ANY_FILE = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: with them, the permissions of files mean nothing."""


@contextmanager
def locked(path: Path, mode: int = 0) -> Iterator[None]:
    """Take the permissions off a file or folder, but for those of `mode`, for as long as this lasts."""
    former = path.stat().st_mode
    path.chmod(mode)
    try:
        with as_others():
            yield
    finally:
        path.chmod(former)


@contextmanager
def as_others() -> Iterator[None]:
    """Let root be refused what any other user would be."""
    if os.geteuid():
        yield
        return
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    former = sets[0]
    sets[0] &= ~ANY_FILE
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = former
        assert libc.capset(header, sets) == 0
