"""Keys: made once, private, and only of the kind that is meant."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st
from tool_runs import Fedbicross

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.handover.signing import (
    is_signed,
    key_id,
    make_signing_key,
    read_private_key,
    read_public_key,
    sign,
)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fedbicross:
    return Fedbicross(monkeypatch, capsys)


def private_pem(
    key: Ed25519PrivateKey | X25519PrivateKey, encryption: KeySerializationEncryption | None = None
) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def write_key(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def test_the_private_key_is_its_owner_s_alone_whatever_the_umask(tmp_path: Path, command: Fedbicross) -> None:
    former = os.umask(0)
    try:
        answer = command("make-signing-key", tmp_path / "new" / "keys")
    finally:
        os.umask(former)
    private, public = tmp_path / "new" / "keys" / "signing.pem", tmp_path / "new" / "keys" / "signing.pub"
    assert (answer.status, answer.error) == (0, "")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(private.parent.stat().st_mode) == 0o700
    key = read_private_key(private)
    assert key_id(key.public_key()) == key_id(read_public_key(public))
    assert key_id(key.public_key()) in answer.output
    assert b"PRIVATE" not in public.read_bytes()


@pytest.mark.parametrize("name", ["signing.pem", "signing.pub"])
def test_no_key_is_overwritten_and_no_half_pair_is_made(
    tmp_path: Path, command: Fedbicross, name: str
) -> None:
    (tmp_path / name).write_text("of last year")
    command("make-signing-key", tmp_path).is_refusal(name, "not overwritten")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "of last year"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, command: Fedbicross) -> None:
    (tmp_path / "file").write_text("")
    command("make-signing-key", tmp_path / "file" / "keys").is_refusal("cannot write", "signing.pem")


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_a_signature_holds_for_its_bytes_and_its_key_alone(content: bytes, other: bytes) -> None:
    key, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    signature = sign(key, content)
    assert is_signed(key.public_key(), signature, content)
    assert not is_signed(stranger.public_key(), signature, content)
    assert is_signed(key.public_key(), signature, other) == (other == content)
    assert not is_signed(key.public_key(), "no signature", content)
    assert not is_signed(key.public_key(), "", content)


def test_a_file_that_is_no_such_key_is_one_line(tmp_path: Path) -> None:
    private, public = make_signing_key(tmp_path)
    own = Ed25519PrivateKey.generate()
    exchange = X25519PrivateKey.generate()
    other = exchange.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for content in (
        public.read_bytes(),
        b"",
        b"\xff\x00 key",
        private.read_bytes()[:60],
        private_pem(exchange),
        private_pem(own, BestAvailableEncryption(b"secret")),
    ):
        with pytest.raises(FedBiCrossError, match=r"key\.pem is no private Ed25519 key .* signing\.pem"):
            read_private_key(write_key(tmp_path / "key.pem", content))
    for content in (private.read_bytes(), b"", other):
        with pytest.raises(FedBiCrossError, match=r"key\.pub is no public Ed25519 key .* signing\.pub"):
            read_public_key(write_key(tmp_path / "key.pub", content))
    for read in (read_private_key, read_public_key):
        with pytest.raises(FedBiCrossError, match=r"cannot read the key .*absent"):
            read(tmp_path / "absent")


def test_a_private_key_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    private, _ = make_signing_key(tmp_path)
    private.chmod(0o640)
    with pytest.raises(FedBiCrossError, match="chmod 600"):
        read_private_key(private)
    private.chmod(0o400)
    read_private_key(private)
