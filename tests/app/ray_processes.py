"""What a command under Ray leaves behind: processes and temporary files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files with a short name, as Ray's sockets need one."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def entries_of(folder: Path) -> Iterator[Path]:
    """What /proc has on the living processes whose environment names a folder."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and str(folder).encode() in (entry / "environ").read_bytes():
                yield entry


def processes_of(folder: Path) -> list[str]:
    """Their command lines."""
    found = []
    for entry in entries_of(folder):
        with suppress(OSError):
            found.append((entry / "cmdline").read_text())
    return found


def open_to_others(folder: Path) -> list[str]:
    """Ports that these processes listen on, of other addresses than loopback's, as the kernel writes them."""
    sockets = set()
    for entry in entries_of(folder):
        with suppress(OSError):
            sockets |= {link.readlink().name for link in (entry / "fd").iterdir()}
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()
    ]
    loopback = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
    return [
        row[1]
        for row in rows
        if row[3] == "0A" and f"socket:[{row[9]}]" in sockets and row[1].partition(":")[0] not in loopback
    ]
