"""The scripts of deploy/ that need no Flower: keys, certificates, and what they refuse."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import demo
import fleet_only
import numpy as np
import pytest
import register_site
import start_run
import stop_run
from federation import SCRIPTS, free_port
from fleet_only import FleetOnly
from flower_cli import as_command
from split_data import deal_unequally, write_sites
from starlette.types import Message, Receive, Scope, Send

from fedbicross_flwr.centre.server import DATA
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.data.registry import open_source
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.launch.app_folder import run_config_toml
from fedbicross_flwr.runs.folder import RunFolder
from fedbicross_flwr.settings import Scalar


def run(script: str, *arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [str(SCRIPTS / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout, done.stderr


def openssl(*arguments: str | Path) -> str:
    return subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deploy") / "centre"
    assert run("make-ca", folder)[0] == 0
    assert run("make-server-certificate", folder, "federation.example.org", "192.0.2.7")[0] == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_certificate_is_the_ca_s_and_for_the_names_given(centre: Path) -> None:
    for name in ("federation.example.org", "localhost"):
        assert "OK" in openssl(
            "verify", "-CAfile", centre / "ca.crt", "-verify_hostname", name, centre / "server.crt"
        )
    for address in ("192.0.2.7", "127.0.0.1", "::1"):
        assert "OK" in openssl(
            "verify", "-CAfile", centre / "ca.crt", "-verify_ip", address, centre / "server.crt"
        )
    with pytest.raises(subprocess.CalledProcessError):
        openssl(
            "verify", "-CAfile", centre / "ca.crt", "-verify_hostname", "elsewhere.org", centre / "server.crt"
        )
    text = openssl("x509", "-in", centre / "server.crt", "-noout", "-text")
    assert "CA:FALSE" in text and "TLS Web Server Authentication" in text


def test_keys_are_for_their_owner_only(centre: Path) -> None:
    assert mode(centre / "ca" / "ca.key") == mode(centre / "server.key") == 0o600
    assert mode(centre / "ca.crt") == mode(centre / "server.crt") == 0o644
    assert mode(centre) == mode(centre / "ca") == 0o700


def test_nothing_is_overwritten_unless_renewal_is_asked_for(centre: Path, tmp_path: Path) -> None:
    before = contents(centre)
    for command in (["make-ca", centre], ["make-server-certificate", centre, "other.example.org"]):
        code, _, said = run(*map(str, command))
        assert (code, said.count("\n")) == (2, 1)
        assert re.search(r"error: .*(ca|server)\.key exists and is not overwritten", said)
    assert contents(centre) == before
    code, _, said = run("make-server-certificate", centre, "other.example.org", "--renew")
    assert code == 0, said
    after = contents(centre)
    assert after["server.key"] != before["server.key"]
    (kept,) = (name for name in after if name.startswith("former/") and name.endswith("server.key"))
    assert after[kept] == before["server.key"]
    assert "OK" in openssl("verify", "-CAfile", centre / "ca.crt", centre / "server.crt")


def test_a_site_s_key_and_its_renewal(tmp_path: Path) -> None:
    site = tmp_path / "north"
    code, said, _ = run("make-site-key", site, "north")
    assert code == 0 and re.search(r"fingerprint.*: SHA256:\S{43}\n", said)
    assert mode(site / "node.key") == 0o600
    assert (site / "node.key.pub").read_text().startswith("ecdsa-sha2-nistp384 ")
    first = (site / "node.key").read_bytes()
    assert run("make-site-key", site, "north")[0] == 2
    assert (site / "node.key").read_bytes() == first
    assert run("make-site-key", site, "north", "--renew")[0] == 0
    assert (site / "node.key").read_bytes() != first
    assert [path.read_bytes() for path in (site / "former").rglob("node.key")] == [first]


PAIRS = {
    "make-site-key": ("node.key", "node.key.pub"),
    "make-server-certificate": ("server.key", "server.crt"),
}
"""Script -> the pair of files that it makes."""


def make_pair(script: str, folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    if script == "make-server-certificate" and not folder.exists():
        assert run("make-ca", folder)[0] == 0
    name = "north" if script == "make-site-key" else "192.0.2.7"
    return run(script, folder, name, *arguments, **environment)


@pytest.mark.parametrize("script", list(PAIRS))
@pytest.mark.parametrize("missing", [0, 1])
def test_half_a_pair_is_renewed_and_the_other_half_is_kept(script: str, missing: int, tmp_path: Path) -> None:
    folder = tmp_path / "machine"
    assert make_pair(script, folder)[0] == 0
    before = contents(folder)
    gone, stays = PAIRS[script][missing], PAIRS[script][1 - missing]
    (folder / gone).unlink()
    code, _, said = make_pair(script, folder, "--renew")
    assert code == 0, said
    after = contents(folder)
    kept = [name for name in after if name.startswith("former/")]
    assert [Path(name).name for name in kept] == [stays] and after[kept[0]] == before[stays]
    assert mode(folder / kept[0]) == (0o600 if stays.endswith(".key") else 0o644)
    assert all(after[name] != before[name] for name in PAIRS[script])
    assert set(after) == {*before, kept[0]}


@pytest.mark.parametrize(
    ("script", "program"), [("make-site-key", "ssh-keygen"), ("make-server-certificate", "openssl")]
)
@pytest.mark.parametrize("refuses", ["maker", "cp"])
def test_a_renewal_that_fails_leaves_the_pair_as_it_was(
    script: str, program: str, refuses: str, tmp_path: Path
) -> None:
    folder = tmp_path / "machine"
    assert make_pair(script, folder)[0] == 0
    before = contents(folder)
    broken = tmp_path / "bin" / (program if refuses == "maker" else refuses)
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho a first line >&2\necho no space left >&2\nexit 1\n")
    broken.chmod(0o755)
    code, _, said = make_pair(script, folder, "--renew", PATH=f"{broken.parent}:{os.environ['PATH']}")
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith("error: ") and said.endswith(": no space left\n")
    assert contents(folder) == before
    assert not list(folder.glob(".new.*"))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("host.example.org:9443", "ends in a port, which no certificate holds: give host.example.org alone"),
        ("192.0.2.7:9443", "give 192.0.2.7 alone"),
        ("[2001:db8::7]:9443", "give 2001:db8::7 alone"),
        ("https://host.example.org", "neither a DNS name nor an IP address"),
        ("192.0.2.256", "neither a DNS name nor an IP address"),
        ("2001:db8:::7", "neither a DNS name nor an IP address"),
    ],
)
def test_a_certificate_is_for_names_and_addresses_alone(centre: Path, name: str, told: str) -> None:
    before = contents(centre)
    code, _, said = run("make-server-certificate", centre, name, "--renew")
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith("error: ") and told in said
    assert contents(centre) == before


@pytest.mark.parametrize("address", ["2001:db8::7", "2001:db8:0:0:0:0:0:8", "fe80::1"])
def test_a_certificate_may_be_for_an_ipv6_address(address: str, tmp_path: Path) -> None:
    assert run("make-ca", tmp_path)[0] == 0
    assert run("make-server-certificate", tmp_path, address)[0] == 0
    assert "OK" in openssl(
        "verify", "-CAfile", tmp_path / "ca.crt", "-verify_ip", address, tmp_path / "server.crt"
    )


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["make-ca"], "name the centre's folder"),
        (["make-ca", "c", "--days", "soon"], "--days soon"),
        (["make-ca", "c", "--days"], "--days needs a value"),
        (["make-server-certificate", "c"], "at least one DNS name"),
        (["make-server-certificate", "c", "x.org"], "c/ca/ca.key is missing"),
        (["make-site-key", "n", "no/rth"], "'no/rth' is no name for a site"),
        (["start-superlink", "c"], "c/ca.crt is missing"),
        (["start-superlink", "c", "--insecure"], "--insecure on 0.0.0.0 would let anybody in"),
        (["start-superlink", "c", "--insecure", "--host", "192.0.2.7"], "on 192.0.2.7 would let anybody in"),
        (["start-superlink", "c", "--force"], "--force goes with --insecure only"),
        (["start-superlink", "c", "--port", "70000"], "'70000' is no port"),
        (["start-supernode", "n", "--superlink", "h:1", "--name", "n"], "--data are all needed"),
        (
            ["start-supernode", "n", "--superlink", "https://h:1", "--name", "n", "--data", "."],
            "without https",
        ),
        (["start-supernode", "n", "--superlink", "h:1", "--name", "n", "--data", "nowhere"], "no such file"),
        (["start-supernode", "n", "--superlink", "h:1", "--name", "n", "--data", "."], "n/ca.crt is missing"),
        (
            ["start-supernode", "n", "--superlink", "h:1", "--name", "n", "--data", ".", "--insecure"],
            "--insecure to h:1 would show models",
        ),
        (["register-site", "c"], "give the site's name"),
        (["register-site", "c", "north", "k.pub"], "k.pub is missing"),
        (["register-site", "c", "--remove", "7", "8"], "--remove takes one number, found '8' as well"),
        (["start-run", "c", "nothing.toml"], "nothing.toml is missing"),
        (["start-run", "c"], "name the centre's folder and the configuration"),
        (["stop-run", "c", "latest"], "'latest' is no number of a run"),
        (["make-ca", "a-file/c"], "cannot make the folder a-file/c: "),
        (["make-site-key", "a-file", "north"], "cannot make the folder a-file: "),
        (["start-superlink", "a-file/c"], "cannot make the folder a-file/c: "),
        (
            ["start-supernode", "a-file", "--superlink", "h:1", "--name", "n", "--data", "."],
            "cannot make the folder a-file: ",
        ),
        (["start-superlink", "taken", "--insecure", "--host", "127.0.0.1"], "cannot write in "),
    ],
)
def test_mistakes_are_one_line(
    command: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    Path("taken/flwr/config.toml.new").mkdir(parents=True)  # where the connection is written
    code, _, said = run(*command)
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith("error: ") and told in said


def test_what_openssl_could_not_write_is_one_line(tmp_path: Path) -> None:
    """With a full disk it writes nothing and ends with status 0."""
    full = tmp_path / "bin" / "openssl"
    full.parent.mkdir()
    full.write_text('#!/bin/sh\nfor last; do :; done\n: > "$last"\n')
    full.chmod(0o755)
    code, _, said = run("make-ca", tmp_path / "c", PATH=f"{full.parent}:{os.environ['PATH']}")
    assert code == 2 and said.startswith("error: cannot write in ") and said.count("\n") == 1
    assert not contents(tmp_path / "c")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc takes no file, not even root's")
def test_a_folder_that_takes_no_file_is_one_line() -> None:
    code, _, said = run("make-site-key", "/proc", "north")
    assert code == 2 and said.startswith("error: cannot write in /proc; ") and said.count("\n") == 1


@pytest.fixture
def silent_centre(tmp_path: Path) -> Path:
    """A centre whose SuperLink does not run."""
    (tmp_path / "c" / "flwr").mkdir(parents=True)
    connection = f'[superlink.centre]\naddress = "127.0.0.1:{free_port()}"\ninsecure = true\n'
    (tmp_path / "c" / "flwr" / "config.toml").write_text(connection)
    return tmp_path / "c"


@pytest.mark.parametrize(("script", "argument"), [("stop-run", "5"), ("register-site", "--list")])
def test_a_superlink_that_does_not_run_is_one_line(script: str, argument: str, silent_centre: Path) -> None:
    code, _, said = run(script, silent_centre, argument, FEDBICROSS_PYTHON=sys.executable)
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith("error: the SuperLink does not answer `flwr ")
    assert said.endswith("`; is it running on this machine?\n")


@pytest.mark.parametrize("content", ["", "no certificate\n"])
def test_a_damaged_certificate_of_the_authority_is_one_line(content: str, silent_centre: Path) -> None:
    certificate, connection = silent_centre / "ca.crt", silent_centre / "flwr" / "config.toml"
    certificate.write_text(content)
    connection.write_text(
        connection.read_text().replace("insecure = true", f'root-certificates = "{certificate}"')
    )
    code, _, said = run("register-site", silent_centre, "--list", FEDBICROSS_PYTHON=sys.executable)
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith("error: the centre's ca.crt cannot be used")


@pytest.mark.parametrize(
    ("program", "arguments", "told"),
    [
        (start_run, ["site.toml", "--bogus"], "unrecognized arguments: --bogus"),
        (start_run, ["site.toml", "--out"], "argument --out: expected one argument"),
        (stop_run, ["5", "6"], "unrecognized arguments: 6"),
        (register_site, ["--list", "--all"], "unrecognized arguments: --all"),
    ],
)
def test_arguments_that_are_wrong_are_one_line_without_those_that_the_script_adds(
    program: ModuleType,
    arguments: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [program.__name__, "c", "centre", *arguments])
    with pytest.raises(SystemExit) as ended:
        as_command(program.main)
    assert ended.value.code == 2
    script = program.__name__.replace("_", "-")
    assert capsys.readouterr().err == f"error: {told}; see {script} --help\n"


def start_with_key(site: Path) -> str:
    """What start-supernode refuses, which without a Python it does after it has looked at the key."""
    (site / "ca.crt").touch()
    command = ["start-supernode", site, "--superlink", "h:1", "--name", "north", "--data", site]
    code, _, said = run(*map(str, command), FEDBICROSS_PYTHON="/nowhere/python")
    assert code == 2
    return said


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    site = tmp_path / "north"
    run("make-site-key", site, "north")
    (site / "node.key").chmod(0o640)
    assert "node.key can be read by others (mode 640): chmod 600" in start_with_key(site)


def test_of_a_linked_key_the_file_behind_the_link_counts(tmp_path: Path) -> None:
    site, secrets = tmp_path / "north", tmp_path / "secrets"
    run("make-site-key", secrets, "north")
    site.mkdir()
    (site / "node.key").symlink_to(secrets / "node.key")
    assert "/nowhere/python is missing" in start_with_key(site)
    (secrets / "node.key").chmod(0o644)
    assert "node.key can be read by others (mode 644): chmod 600" in start_with_key(site)


def test_a_checkout_without_its_environment_is_told_once(tmp_path: Path) -> None:
    for command in (
        ["start-superlink", tmp_path, "--insecure", "--host", "127.0.0.1"],
        [
            "start-supernode",
            tmp_path,
            *["--superlink", "127.0.0.1:1", "--name", "n", "--insecure", "--data"],
            tmp_path,
        ],
    ):
        code, _, said = run(*map(str, command), FEDBICROSS_PYTHON=str(tmp_path / "nothing"))
        assert code == 2 and said.count("\n") == 1 and "nothing is missing: run `make setup`" in said


def test_an_expired_certificate_is_refused_at_the_start(tmp_path: Path) -> None:
    other = tmp_path / "other"
    for folder in (tmp_path / "centre", other):
        assert run("make-ca", folder)[0] == 0
        assert run("make-server-certificate", folder, "127.0.0.1")[0] == 0
    (tmp_path / "centre" / "ca.crt").write_bytes((other / "ca.crt").read_bytes())
    code, _, said = run("start-superlink", tmp_path / "centre", "--host", "127.0.0.1")
    assert code == 2 and "expired or not signed by" in said and "--renew" in said


@pytest.mark.parametrize("host", ["192.0.2.8", "elsewhere.example.org", "2001:db8::1"])
def test_an_address_that_the_certificate_is_not_for_is_refused_at_the_start(host: str, centre: Path) -> None:
    code, _, said = run("start-superlink", centre, "--host", host)
    assert code == 2 and f"is not for {host}" in said and said.count("\n") == 1
    assert "--renew" in said and not (centre / "flwr").exists()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_an_address_that_the_certificate_is_for_is_no_reason_to_refuse(host: str, centre: Path) -> None:
    check = f'set -euo pipefail; source "{SCRIPTS}/lib.sh"; covered_by "{centre}/server.crt" "{host}"'
    assert subprocess.run(["bash", "-c", check], check=False).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize(
    "words",
    [
        "start-superlink FOLDER --insecure --host 127.0.0.1",
        "register-site FOLDER north FOLDER/north.pub",
        "start-run FOLDER FOLDER/north.pub",
        "stop-run FOLDER 7",
        "start-supernode FOLDER --superlink 127.0.0.1:1 --name n --data FOLDER --insecure --once",
        "make-ca FOLDER",
        "make-server-certificate FOLDER 127.0.0.1 --renew",
        "make-site-key FOLDER north --renew",
    ],
)
def test_root_does_not_work_in_the_folder_of_another_user(words: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in ("flwr/config.toml", "north.pub", "ca/ca.key", "ca.crt", "node.key", "node.key.pub"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not (words.startswith("make-ca") and "ca." in name):
            (folder / name).touch()
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, "nobody")
    before = contents(folder)
    code, _, said = run(*words.replace("FOLDER", str(folder)).split())
    assert code == 2 and said.count("\n") == 1 and "belongs to nobody" in said and "sudo -u nobody" in said
    assert contents(folder) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize(
    "words",
    [
        "start-superlink FOLDER/new --insecure --host 127.0.0.1",
        "start-supernode FOLDER/new --superlink 127.0.0.1:1 --name n --data FOLDER --insecure --once",
        "start-supernode OWN --superlink 127.0.0.1:1 --name n --data FOLDER --insecure --store FOLDER/new",
        "make-ca FOLDER/new/centre",
        "make-site-key FOLDER/new north",
    ],
)
def test_root_makes_no_folder_in_that_of_another_user(words: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    # No name belongs to this number, and a shell takes an unquoted # for the begin of a comment.
    os.chown(folder, 54321, -1)
    words = words.replace("FOLDER", str(folder)).replace("OWN", str(tmp_path / "own"))
    code, _, said = run(*words.split(), FEDBICROSS_PYTHON="/nowhere/python")
    assert code == 2 and said.count("\n") == 1, said
    assert f"{folder} belongs to '#54321', who" in said and "sudo -u '#54321' does this" in said
    assert not [*folder.iterdir()]


@pytest.mark.parametrize(
    "script",
    sorted(path.name for path in SCRIPTS.iterdir() if path.is_file() and not path.suffix),
)
def test_every_script_explains_itself(script: str) -> None:
    code, said, _ = run(script, "--help")
    assert code == 0 and said.startswith(f"Usage: {script} ") and len(said.splitlines()) >= 3
    assert os.access(SCRIPTS / script, os.X_OK)


@pytest.mark.parametrize(
    ("path", "caller", "answer"),
    [
        ("/v1/fleet/pull-messages", "198.51.100.9", 200),
        ("/health", "198.51.100.9", 200),
        ("/v1/control/start-run", "198.51.100.9", 403),
        ("/v1/control/register-node", "198.51.100.9", 403),
        ("/v1/runtime/acquire-task", "198.51.100.9", 403),
        ("/docs", "198.51.100.9", 403),
        ("/v1/control/start-run", "127.0.0.2", 403),
        # The server's own address, but from nobody here: a forwarder may say so of anybody.
        ("/v1/control/start-run", "127.0.0.1", 403),
    ],
)
def test_other_machines_reach_what_supernodes_use_and_nothing_else(
    path: str, caller: str, answer: int
) -> None:
    assert answers(path, (caller, 1), ("127.0.0.1", 9443)) == [answer]


def answers(path: str, client: tuple[str, int], server: tuple[str, int], *chunks: bytes) -> list[int]:
    """The status that a request gets, by an app that reads all of it."""
    sent: list[int] = []
    left = list(chunks)

    async def receive() -> Message:
        return {"type": "http.request", "body": left.pop(0) if left else b"", "more_body": bool(left)}

    async def send(message: Message) -> None:
        if "status" in message:
            sent.append(message["status"])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})

    scope = {"type": "http", "path": path, "client": client, "server": server}
    asyncio.run(FleetOnly(app)(scope, receive, send))
    return sent


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the owner of a connection is in /proc")
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_superlink_s_own_user_reaches_everything(
    family: socket.AddressFamily, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(family) as listener:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip(f"there is no {host} here")
        listener.listen()
        with socket.create_connection(listener.getsockname()[:2]) as caller:
            ends = caller.getsockname()[:2], caller.getpeername()[:2]
            assert answers("/v1/control/start-run", *ends) == [200]
            assert answers("/v1/runtime/acquire-task", *ends) == [200]
            monkeypatch.setattr(os, "getuid", lambda: 54321)
            assert answers("/v1/control/start-run", *ends) == [403]


def test_a_request_that_is_too_large_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_only, "LARGEST_REQUEST", 1000)
    ends = ("198.51.100.9", 50000), ("192.0.2.7", 9443)
    assert answers("/v1/fleet/push-object", *ends, b"a" * 500, b"b" * 500) == [200]
    assert answers("/v1/fleet/push-object", *ends, b"a" * 500, b"b" * 501, b"c") == [413]


@pytest.mark.parametrize("setting", [{}, {"deployment.registry": ""}])
def test_names_are_held_against_the_keys_where_there_are_keys(
    tmp_path: Path, setting: dict[str, Scalar]
) -> None:
    (tmp_path / "flwr").mkdir()
    connection = tmp_path / "flwr" / "config.toml"
    connection.write_text("insecure = true\n")
    start_run.name_registry(setting, tmp_path)
    assert not setting.get("deployment.registry") and not (tmp_path / "sites.json").exists()
    connection.write_text('root-certificates = "ca.crt"\n')
    start_run.name_registry(setting, tmp_path)
    assert setting == {"deployment.registry": str(tmp_path / "sites.json")}
    assert json.loads((tmp_path / "sites.json").read_text()) == {}
    own: dict[str, Scalar] = {"deployment.registry": "/srv/keys.json"}
    start_run.name_registry(own, tmp_path)
    assert own == {"deployment.registry": "/srv/keys.json"}


def test_sites_get_unequal_shares_of_all_images(tmp_path: Path) -> None:
    source = open_source("phantom", phantom_train=200, phantom_test=60)
    partition = deal_unequally(source, 3)
    for part, dealt in (("train", partition.train), ("test", partition.test)):
        labels = source.labels("train" if part == "train" else "test")
        assert sorted(np.concatenate(dealt).tolist()) == list(range(len(labels)))
    sizes = [len(rows) for rows in partition.train]
    assert sizes[0] > sizes[1] > sizes[2] > 20
    mixes = [np.bincount(source.labels("train")[rows], minlength=8) / len(rows) for rows in partition.train]
    assert abs(mixes[0] - mixes[1]).sum() > 0.3
    files = [tmp_path / f"{site}.npz" for site in range(3)]
    write_sites(source, partition, files)
    with np.load(files[1], allow_pickle=False) as written:
        assert (written["train_labels"] == source.labels("train")[partition.train[1]]).all()
        assert (written["test_images"] == source.images("test", partition.test[1])).all()
        assert written["class_names"].tolist() == list(source.info.class_names)


def start(centre: Path, settings: dict[str, Scalar], monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a run of these settings as ``start-run`` does; Flower must not be asked for anything."""

    def asked(*arguments: str) -> dict[str, object]:
        raise AssertionError(f"flwr {arguments} before the settings were checked")

    config = centre / "own.toml"
    config.write_text(run_config_toml(settings), encoding="utf-8")
    (centre / "flwr").mkdir(exist_ok=True)
    (centre / "flwr" / "config.toml").write_text("insecure = true\n")
    monkeypatch.setattr(start_run, "flwr", asked)
    monkeypatch.setattr(sys, "argv", ["start-run", str(centre), "centre", str(config)])
    start_run.main()


