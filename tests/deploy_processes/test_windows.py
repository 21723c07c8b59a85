"""Sites that come late, that go dark after their upload, that never come; and the hand-over by file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed import SITES, Deployed, deployed, simulated, until

from fedbicross_flwr.artifacts import digest, read_tensors

pytestmark = pytest.mark.deploy
NAMES = [*SITES, "latecomer", "absent"]
PRESENT = ["north", "east", "latecomer"]


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployed(tmp_path_factory.mktemp("windows") / "fed", sites=NAMES) as here:
        yield here


def test_the_windows_close_and_a_late_site_is_taken(centre: Deployed) -> None:
    """Windows are cut short by going on with shorter ones: how long an upload takes here is not known."""
    run_id = centre.start(NAMES)
    until(lambda: list(centre.states().values()).count("uploaded") == len(SITES), "three have uploaded")
    centre.made.kill(centre.made.sites["south"])  # goes dark until the hand-over
    centre.stop(run_id)
    run_id = centre.start(NAMES, deployment__upload_window=1.0)
    until(lambda: centre.roster()["stage"] in ("method", "shipping"), "the window is closed")
    centre.start_site("latecomer")
    until(lambda: all(centre.entry(name)["state"] == "done" for name in PRESENT), "who is there is done")
    assert centre.roster()["stage"] == "shipping"
    centre.stop(run_id)
    centre.finish(centre.start(NAMES, deployment__upload_window=1.0, deployment__personal_window=1.0))
    states = centre.states()
    assert states == {
        "north": "done",
        "east": "done",
        "south": states["south"],
        "latecomer": "done",
        "absent": "missing",
    }
    assert states["south"] != "done"
    assert centre.entry("latecomer")["late"] and centre.entry("latecomer")["cluster"] is not None


def test_a_late_site_changes_nothing_for_the_others(centre: Deployed) -> None:
    found = centre.digests(["north", "east"])
    expected = simulated()[0]
    assert {name: found[name] for name in expected if not name.startswith("south")} == {
        name: value for name, value in expected.items() if not name.startswith("south")
    }
    assert (centre.store("latecomer") / "personal.safetensors").exists()


def test_a_site_that_stays_dark_gets_its_model_by_hand(centre: Deployed, tmp_path: Path) -> None:
    store = centre.store("south")
    assert not (store / "personal.safetensors").exists()
    keys, file = tmp_path / "keys", tmp_path / "south.safetensors"
    fedbicross("make-signing-key", keys)
    fedbicross(
        "export-cluster-model", centre.run, "--site", "south", "--key", keys / "signing.pem", "--out", file
    )
    said = fedbicross(
        *("personalize", "--cluster-model", file, "--public-key", keys / "signing.pub"),
        *("--data", centre.site("south").folder / "data.npz", "--store", store),
    )
    state, _ = read_tensors(store / "personal.safetensors")
    assert digest(state) == simulated()[0]["south/personal"], said


def test_the_same_command_opens_the_window_for_who_is_not_done(centre: Deployed) -> None:
    before = {path: path.stat().st_mtime_ns for path in (centre.run / "models").iterdir()}
    centre.start_site("south")
    run_id = centre.start(NAMES)
    until(lambda: centre.entry("south")["state"] == "done", "south is done")
    centre.stop(run_id)
    assert {path: path.stat().st_mtime_ns for path in (centre.run / "models").iterdir()} == before
    assert centre.digests().items() >= simulated()[0].items()


def fedbicross(*arguments: str | Path) -> str:
    command = ["unshare", "--net", "--map-root-user"] if can_unshare() else []
    command += [str(Path(sys.executable).parent / "fedbicross"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def can_unshare() -> bool:
    """Return whether a process without any network can be made here."""
    command = ["unshare", "--net", "--map-root-user", "true"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
