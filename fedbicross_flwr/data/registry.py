"""Opens a data set by its name: the phantom, a MedMNIST set, or a site's own data."""

from __future__ import annotations

from pathlib import Path

from fedbicross_flwr.data.medmnist import medmnist_info, open_medmnist, refusal, usable_flags
from fedbicross_flwr.data.phantom import DEFAULT_TEST, DEFAULT_TRAIN, PhantomSource
from fedbicross_flwr.data.site import open_site
from fedbicross_flwr.data.source import ImageSource
from fedbicross_flwr.errors import FedBiCrossError, near_names


def available_datasets() -> tuple[str, ...]:
    """Return every name that `open_source` knows: ``phantom``, ``site``, then MedMNIST's sets, sorted."""
    return ("phantom", "site", *usable_flags())


def open_source(
    name: str,
    *,
    root: Path | None = None,
    path: Path | None = None,
    download: bool = True,
    phantom_train: int = DEFAULT_TRAIN,
    phantom_test: int = DEFAULT_TEST,
    phantom_channels: int = 3,
    seed: int = 0,
) -> ImageSource:
    """Open a data set.

    Parameters
    ----------
    name : str
        One of `available_datasets`.
    root : Path, optional
        Folder of the MedMNIST files (default ``~/.medmnist``).
    path : Path, optional
        The .npz file or folder of a site's own data. Needed with ``"site"``; implies it with
        ``"phantom"``, the default name; refused with a MedMNIST name.
    download : bool
        Whether a MedMNIST file that is not there may be fetched (default True).
    phantom_train, phantom_test, phantom_channels : int
        Sizes and channels of the phantom (defaults 6,000, 1,500 and 3).
    seed : int
        The phantom's seed (default 0); the other sets do not depend on it.

    Raises
    ------
    FedBiCrossError
        The name is unknown or of a kind that is not supported, or the data cannot be used.
    """
    if path is not None:
        if name not in ("site", "phantom"):
            raise FedBiCrossError(
                f"data.name = '{name}' and data.path = '{path}' exclude each other; set data.name = 'site' "
                "for own data, or leave data.path empty"
            )
        return open_site(path)
    if name == "phantom":
        return PhantomSource(phantom_train, phantom_test, phantom_channels, seed)
    if name == "site":
        raise FedBiCrossError(
            "data.name = 'site' needs data.path: an .npz file or a folder with train/<class>/"
        )
    if name not in medmnist_info():
        known = available_datasets()
        raise FedBiCrossError(
            f"data.name = '{name}' is unknown{near_names(name, known)}; known are {', '.join(known)}"
        )
    if reason := refusal(name):
        raise FedBiCrossError(f"data.name = '{name}' {reason}; usable are {', '.join(available_datasets())}")
    return open_medmnist(name, root=root, download=download)
