"""Who a site is: what its SuperNode's node configuration says, held against the federation's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.config_deployment import SITE_NAME
from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.files import write_bytes

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
            When a key is missing, or the name is none of the federation's sites.
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
        return cls(name, sites.index(name), Path(data).expanduser().absolute(), store_of(node_config, name))

    def open_store(self) -> Path:
        """Make the store, for its owner alone, and try to write there, before any time is spent on training.

        Raises
        ------
        FedBiCrossError
            When it cannot be written.
        """
        try:
            self.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise FedBiCrossError(
                f"cannot make the store {self.store}: {error.strerror}; set store-path to a folder that can "
                "be written"
            ) from error
        probe = self.store / ".writable"
        write_bytes(probe, b"written to see whether it can be\n")
        probe.unlink(missing_ok=True)
        return self.store


def store_of(node_config: Mapping[str, Any], name: str) -> Path:
    """Return the store that a node configuration names, or the usual one."""
    given = str(node_config.get("store-path", "")).strip()
    return (Path(given) if given else STORES / name).expanduser().absolute()


def places_of(node_config: Mapping[str, Any]) -> dict[str, Path]:
    """Return the paths that a refusal must not name to others, whatever else is wrong with the site."""
    places = {}
    if data := str(node_config.get("data-path", "")).strip():
        places["the site's data"] = Path(data)
    name = str(node_config.get("site-name", "")).strip()
    if node_config.get("store-path") or SITE_NAME.fullmatch(name):
        places["the site's store"] = store_of(node_config, name)
    return places
