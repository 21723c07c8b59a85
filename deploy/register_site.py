"""What stands behind ``register-site``: let sites in by their keys, and remember whose key is whose.

Flower knows a node by its number alone. ``CENTRE/sites.json`` says which site each number belongs to.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import subprocess
from pathlib import Path
from typing import Any

from flower_cli import as_command, flwr

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import write_bytes

Sites = dict[str, dict[str, Any]]
"""Node number -> name of the site and fingerprint of its key."""


def main() -> int:
    """Register, list or remove.

    Raises
    ------
    FedBiCrossError
        When a key or a name cannot be used, or Flower refuses.
    """
    parser = argparse.ArgumentParser(prog="register-site")
    parser.add_argument("centre", type=Path)
    parser.add_argument("connection")
    parser.add_argument("what", nargs="*")
    parser.add_argument("--list", action="store_true", dest="listing")
    parser.add_argument("--remove", metavar="NODE")
    chosen = parser.parse_args()
    path = chosen.centre / "sites.json"
    with (chosen.centre / "sites.lock").open("w") as lock:
        # Two at a time would lose what one of them wrote.
        fcntl.flock(lock, fcntl.LOCK_EX)
        sites: Sites = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if chosen.listing:
            show(sites, flwr("supernode", "list", chosen.connection)["nodes"])
            return 0
        if chosen.remove:
            remove(sites, chosen.remove, chosen.connection)
        else:
            name, key = chosen.what
            register(sites, name, Path(key), chosen.connection)
        write_bytes(path, (json.dumps(sites, indent=1) + "\n").encode())
    return 0


def register(sites: Sites, name: str, key: Path, connection: str) -> None:
    """Register a public key for a site."""
    fingerprint = fingerprint_of(key)
    said = flwr("supernode", "register", str(key), connection)
    sites[str(said["node-id"])] = {"site": name, "fingerprint": fingerprint}
    print(f"{name} is registered as node {said['node-id']}")
    print(f"fingerprint, to be compared with what the site reads out: {fingerprint}")


def fingerprint_of(key: Path) -> str:
    """Return the fingerprint of a public key.

    Raises
    ------
    FedBiCrossError
        When the file holds something else.
    """
    if "PRIVATE" in key.read_text(encoding="utf-8", errors="replace"):
        raise FedBiCrossError(
            f"{key} is a private key, which belongs at its site: make a new pair there and send its .pub"
        )
    done = subprocess.run(["ssh-keygen", "-lf", str(key)], capture_output=True, text=True, check=False)
    words = done.stdout.split()
    if done.returncode or words[0] != "384" or words[-1] != "(ECDSA)":
        raise FedBiCrossError(f"{key} is no public key as make-site-key makes it (ECDSA, 384 bits)")
    return words[1]


def remove(sites: Sites, node: str, connection: str) -> None:
    """Put a node out."""
    if node not in sites:
        raise FedBiCrossError(f"{node} is no registered node; --list shows their numbers")
    flwr("supernode", "unregister", node, connection)
    print(f"{sites.pop(node)['site']} is no longer let in as node {node}")


def show(sites: Sites, nodes: list[dict[str, Any]]) -> None:
    """Print who is registered, and who is connected."""
    states = {str(node["node-id"]): str(node["status"]) for node in nodes}
    print(f"{'site':20} {'node':20} {'state':12} fingerprint")
    for node, site in sorted(sites.items(), key=lambda item: str(item[1]["site"])):
        print(f"{site['site']:20} {node:20} {states.get(node, 'removed'):12} {site['fingerprint']}")


if __name__ == "__main__":
    as_command(main)
