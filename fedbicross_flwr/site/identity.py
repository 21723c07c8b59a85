"""Who a site is: what its SuperNode's node configuration says, held against the federation's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.config_deployment import SITE_NAME
from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.files import expanded, remove_leftovers, write_bytes

NODE_CONFIG: Final = "--node-config \"data-path='/path/to/images' site-name='name'\""
STORES: Final = Path("~/.fedbicross")


@dataclass(frozen=True)
class Site:
    """A site as its own machine knows it.

    Parameters
    ----------
    name : str
        Of ``deployment.sites``.
    client : int
        Its place there.
    data : Path
        Its images; an absolute path, as the store is.
    store : Path
        Where it keeps f_i and its personal model.
    """

    name: str
    client: int
    data: Path
    store: Path

    @classmethod
    def of(cls, config: RunConfig, node_config: Mapping[str, Any]) -> Site:
        """Read a node configuration: ``site-name``, ``data-path`` and, if it is given, ``store-path``.

        Raises
        ------
        FedBiCrossError
            When a key is missing, the name is none of the federation's sites, or a path names a user who
            has no home folder.
        """
        name, data = (str(node_config.get(key, "")).strip() for key in ("site-name", "data-path"))
        if not name or not data:
            missing = "site-name" if not name else "data-path"
            raise FedBiCrossError(
                f"the node configuration of this SuperNode lacks {missing}; start it with {NODE_CONFIG}"
            )
        sites = config.deployment.site_names
        if name not in sites:
            raise FedBiCrossError(
                f"site-name = {name!r} is none of the federation's sites{near_names(name, sites)}; ask the "
                "coordinating centre for the name in deployment.sites"
            )
        store = expanded(store_of(node_config, name)).absolute()
        return cls(name, sites.index(name), expanded(Path(data)).absolute(), store)

    def open_store(self) -> Path:
        """Make the store and return it; see `make_store`."""
        make_store(self.store, "set store-path to")
        return self.store


def make_store(store: Path, how: str) -> None:
    """Make a site's store, for its owner alone, and try to write there, before time is spent on training.

    What former processes left there of files that they were writing when they were killed is removed.

    Parameters
    ----------
    store : Path
        The folder.
    how : str
        How another can be named.

    Raises
    ------
    FedBiCrossError
        When it cannot be written.
    """
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FedBiCrossError(
            f"cannot make the store {store}: {error.strerror}; {how} a folder that can be written"
        ) from error
    remove_leftovers(store)
    probe = store / ".writable"
    write_bytes(probe, b"written to see whether it can be\n")
    probe.unlink(missing_ok=True)


def store_of(node_config: Mapping[str, Any], name: str) -> Path:
    """Return the store that a node configuration names, as it is written there, or the usual one."""
    given = str(node_config.get("store-path", "")).strip()
    return Path(given) if given else STORES / name


def places_of(node_config: Mapping[str, Any]) -> dict[str, Path]:
    """Return the paths that a refusal must not name to others, whatever else is wrong with the site."""
    places = {}
    if data := str(node_config.get("data-path", "")).strip():
        places["the site's data"] = Path(data)
    name = str(node_config.get("site-name", "")).strip()
    if node_config.get("store-path") or SITE_NAME.fullmatch(name):
        places["the site's store"] = store_of(node_config, name)
    return places