def test_a_simulation_is_not_started_at_the_centre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FedBiCrossError, match=r"own.toml names no sites, so it is a simulation"):
        start(tmp_path, {"seed": 3}, monkeypatch)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("method", "fedbicros", "did you mean fedbicross"),
        ("method", "flower:FedAvg", "takes many rounds"),
        ("model.name", "resnet19", "did you mean resnet18"),
        ("client.min_classes", 3, "client.min_classes = 3 is more than the 2 classes"),
        ("runtime.device", "cuda:99", "runtime.device = 'cuda:99'"),
    ],
)
def test_what_the_server_could_not_run_is_not_started(
    key: str, value: Scalar, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Scalar] = {"deployment.sites": "a, b", "deployment.class_names": "x, y", key: value}
    with pytest.raises(FedBiCrossError, match=re.escape(said)):
        start(tmp_path, settings, monkeypatch)
    assert not (tmp_path / "runs").exists()


def test_a_run_is_not_started_in_the_folder_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Scalar] = {"deployment.sites": "a, b", "deployment.class_names": "x, y"}
    RunFolder.open(tmp_path / "runs" / "own", RunConfig.from_flat(settings), DATA)
    with pytest.raises(FedBiCrossError, match=r"belongs to a run with deployment\.sites = 'a, b'"):
        start(tmp_path, {**settings, "deployment.sites": "a, b, c"}, monkeypatch)
    with pytest.raises(AssertionError, match="list"):
        start(tmp_path, settings, monkeypatch)


