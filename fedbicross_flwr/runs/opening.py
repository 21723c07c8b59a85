"""Opening a run's folder to work in it: by one process at a time, and of a simulation with its data dealt."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.data.partition import Partition
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.federated_data import FederatedData, check_federation, deal, open_data, sizes
from fedbicross_flwr.runs.folder import IDENTITY, LOCK, RunFolder, check_folder, strange_files

if sys.platform != "win32":
    import fcntl

PATIENCE: Final = 5.0
"""Seconds for which a former process may still be dying."""
PAUSE: Final = 0.1


def open_run(config: RunConfig, path: Path) -> tuple[RunFolder, FederatedData]:
    """Open the data, deal it, and open or continue the run folder.

    Raises
    ------
    FedBiCrossError
        When the data, the settings that go with them, or the folder cannot be used.
    """
    source = open_data(config)
    check_federation(config, source.info)
    check_folder(path, config, source.fingerprint())
    kept = path / "partition.json"
    if kept.exists():
        partition = Partition.load(kept, config.partition.clients, sizes(source))
    else:
        partition = deal(source, config)
    # Not before the data is dealt: a folder that failed there would refuse the corrected settings.
    folder = RunFolder.open(path, config, source.fingerprint())
    if not kept.exists():
        partition.save(kept)
    return folder, FederatedData(source, partition)


@contextmanager
def sole_use(path: Path, patience: float | None = None) -> Iterator[None]:
    """Work in a run's folder alone: two servers would mix what they write.

    The operating system frees the lock when its process ends, however it ends. There is none on Windows, and
    none on file systems that have no locks.

    Parameters
    ----------
    path : Path
        The run's folder; it is made if it is absent.
    patience : float, optional
        Seconds to wait for a former process to end; `PATIENCE` by default.

    Raises
    ------
    FedBiCrossError
        When another process, or another run of this one, works there.
    """
    made = not os.path.lexists(path)
    busy = (
        f"another process works on the run in {path}; wait until it has ended, or choose another "
        "folder with out"
    )
    handle = wait_for_lock(lambda: lock_run(path), busy, patience)
    try:
        yield
    finally:
        if handle is not None:
            if not (path / IDENTITY).exists():  # no run was begun, so nothing is to be left
                (path / LOCK).unlink(missing_ok=True)
                if made:
                    with suppress(OSError):
                        path.rmdir()
            os.close(handle)


@contextmanager
def sole_comparison(path: Path) -> Iterator[None]:
    """Make the runs of a comparison alone: they share its cache, which the last one clears.

    Raises
    ------
    FedBiCrossError
        When another process makes runs there.
    """
    busy = (
        f"another process makes runs of the comparison in {path}; wait until it has ended, or take "
        "another --out"
    )
    handle = wait_for_lock(lambda: lock_file(path / LOCK), busy)
    try:
        yield
    finally:
        if handle is not None:
            (path / LOCK).unlink(missing_ok=True)
            os.close(handle)


def wait_for_lock(take: Callable[[], int | None], busy: str, patience: float | None = None) -> int | None:
    """Return the file descriptor that holds a lock, or None where there can be no lock.

    Raises
    ------
    FedBiCrossError
        With `busy`, when another still holds it after `patience` seconds (`PATIENCE` by default).
    """
    end = time.monotonic() + (PATIENCE if patience is None else patience)
    while True:
        try:
            return take()
        except BlockingIOError:
            if time.monotonic() > end:
                raise FedBiCrossError(busy) from None
        except OSError:
            # Opening the folder says in its own words why it cannot be written.
            return None
        time.sleep(PAUSE)


def lock_run(path: Path) -> int | None:
    """Try once to lock a run's folder, which is made; None where it is no run's: nothing is written there.

    Raises
    ------
    BlockingIOError
        When another holds the lock.
    OSError
        When the file cannot be made, or the file system has no locks.
    """
    path.mkdir(parents=True, exist_ok=True)
    return None if strange_files(path) else lock_file(path / LOCK)


def lock_file(path: Path) -> int | None:
    """Try once to lock a file, which is made; None on Windows. Raises like `lock_run`."""
    if sys.platform == "win32":
        return None
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_file(handle, path):  # its former holder has removed it
            raise BlockingIOError
    except BaseException:
        os.close(handle)
        raise
    return handle


def is_file(handle: int, path: Path) -> bool:
    """Return whether a descriptor is that of the file of this name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
