"""A site's own data: an .npz file in MedMNIST's layout or a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fedbicross_flwr.data.folder import is_folder, open_folder
from fedbicross_flwr.data.npz import packed_files
from fedbicross_flwr.data.packed import open_packed
from fedbicross_flwr.data.source import ImageSource
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import expanded

SITE_LICENCE: Final = "the site's own"


def open_site(path: Path) -> ImageSource:
    """Open a site's data, which never leaves the site.

    Parameters
    ----------
    path : Path
        An .npz file (see `open_packed`) or a folder (see `open_folder`); ``~`` is expanded.

    Raises
    ------
    FedBiCrossError
        Nothing is there, or what is there cannot be used; the message says why and what to do.
    """
    path = expanded(path)
    if is_folder(path):
        return open_folder(path, name=path.resolve().name, licence=SITE_LICENCE)
    if not path.exists():
        raise FedBiCrossError(absent_line(path))
    return open_packed(path, name=path.stem, licence=SITE_LICENCE, source=str(path))


def absent_line(path: Path, remedy: str = "give an .npz file or a folder with train/<class>/") -> str:
    """Return what to say of a path that does not exist: it names the .npz files of its folder, if any.

    For who works on this machine alone: what a site tells its centre must hold no names of files.
    """
    beside = packed_files(path.parent)
    present = f"; its folder has {beside}" if beside else ""
    return f"{path}: no such file or folder{present}; {remedy}"
