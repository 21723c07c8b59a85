"""Reads single arrays, and single rows of arrays, out of an .npz file without unpacking it.

``np.load`` builds a member whole before a row can be taken: 130 MB for TissueMNIST's training images, in
every client process. Here the zip member is read in chunks of about 1 MB and only the wanted rows are kept.
"""

from __future__ import annotations

import math
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from fedbicross_flwr.errors import FedBiCrossError, harmless
from fedbicross_flwr.files import refuse_pipe

MOST_NAMED: Final = 8
"""Files that a message names; of more it gives the number."""
_CHUNK_BYTES: Final = 1 << 20
_BROKEN: Final = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)


def packed_files(*folders: Path) -> str:
    """Return the names of the .npz files in some folders, for a message on one that is not there.

    Returns
    -------
    str
        ``"a.npz, b.npz"``, sorted, each name once and `MOST_NAMED` at most; empty where there is none.
    """
    found = sorted({harmless(file.name) for folder in folders for file in folder.glob("*.npz")})
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return ", ".join(found[:MOST_NAMED]) + more


@dataclass(frozen=True)
class ArrayHeader:
    """Shape, dtype and memory order of an array inside an .npz file, known without reading its data."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool


@contextmanager
def _reading(path: Path, name: str | None = None) -> Iterator[zipfile.ZipFile]:
    """Open the archive and turn every way in which it can be broken into one line."""
    what = f"{path}: array '{name}'" if name else str(path)
    try:
        refuse_pipe(path)
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError:
        raise FedBiCrossError(f"{path}: no such file; give the path of an .npz file") from None
    except IsADirectoryError:
        raise FedBiCrossError(f"{path}: is a folder, not an .npz file") from None
    except zipfile.BadZipFile as error:
        hint = "is it cut short, or not an .npz file? Copy or save it anew with numpy.savez_compressed"
        raise FedBiCrossError(f"{what} cannot be read ({error}); {hint}") from None
    except _BROKEN as error:
        raise FedBiCrossError(f"{what} cannot be read ({error}); the file is damaged, copy it anew") from None
    except OSError as error:
        raise FedBiCrossError(
            f"{what} cannot be read ({error.strerror or error}); check who may read it, or copy it anew"
        ) from None


def array_names(path: Path) -> tuple[str, ...]:
    """Return the names of the arrays in an .npz file, sorted.

    Raises
    ------
    FedBiCrossError
        The file is missing, no zip, or cut short.
    """
    with _reading(path) as archive:
        return tuple(sorted(name[:-4] for name in archive.namelist() if name.endswith(".npy")))


def _header(member: IO[bytes]) -> ArrayHeader:
    readers = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    try:
        # It is parsed as Python before any checksum is held against it, and NumPy may warn before it fails.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            version = npy_format.read_magic(member)
            found = readers[version](member) if version in readers else None
    except zipfile.BadZipFile:
        raise
    except Exception as error:
        raise ValueError("its header is damaged") from error
    if found is None:
        raise ValueError(f"its .npy format {version[0]}.{version[1]} is not supported")
    shape, fortran_order, dtype = found
    return ArrayHeader(tuple(shape), dtype, fortran_order)


def read_header(path: Path, name: str) -> ArrayHeader:
    """Return shape and dtype of one array.

    Raises
    ------
    FedBiCrossError
        The array holds Python objects (a pickle, which is never loaded), or the file is damaged.
    """
    with _reading(path, name) as archive, archive.open(f"{name}.npy") as member:
        header = _header(member)
        if header.dtype.hasobject:
            raise FedBiCrossError(
                f"{path}: array '{name}' holds Python objects, which are never unpickled; "
                "save it with a plain numeric or string dtype"
            )
        expected = member.tell() + math.prod(header.shape) * header.dtype.itemsize
        found = archive.getinfo(f"{name}.npy").file_size
        if found != expected:
            raise ValueError(f"{found} bytes where its header announces {expected}")
    return header


def read_array(path: Path, name: str) -> NDArray[Any]:
    """Return one whole array; for labels and names, which are small."""
    read_header(path, name)
    with _reading(path, name) as archive, archive.open(f"{name}.npy") as member:
        array: NDArray[Any] = npy_format.read_array(member, allow_pickle=False)
    return array


def read_rows(
    path: Path, name: str, rows: NDArray[np.int64], out: NDArray[Any], places: NDArray[np.int64]
) -> None:
    """Read chosen rows of one array into chosen rows of `out`.

    Parameters
    ----------
    path, name : Path, str
        The file and the array in it.
    rows : (m,) int64
        Row numbers in any order; repeats are allowed.
    out : (k, ...) array
        Receives row ``rows[i]`` at ``places[i]``. Beside it, memory is needed for a few chunks of 1 MB; see
        `read_chunks`.
    places : (m,) int64
        Row numbers in `out`.

    Raises
    ------
    FedBiCrossError
        The file is damaged.
    """
    if not len(rows):
        return
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    start = 0
    for chunk in read_chunks(path, name, stop=int(ascending[-1]) + 1):
        low, high = np.searchsorted(ascending, [start, start + len(chunk)])
        if low < high:
            chosen = chunk[ascending[low:high] - start]
            out[places[order[low:high]]] = chosen.reshape(len(chosen), *out.shape[1:])
        start += len(chunk)


def read_chunks(path: Path, name: str, step: int = 0, stop: int | None = None) -> Iterator[NDArray[Any]]:
    """Yield the rows of one array in their order, some at a time.

    An array in Fortran order, whose rows do not lie together, is read whole.

    Parameters
    ----------
    path, name : Path, str
        The file and the array in it, whose rows are not empty.
    step : int, default 0
        Rows of a chunk; 0: as many as are about 1 MB.
    stop : int, optional
        How many rows are wanted, all by default; the last chunk may hold more.

    Raises
    ------
    FedBiCrossError
        The file is damaged.
    """
    with _reading(path, name) as archive, archive.open(f"{name}.npy") as member:
        header = _header(member)
        row_bytes = math.prod(header.shape[1:]) * header.dtype.itemsize
        step = step or max(1, _CHUNK_BYTES // row_bytes)
        starts = range(0, header.shape[0] if stop is None else stop, step)
        if header.fortran_order:
            whole = read_array(path, name)
            yield from (whole[start : start + step] for start in starts)
            return
        for start in starts:
            count = min(step, header.shape[0] - start)
            data = member.read(count * row_bytes)
            if len(data) != count * row_bytes:
                raise EOFError("it ends early")
            yield np.frombuffer(data, dtype=header.dtype).reshape(count, *header.shape[1:])
