"""The nodes that the SuperLink knows, with the fingerprints of their keys.

``flwr supernode list`` leaves keys out, so its own client is asked for what it asks the SuperLink for.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import ssl
from dataclasses import dataclass
from pathlib import Path

import click
from cryptography.hazmat.primitives import serialization
from flower_cli import refusal
from flwr.cli.flower_config import read_superlink_connection
from flwr.cli.utils import flwr_cli_exc_handler, init_http_client_from_connection
from flwr.proto.control_pb2 import ListNodesRequest
from flwr.supercore.control import ControlHttpClient

from fedbicross_flwr.errors import FedBiCrossError


@dataclass(frozen=True)
class Node:
    """What Flower knows of a node.

    Parameters
    ----------
    state : str
        ``registered`` (never seen), ``online``, ``offline``, or ``unregistered`` (put out for good).
    fingerprint : str
        Its public key's, as ``ssh-keygen -l`` prints it; ``-`` where there is none.
    """

    state: str
    fingerprint: str

    @property
    def let_in(self) -> bool:
        """Return whether Flower lets it in."""
        return self.state != "unregistered"


def flower_nodes(connection: str) -> dict[str, Node]:
    """Return all nodes, those that were put out as well, by their numbers.

    Raises
    ------
    FedBiCrossError
        When the SuperLink does not answer, or refuses.
    """
    try:
        client = client_of(connection)
        try:
            with flwr_cli_exc_handler():
                found = client.ListNodes(ListNodesRequest()).nodes_info
        finally:
            client.close()
    except click.ClickException as error:
        raise refusal("supernode list", error.message) from error
    return {str(node.node_id): Node(node.status, fingerprint(node.public_key)) for node in found}


def client_of(connection: str) -> ControlHttpClient:
    """Return Flower's client for a connection.

    Raises
    ------
    FedBiCrossError
        When the certificate that the connection names cannot be used.
    """
    known = read_superlink_connection(connection)
    if known.root_certificates:
        check_certificate(Path(known.root_certificates))
    # It prints which SuperLink it is about to ask.
    with contextlib.redirect_stdout(io.StringIO()):
        return init_http_client_from_connection(known)


def check_certificate(path: Path) -> None:
    """Read a certificate as Flower will, whose errors do not tell what they are about.

    Raises
    ------
    FedBiCrossError
        When it cannot be used.
    """
    try:
        text = path.read_bytes().decode("ascii")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise FedBiCrossError(
            f"the centre's ca.crt cannot be used ({said}): put it back as make-ca made it"
        ) from error


def fingerprint(key: bytes) -> str:
    """Return the fingerprint of a public key as Flower keeps it (PEM)."""
    try:
        loaded = serialization.load_pem_public_key(key)
    except ValueError:
        return "-"  # a node without authentication
    line = loaded.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"
