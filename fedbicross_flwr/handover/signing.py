"""Ed25519 keys and signatures, for files that reach a site by hand instead of by Flower.

The coordinating centre makes a pair of keys once, keeps the private one, and gives the public one to every
site by a way that the sites trust. Both are PEM files, as OpenSSL reads and writes them.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import unusable, write_bytes

PRIVATE: Final = "signing.pem"
PUBLIC: Final = "signing.pub"


def make_signing_key(folder: Path) -> tuple[Path, Path]:
    """Make a pair of keys: ``signing.pem``, which only its owner may read, and ``signing.pub``.

    Parameters
    ----------
    folder : Path
        Made, for its owner alone, when it is absent.

    Returns
    -------
    tuple of Path
        The private key's file and the public one's.

    Raises
    ------
    FedBiCrossError
        When there is such a file already, or the files cannot be written. No key is ever overwritten: sites
        hold the public half of it.
    """
    private, public = folder / PRIVATE, folder / PUBLIC
    for path in (private, public):
        if os.path.lexists(path):
            raise FedBiCrossError(
                f"{path} is there already and is not overwritten; choose another folder, or move it away"
            )
    key = Ed25519PrivateKey.generate()
    write_private(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    write_bytes(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def write_private(path: Path, content: bytes) -> None:
    """Write a file that was not there, readable by its owner alone from its first byte on."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
        except OSError:
            path.unlink()
            raise
    except OSError as error:
        raise FedBiCrossError(
            f"cannot write {path}: {error.strerror or error}; check the folder's permissions and free space"
        ) from error


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Read the key that files are signed with.

    Raises
    ------
    FedBiCrossError
        When the file is absent, is no private Ed25519 key without a passphrase, or others than its owner may
        read it.
    """
    content = read_key_file(path)
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise not_a_key(path, "private") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise not_a_key(path, "private")
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise FedBiCrossError(
            f"{path}: others than its owner may read this private key; run chmod 600 {path}"
        )
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read the key that signatures are checked with.

    Raises
    ------
    FedBiCrossError
        When the file is absent or is no public Ed25519 key.
    """
    content = read_key_file(path)
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise not_a_key(path, "public") from error
    if not isinstance(key, Ed25519PublicKey):
        raise not_a_key(path, "public")
    return key


def read_key_file(path: Path) -> bytes:
    """Return a key file's content."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FedBiCrossError(f"cannot read the key {unusable(error, path)}") from error


def not_a_key(path: Path, kind: str) -> FedBiCrossError:
    """Return what is said of a file that holds something else."""
    name = {"private": PRIVATE, "public": PUBLIC}[kind]
    return FedBiCrossError(
        f"{path} is no {kind} Ed25519 key in PEM; give the {name} that fedbicross make-signing-key wrote"
    )


def key_id(key: Ed25519PublicKey) -> str:
    """Return 16 hexadecimal digits by which people can tell keys apart."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def sign(key: Ed25519PrivateKey, content: bytes) -> str:
    """Return the signature of some bytes, hexadecimal."""
    return key.sign(content).hex()


def is_signed(key: Ed25519PublicKey, signature: str, content: bytes) -> bool:
    """Return whether a signature is this key's for exactly these bytes."""
    try:
        key.verify(bytes.fromhex(signature), content)
    except (InvalidSignature, ValueError):
        return False
    return True
