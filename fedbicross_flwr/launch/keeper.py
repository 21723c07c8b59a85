"""A small process of its own that ends everything a simulated run has started, whatever happens to us.

A simulated run is a tree of some fifteen processes, several of them in sessions of their own, and Flower's
and Ray's ways to end them take long or fail when an app hangs. The launcher therefore starts this file as
a child before anything else and keeps a pipe to it. When the pipe closes, because the run is over or
because the launcher was interrupted or killed, the keeper ends the run's processes and removes its folder.

The file needs the standard library only and is run by its path, so that it starts in a moment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Environment variable, set to the run's folder, by which the keeper knows the run's processes.
MARKER = "FEDBICROSS_RUN_FOLDER"
#: Working directory of the run's processes, inside its folder.
WORKING_DIRECTORY = "cwd"
#: Seconds between asking the processes to end and making them, and the longest wait for that to show.
PATIENCE, GIVE_UP = 1.0, 8.0
_ON_LINUX = Path("/proc/self/stat").exists()


#: A process id alone is given out again; with the start time (clock ticks) it names one process for good.
Identity = tuple[int, int]


@dataclass(frozen=True)
class _Process:
    identity: Identity
    parent: int
    session: int
    marked: bool


def _processes(folder: Path) -> Iterator[_Process]:
    """List the living processes from Linux's /proc; `marked` means: of the run in `folder`."""
    marker = f"{MARKER}={folder}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            state, parent, _, session, tty = fields[:5]
            marked = False
            with contextlib.suppress(OSError):  # another user's, or Flower's SuperExec, which hides itself
                marked = marker in (entry / "environ").read_bytes().split(b"\0")
                # Some of Ray's processes write their title over their environment; their working directory
                # is left. One with a terminal is somebody who went there to look around.
                if not marked and tty == "0":
                    marked = (entry / "cwd").readlink() == folder / WORKING_DIRECTORY
            if state not in "ZX":
                yield _Process((int(entry.name), int(fields[19])), int(parent), int(session), marked)


def living(folder: Path, known: Set[Identity] = frozenset()) -> set[Identity]:
    """Return the processes of the run that lives in `folder` (Linux; elsewhere an empty set).

    These are the processes with the run's mark, those already `known`, and, from these on, all children
    and all members of sessions that one of them leads.
    """
    if not _ON_LINUX:
        return set()
    seen = list(_processes(folder))
    ours = {process.identity[0] for process in seen if process.marked or process.identity in known}
    while more := {p.identity[0] for p in seen if p.parent in ours or p.session in ours} - ours:
        ours |= more
    return {process.identity for process in seen if process.identity[0] in ours - {os.getpid()}}


def _signal(send: Callable[[int, int], None], target: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(target, number)


def sweep(folder: Path, groups: Set[int]) -> None:
    """End the run that lives in `folder` and remove the folder.

    Parameters
    ----------
    folder : Path
        The run's private folder.
    groups : set of int
        Process groups that the launcher started. Where there is no /proc they are all we know: ending
        them ends Flower's processes, which watch their parents, and through them Ray's.
    """
    begin = time.monotonic()
    if _ON_LINUX:
        known: set[Identity] = set()
        while (alive := living(folder, known)) and (spent := time.monotonic() - begin) < GIVE_UP:
            for identity in alive if spent > PATIENCE else alive - known:
                _signal(os.kill, identity[0], signal.SIGTERM if spent < PATIENCE else signal.SIGKILL)
            known |= alive
            time.sleep(0.05)
    else:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for group in groups:
                _signal(os.killpg, group, number)
            time.sleep(PATIENCE)
    shutil.rmtree(folder, ignore_errors=True)


class Keeper:
    """The launcher's end of the pipe; a context manager around one run.

    Parameters
    ----------
    folder : Path
        The run's private folder; it exists, and is gone when the context has been left.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._watched: list[subprocess.Popen[Any]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).resolve()), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            text=True,
        )

    def __enter__(self) -> Keeper:
        return self

    def watch(self, process: subprocess.Popen[Any]) -> None:
        """Take charge of a process that was started as the leader of a session of its own."""
        self._watched.append(process)
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.write(f"{process.pid}\n")
            pipe.flush()

    def __exit__(self, *_: object) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
        if self._process.wait() != 0:  # somebody ended the keeper: do its work here
            sweep(self._folder, {process.pid for process in self._watched})
        for process in self._watched:  # they are dead; reap them
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1.0)


def main() -> None:
    """Read process ids from standard input until it closes, then sweep the folder given as argument."""
    groups = {int(line) for line in sys.stdin}
    sweep(Path(sys.argv[1]), groups)


if __name__ == "__main__":
    main()
