"""The single-label 2D sets of MedMNIST, by name: official splits, file checked against the published MD5."""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError

from fedbicross_flwr.data.npz import packed_files
from fedbicross_flwr.data.packed import PackedSource, open_packed
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import expanded

_TASKS: Final = ("multi-class", "binary-class", "ordinal-regression")


@cache
def medmnist_info() -> Mapping[str, Mapping[str, Any]]:
    """Return the ``INFO`` table of the installed `medmnist` package.

    Only the module ``medmnist.info`` is run: importing the package loads pandas, scikit-image and
    torchvision, about 8 seconds that each client process would spend on a table of facts.
    """
    package = importlib.util.find_spec("medmnist")
    if package is None or not package.submodule_search_locations:
        raise FedBiCrossError("the package 'medmnist' is not installed; install it with pip install medmnist")
    file = Path(package.submodule_search_locations[0]) / "info.py"
    spec = importlib.util.spec_from_file_location("medmnist_info", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    table: Mapping[str, Mapping[str, Any]] = module.INFO
    return table


def refusal(flag: str) -> str:
    """Return why a MedMNIST set cannot be used here, or an empty string if it can."""
    facts = medmnist_info()[flag]
    if facts["python_class"].endswith("3D"):
        return "is a set of volumes; FedBiCross works on 2D images"
    if facts["task"] not in _TASKS:
        return f"is a {facts['task']} set; FedBiCross needs exactly one class an image"
    return ""


def usable_flags() -> tuple[str, ...]:
    """Return the names of the sets that can be opened, sorted."""
    return tuple(sorted(flag for flag in medmnist_info() if not refusal(flag)))


def open_medmnist(flag: str, *, root: Path | None = None, download: bool = True) -> PackedSource:
    """Open a MedMNIST set of 28x28 images.

    Parameters
    ----------
    flag : str
        Its name in MedMNIST, such as ``"bloodmnist"``.
    root : Path, optional
        Folder that holds, or will hold, ``<flag>.npz``; ``~/.medmnist``, where MedMNIST's own loader keeps
        its files, is looked into as well and is the default.
    download : bool
        Fetch the file if it is in neither place (default True).

    Raises
    ------
    FedBiCrossError
        The file has another MD5 than the published one, or is not there and cannot be fetched; the line then
        names the .npz files that are there.
    """
    facts = medmnist_info()[flag]
    path = _find(flag, root)
    if path is None:
        path = _fetch(flag, _root(root), download)
    else:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != facts["MD5"]:
            raise FedBiCrossError(
                f"{path}: MD5 is {found}, expected {facts['MD5']}; the file is damaged or another version: "
                f"delete it, or replace it with {_address(flag)}"
            )
    return open_packed(
        path,
        name=flag,
        class_names=[facts["label"][str(label)] for label in range(len(facts["label"]))],
        licence=facts["license"],
        source=_address(flag),
        digest=facts["MD5"],
    )


def _root(root: Path | None) -> Path:
    return expanded(root or Path("~/.medmnist"))


def _address(flag: str) -> str:
    return str(medmnist_info()[flag]["url"]).partition("?")[0]


def _find(flag: str, root: Path | None) -> Path | None:
    places = [_root(root) / f"{flag}.npz", _root(None) / f"{flag}.npz"]
    return next((place for place in places if place.is_file()), None)


def _fetch(flag: str, folder: Path, download: bool) -> Path:
    """Download the file beside its final place, check its MD5, then rename it."""
    facts, name = medmnist_info()[flag], f"{flag}.npz"
    by_hand = f"fetch {_address(flag)} (MD5 {facts['MD5']}) and put it at {folder / name}"
    found = packed_files(folder, _root(None))
    present = f"present: {found + '; ' if found else ''}`phantom`, which needs no file"
    if not download:
        raise FedBiCrossError(f"{name} is not in {folder} and downloading is off; {by_hand}; {present}")
    # Here, not above: the import takes seconds and is needed once in a set's life.
    from torchvision.datasets.utils import download_url

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{flag}-") as temporary:
            download_url(facts["url"], temporary, name, facts["MD5"])
            (Path(temporary) / name).replace(folder / name)
    except (URLError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FedBiCrossError(f"{name} could not be downloaded ({reason}); {by_hand}; {present}") from None
    return folder / name
