"""What stands behind ``register-site``: let sites in by their keys, and remember whose key is whose.

Flower knows a node by its number alone. ``CENTRE/sites.json`` says which site each number belongs to. It may
lack nodes that Flower knows, when it was lost, or could not be written after Flower had taken a key: they are
listed and can be put out, and to register the same key again writes its name down.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flower_cli import Arguments, as_command, flwr
from flower_nodes import Node, flower_nodes

from fedbicross_flwr.centre.registry import name_in
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import write_bytes

Sites = dict[str, dict[str, Any]]
"""Node number -> name of the site and fingerprint of its key."""
NAMELESS = "-"
"""Stands for the name of a node that `Sites` lacks; no site can be called so."""


def main() -> int:
    """Register, list or remove.

    Raises
    ------
    FedBiCrossError
        When a key or a name cannot be used, the sites on file cannot be read or written, or Flower refuses.
    """
    parser = Arguments("register-site")
    parser.add_argument("what", nargs="*")
    parser.add_argument("--list", action="store_true", dest="listing")
    parser.add_argument("--remove", metavar="NODE")
    chosen = parser.parse_args()
    path = chosen.centre / "sites.json"
    with held(chosen.centre / "sites.lock"):
        sites, known = read_sites(path), flower_nodes(chosen.connection)
        if chosen.listing:
            show(sites, known)
            return 0
        if chosen.remove:
            said = remove(sites, known, chosen.remove, chosen.connection)
        else:
            name, key = chosen.what
            said = register(sites, known, name, Path(key), chosen.connection)
        write_sites(path, sites)
    print(said)
    return 0


@contextlib.contextmanager
def held(lock: Path) -> Iterator[None]:
    """Have the sites to oneself: two at a time would lose what one of them wrote."""
    try:
        stream = lock.open("w")
    except OSError as error:
        raise FedBiCrossError(
            f"cannot write {lock}: {error.strerror}; check the folder's permissions and free space"
        ) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def read_sites(path: Path) -> Sites:
    """Return the sites on file.

    Raises
    ------
    FedBiCrossError
        When the file is damaged or cannot be read.
    """
    try:
        sites: Sites = json.loads(path.read_text(encoding="utf-8"))
        for node, entry in sites.items():
            int(node)
            name_in(entry)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise FedBiCrossError(
            f"{path} cannot be read ({said}): bring back a copy of it, or move it away and register the same "
            "keys again; Flower still knows them, and they keep their numbers"
        ) from error
    return sites


def write_sites(path: Path, sites: Sites) -> None:
    """Write the sites down.

    Raises
    ------
    FedBiCrossError
        When they cannot be written. What Flower was told stands.
    """
    try:
        write_bytes(path, (json.dumps(sites, indent=1) + "\n").encode())
    except FedBiCrossError as error:
        raise FedBiCrossError(f"{error}; then give the same command again") from error


def register(sites: Sites, known: dict[str, Node], name: str, key: Path, connection: str) -> str:
    """Register a public key for a site; return what there is to say."""
    fingerprint = fingerprint_of(key)
    node = nameless_node(sites, known, fingerprint, key)
    if node is None:
        node = str(flwr("supernode", "register", str(key), connection)["node-id"])
    sites[node] = {"site": name, "fingerprint": fingerprint}
    return (
        f"{name} is registered as node {node}\n"
        f"fingerprint, to be compared with what the site reads out: {fingerprint}"
    )


def nameless_node(sites: Sites, known: dict[str, Node], fingerprint: str, key: Path) -> str | None:
    """Return the node that Flower let in by a key that `sites` lacks; None when the key is new to Flower.

    Raises
    ------
    FedBiCrossError
        When the key is somebody's, or was put out.
    """
    for number, node in known.items():
        if node.fingerprint != fingerprint:
            continue
        if not node.let_in:
            raise FedBiCrossError(
                f"{key} was put out as node {number}, and Flower takes no key twice: have the site make "
                "another pair with make-site-key --renew"
            )
        if number in sites:
            raise FedBiCrossError(f"{key} is registered already: node {number} is {sites[number]['site']}")
        return number
    return None


def fingerprint_of(key: Path) -> str:
    """Return the fingerprint of a public key.

    Raises
    ------
    FedBiCrossError
        When the file cannot be read or holds something else.
    """
    try:
        text = key.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise FedBiCrossError(f"cannot read the public key {key}: {error.strerror}") from error
    if "PRIVATE" in text:
        raise FedBiCrossError(
            f"{key} is a private key, which belongs at its site: make a new pair there and send its .pub"
        )
    done = subprocess.run(["ssh-keygen", "-lf", str(key)], capture_output=True, text=True, check=False)
    words = done.stdout.split()
    if done.returncode or words[0] != "384" or words[-1] != "(ECDSA)":
        raise FedBiCrossError(f"{key} is no public key as make-site-key makes it (ECDSA, 384 bits)")
    return words[1]


def remove(sites: Sites, known: dict[str, Node], node: str, connection: str) -> str:
    """Put a node out, by what Flower knows and by what is on file; return what there is to say.

    Raises
    ------
    FedBiCrossError
        When neither has it.
    """
    let_in = node in known and known[node].let_in
    if node not in sites and not let_in:
        raise FedBiCrossError(f"{node} is no registered node; --list shows their numbers")
    if let_in:
        flwr("supernode", "unregister", node, connection)
    name = sites.pop(node)["site"] if node in sites else "a site without a name"
    return f"{name} is no longer let in as node {node}"


def show(sites: Sites, known: dict[str, Node]) -> None:
    """Print who is registered, and who is connected; last the nodes of which Flower alone knows."""
    print(f"{'site':20} {'node':20} {'state':12} fingerprint")
    for node, site in sorted(sites.items(), key=lambda item: str(item[1]["site"])):
        state = known[node].state if node in known else "removed"
        print(f"{site['site']:20} {node:20} {state:12} {site.get('fingerprint', '-')}")
    for number, one in known.items():
        if one.let_in and number not in sites:
            print(f"{NAMELESS:20} {number:20} {one.state:12} {one.fingerprint}")


if __name__ == "__main__":
    as_command(main)
