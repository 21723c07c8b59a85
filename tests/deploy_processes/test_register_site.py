"""Whose key is whose at the coordinating centre: what Flower knows, what is on file, where the two differ."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import flower_nodes
import pytest
import register_site
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from federation import SCRIPTS
from flower_nodes import Node
from flwr.cli.typing import SuperLinkConnection
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedbicross_flwr.errors import FedBiCrossError


class Flower:
    """A SuperLink's nodes, with the rules of Flower: a key is taken once, and none is forgotten."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.asked: list[str] = []

    def call(self, *words: str) -> dict[str, object]:
        self.asked.append(words[1])
        if words[1] == "unregister":
            assert self.nodes[words[2]].let_in
            self.nodes[words[2]] = Node("unregistered", self.nodes[words[2]].fingerprint)
            return {"success": True}
        fingerprint = register_site.fingerprint_of(Path(words[2]))
        assert fingerprint not in [node.fingerprint for node in self.nodes.values()]
        number = 2**64 - 1 - len(self.nodes)
        self.nodes[str(number)] = Node("registered", fingerprint)
        return {"success": True, "node-id": number}


class Centre:
    """The coordinating centre's folder, with keys of sites in it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.folder, self.patch, self.printed = folder, monkeypatch, capsys
        self.flower = Flower()
        monkeypatch.setattr(register_site, "flwr", self.flower.call)
        monkeypatch.setattr(register_site, "flower_nodes", lambda connection: self.flower.nodes)

    @property
    def sites(self) -> Path:
        return self.folder / "sites.json"

    def key(self, name: str) -> Path:
        path = self.folder / "keys" / name / "node.key.pub"
        if not path.exists():
            command = [str(SCRIPTS / "make-site-key"), str(path.parent), name]
            subprocess.run(command, check=True, capture_output=True)
        return path

    def run(self, *arguments: str | Path) -> str:
        """Return what register-site prints."""
        self.patch.setattr(sys, "argv", ["register-site", str(self.folder), "centre", *map(str, arguments)])
        self.printed.readouterr()
        assert register_site.main() == 0
        return self.printed.readouterr().out

    def register(self, name: str) -> str:
        """Return the number of the site's node."""
        said = self.run(name, self.key(name))
        assert said.startswith(f"{name} is registered as node ")
        return said.split()[5]

    def listed(self) -> list[list[str]]:
        """Return name, node and state of each line."""
        return [line.split()[:3] for line in self.run("--list").splitlines()[1:]]


@pytest.fixture
def centre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Centre:
    return Centre(tmp_path, monkeypatch, capsys)


def test_sites_are_registered_listed_and_removed(centre: Centre) -> None:
    south, north = centre.register("south"), centre.register("north")
    before = centre.sites.read_bytes()
    assert centre.listed() == [["north", north, "registered"], ["south", south, "registered"]]
    assert centre.sites.read_bytes() == before, "listing writes nothing"
    assert centre.run("--remove", south) == f"south is no longer let in as node {south}\n"
    assert centre.listed() == [["north", north, "registered"]]
    assert list(json.loads(centre.sites.read_text())) == [north]
    with pytest.raises(FedBiCrossError, match=f"{south} is no registered node; --list shows"):
        centre.run("--remove", south)


def test_nodes_that_are_not_on_file_are_listed_and_get_their_names_back(centre: Centre) -> None:
    north, south = centre.register("north"), centre.register("south")
    fingerprint = register_site.fingerprint_of(centre.key("north"))
    centre.sites.unlink()
    assert centre.listed() == [["-", north, "registered"], ["-", south, "registered"]]
    assert fingerprint in centre.run("--list")
    assert centre.register("north") == north
    assert centre.listed() == [["north", north, "registered"], ["-", south, "registered"]]
    assert json.loads(centre.sites.read_text()) == {north: {"site": "north", "fingerprint": fingerprint}}
    assert centre.run("--remove", south) == f"a site without a name is no longer let in as node {south}\n"
    assert centre.listed() == [["north", north, "registered"]]
    assert not centre.flower.nodes[south].let_in


