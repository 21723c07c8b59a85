"""Reads single arrays, and single rows of arrays, out of an .npz file without unpacking it.

``np.load`` builds a member whole before a row can be taken: 130 MB for TissueMNIST's training images, in
every client process. Here the zip member is read in chunks of about 1 MB and only the wanted rows are kept.
"""

from __future__ import annotations

import math
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
        raise FedBiCrossError(f"{what} cannot be read ({error.strerror or error})") from None


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
    version = npy_format.read_magic(member)
    readers = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"its .npy format {version[0]}.{version[1]} is not supported")
    shape, fortran_order, dtype = readers[version](member)
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
        Receives row ``rows[i]`` at ``places[i]``. Beside it, memory is needed for a few chunks of 1 MB. An
        array in Fortran order, whose rows do not lie together, is the exception: it is read whole.
    places : (m,) int64
        Row numbers in `out`.

    Raises
    ------
    FedBiCrossError
        The file is damaged.
    """
    if not len(rows):
        return
    with _reading(path, name) as archive, archive.open(f"{name}.npy") as member:
        header = _header(member)
        if header.fortran_order:
            out[places] = read_array(path, name)[rows].reshape(len(rows), *out.shape[1:])
            return
        row_bytes = math.prod(header.shape[1:]) * header.dtype.itemsize
        step = max(1, _CHUNK_BYTES // row_bytes)
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        for start in range(0, int(ascending[-1]) + 1, step):
            count = min(step, header.shape[0] - start)
            data = member.read(count * row_bytes)
            if len(data) != count * row_bytes:
                raise EOFError("it ends early")
            low, high = np.searchsorted(ascending, [start, start + count])
            if low < high:
                chunk = np.frombuffer(data, dtype=header.dtype).reshape(count, *out.shape[1:])
                out[places[order[low:high]]] = chunk[ascending[low:high] - start]
