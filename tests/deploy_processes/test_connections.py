"""Who is let in by a SuperLink with TLS and node authentication, and who is not."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed import Deployed, command, deployed, until
from federation import descendants

pytestmark = pytest.mark.deploy


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployed(tmp_path_factory.mktemp("connections") / "fed", sites=["north"], started=["north"]) as here:
        yield here


def ended(here: Deployed, name: str) -> str:
    """Wait until a site's SuperNode has ended by itself; return what it said."""
    process = here.made.sites[name].process
    assert process is not None
    until(lambda: process.poll() is not None, f"the SuperNode of {name} ends", 60.0)
    assert process.returncode != 0
    return here.made.sites[name].logged()


def test_a_registered_site_is_online(centre: Deployed) -> None:
    def listed() -> str:
        return centre.made.run("register-site", centre.made.centre.folder, "--list").stdout

    until(lambda: "online" in listed(), "north is online", 60.0)
    assert "north" in listed()


def test_an_unregistered_key_is_refused(centre: Deployed) -> None:
    centre.start_site("stranger", "--once")
    assert "Failed to activate SuperNode" in ended(centre, "stranger")
    assert "No SuperNode found with the given public key" in centre.made.centre.logged()


def test_a_ca_that_is_not_the_federation_s_is_refused(centre: Deployed, tmp_path: Path) -> None:
    site = centre.site("misled")
    centre.made.register(site)
    centre.made.run("make-ca", tmp_path / "other")
    shutil.copy2(tmp_path / "other" / "ca.crt", site.folder / "ca.crt")
    centre.start_site("misled", "--once")
    assert "CERTIFICATE_VERIFY_FAILED" in ended(centre, "misled")


def test_a_plain_connection_is_refused(centre: Deployed) -> None:
    centre.start_site("plain", "--insecure")
    site = centre.made.sites["plain"]
    until(lambda: site.logged().count("Connection attempt failed") >= 2, "attempts fail", 60.0)
    centre.made.kill(site)
    plain = http.client.HTTPConnection("127.0.0.1", centre.made.centre.port, timeout=10)
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        plain.request("GET", "/health")
        plain.getresponse()


@pytest.mark.parametrize(
    "path", ["/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task"]
)
def test_another_machine_cannot_start_runs_or_take_tasks(centre: Deployed, path: str) -> None:
    trusted = ssl.create_default_context(cafile=str(centre.made.centre.folder / "ca.crt"))
    answers = {}
    for caller in ("127.0.0.1", "127.0.0.2"):  # the second stands for another machine
        connection = http.client.HTTPSConnection(
            "127.0.0.1", centre.made.centre.port, timeout=10, context=trusted, source_address=(caller, 0)
        )
        connection.request("POST", path)
        answers[caller] = connection.getresponse().status
    assert answers["127.0.0.2"] == 403
    assert answers["127.0.0.1"] != 403


def test_the_process_that_starts_runs_is_started_again(centre: Deployed) -> None:
    assert centre.made.centre.process is not None
    superlink = centre.made.centre.process.pid

    def superexec() -> list[int]:
        return [pid for pid in descendants(superlink) if "flower-superexec" in command(pid)]

    until(superexec, "SuperExec runs")
    (former,) = superexec()
    os.kill(former, signal.SIGKILL)
    until(lambda: superexec() not in ([], [former]), "SuperExec runs again", 60.0)
    assert "SuperExec ended with status -9 and is started again" in centre.made.centre.logged()


def test_a_list_of_sites_that_was_lost_is_made_anew(centre: Deployed) -> None:
    run, folder = centre.made.run, centre.made.centre.folder

    def listed() -> dict[str, str]:
        """Return names by node."""
        lines = run("register-site", folder, "--list").stdout.splitlines()[1:]
        return {line.split()[1]: line.split()[0] for line in lines}

    for name in ("forgotten", "expelled"):
        centre.made.register(centre.site(name))
    before = listed()
    (folder / "sites.json").unlink()
    assert listed() == dict.fromkeys(before, "-")
    for node, name in before.items():
        if name == "expelled":
            run("register-site", folder, "--remove", node)
        else:
            centre.made.register(centre.site(name))
    assert listed() == {node: name for node, name in before.items() if name != "expelled"}
    again = run("register-site", folder, "expelled", folder / "keys" / "expelled.pub", fail=False)
    assert again.returncode == 2 and "Flower takes no key twice" in again.stderr


def test_a_key_is_rotated_and_the_former_one_put_out(centre: Deployed) -> None:
    site = centre.site("north")
    run, folder = centre.made.run, centre.made.centre.folder
    (former,) = [
        line.split()[1]
        for line in run("register-site", folder, "--list").stdout.splitlines()[1:]
        if "north" in line
    ]
    kept = site.folder / "former-key"
    shutil.copy2(site.folder / "node.key", kept)
    centre.made.kill(site)
    run("make-site-key", site.folder, "north", "--renew")
    centre.made.register(site)
    run("register-site", folder, "--remove", former)
    centre.start_site("north")
    until(lambda: "online" in run("register-site", folder, "--list").stdout, "north is online again", 60.0)
    assert former not in run("register-site", folder, "--list").stdout
    centre.made.kill(site)
    shutil.copy2(kept, site.folder / "node.key")
    centre.start_site("north", "--once")
    assert "Failed to activate SuperNode" in ended(centre, "north")