def test_after_a_full_disk_the_same_command_goes_on(centre: Centre) -> None:
    def full(path: Path, content: bytes) -> Path:
        raise FedBiCrossError(f"cannot write {path}: No space left on device")

    with centre.patch.context() as patch:
        patch.setattr(register_site, "write_bytes", full)
        with pytest.raises(
            FedBiCrossError, match="No space left on device; then give the same command again"
        ):
            centre.register("north")
    (number,) = centre.flower.nodes
    assert centre.register("north") == number
    with centre.patch.context() as patch:
        patch.setattr(register_site, "write_bytes", full)
        with pytest.raises(FedBiCrossError, match="No space left on device"):
            centre.run("--remove", number)
    assert centre.listed() == [["north", number, "unregistered"]]
    centre.run("--remove", number)
    assert centre.listed() == [] and centre.flower.asked == ["register", "unregister"]


def test_a_node_that_flower_has_lost_can_be_removed(centre: Centre) -> None:
    number = centre.register("north")
    centre.flower.nodes.clear()
    assert centre.listed() == [["north", number, "removed"]]
    centre.run("--remove", number)
    assert centre.listed() == []


def test_a_key_is_one_site_s_and_is_taken_once(centre: Centre) -> None:
    number = centre.register("north")
    with pytest.raises(FedBiCrossError, match=f"is registered already: node {number} is north"):
        centre.run("south", centre.key("north"))
    centre.run("--remove", number)
    with pytest.raises(FedBiCrossError, match=f"was put out as node {number}, .* make-site-key --renew"):
        centre.register("north")
    assert centre.flower.asked == ["register", "unregister"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"x": {"site": "n"}}', b'{"1": {}}', b'{"1": "n"}']
)
def test_a_damaged_file_is_one_line_and_stays(centre: Centre, content: bytes) -> None:
    centre.sites.write_bytes(content)
    for command in (["--list"], ["--remove", "1"], ["north", centre.key("north")]):
        with pytest.raises(FedBiCrossError, match=r"sites\.json cannot be read \(.*\): bring back") as caught:
            centre.run(*command)
        assert "\n" not in str(caught.value)
    assert centre.sites.read_bytes() == content and not centre.flower.asked


def test_files_that_cannot_be_opened_are_one_line(centre: Centre, tmp_path: Path) -> None:
    key = centre.key("north")

    def refuse(path: Path, **how: str) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    with centre.patch.context() as patch:
        patch.setattr(Path, "read_text", refuse)
        with pytest.raises(FedBiCrossError, match=r"cannot read the public key .*\.pub: Permission denied"):
            register_site.fingerprint_of(key)
        with pytest.raises(FedBiCrossError, match=r"sites\.json cannot be read \(Permission denied\)"):
            centre.run("--list")
    (tmp_path / "sites.lock").unlink()
    (tmp_path / "sites.lock").mkdir()
    with pytest.raises(FedBiCrossError, match=r"cannot write .*sites\.lock: Is a directory"):
        centre.run("--list")


def test_fingerprints_are_those_of_ssh_keygen(centre: Centre) -> None:
    key = serialization.load_ssh_public_key(centre.key("north").read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    kept = public_key_to_bytes(key)
    assert flower_nodes.fingerprint(kept) == register_site.fingerprint_of(centre.key("north"))
    assert flower_nodes.fingerprint(b"none") == "-"


def test_an_error_that_is_not_the_certificate_s_is_not_told_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert subprocess.run([SCRIPTS / "make-ca", tmp_path], capture_output=True, check=False).returncode == 0
    connection = SuperLinkConnection("centre", "127.0.0.1:1", str(tmp_path / "ca.crt"))

    def broken(known: SuperLinkConnection) -> None:
        raise ValueError("of another matter")

    monkeypatch.setattr(flower_nodes, "read_superlink_connection", lambda name: connection)
    flower_nodes.client_of("centre").close()
    monkeypatch.setattr(flower_nodes, "init_http_client_from_connection", broken)
    with pytest.raises(ValueError, match="of another matter"):
        flower_nodes.client_of("centre")
    (tmp_path / "ca.crt").unlink()
    with pytest.raises(FedBiCrossError, match=r"ca\.crt cannot be used .*No such file"):
        flower_nodes.client_of("centre")