def test_a_run_that_is_taken_up_is_waited_for_until_it_has_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def taken_at_the_third(connection: str, run_id: str) -> None:
        looks.append(1)
        if len(looks) == 3:
            (tmp_path / "identity.json").write_text("{}")

    (tmp_path / "identity.json").write_text("{}")
    os.utime(tmp_path / "identity.json", (1e9, 1e9))
    former = start_run.opened_last(tmp_path)
    monkeypatch.setattr(start_run, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(start_run, "end_of", taken_at_the_third)
    assert start_run.wait_for_folder(tmp_path, former, "centre", "5") == 0 and len(looks) == 3
    monkeypatch.setattr(start_run, "end_of", lambda connection, run_id: 1)
    assert start_run.wait_for_folder(tmp_path, start_run.opened_last(tmp_path), "centre", "5") == 1


def test_an_interruption_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        as_command(interrupted)
    assert ended.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_a_full_disk_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SystemExit) as ended:
        as_command(full)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: No space left on device") and "make room" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("full", "full is not empty; choose a new folder with --out"),
        ("~/full", "full is not empty; choose a new folder with --out"),
        ("full/file", "file is no folder; choose a new folder with --out"),
        ("full/file/below", "check the path"),
        ("/proc/nope/x", "/proc/nope"),
    ],
)
def test_the_demo_says_in_one_line_where_it_cannot_be(
    out: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handlers are the tests'
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out", out])
    with pytest.raises(SystemExit) as ended:
        as_command(demo.main)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("error: ") and told in said and said.count("\n") == 1


def test_an_error_that_is_no_file_s_keeps_its_traceback() -> None:
    def broken() -> int:
        raise OSError("of no file")

    with pytest.raises(OSError, match="of no file"):
        as_command(broken)
