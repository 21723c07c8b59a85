"""A federation of three sites with TLS and authentication equals its simulation, whichever site is killed."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest
from deployed import SITES, Deployed, deployed, images, simulated, until

pytestmark = pytest.mark.deploy


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployed(tmp_path_factory.mktemp("end-to-end") / "fed") as here:
        yield here


def test_three_sites_of_unequal_data_equal_their_simulation_though_two_are_killed(centre: Deployed) -> None:
    """One site is killed while it trains, one restarted between the rounds, one killed while it distils."""
    sizes = [len(rows) for rows in images()[1].train]
    assert max(sizes) > 1.5 * min(sizes)
    run_id = centre.start()
    until(
        lambda: '"training"' in centre.progress("north") or "train" in centre.progress("north"),
        "north trains",
    )
    centre.made.kill(centre.made.sites["north"])
    assert not (centre.store("north") / "local.safetensors").exists()
    until(lambda: centre.entry("east")["state"] == "uploaded", "east has uploaded")
    centre.made.kill(centre.made.sites["east"], signal.SIGTERM)
    centre.start_site("east")
    centre.start_site("north")
    until(lambda: (centre.store("south") / "local.safetensors").exists(), "south has trained")
    until(
        lambda: "distil" in centre.progress("south") or "personal" in centre.progress("south"),
        "south distils",
    )
    centre.made.kill(centre.made.sites["south"])
    assert not (centre.store("south") / "personal.safetensors").exists()
    centre.start_site("south")
    centre.finish(run_id)
    found, scores = simulated()
    assert centre.digests() == found
    assert set(centre.states().values()) == {"done"}
    for client, name in enumerate(SITES):
        kept = json.loads((centre.store(name) / "scores.json").read_text())["scores"]
        assert set(kept) == set(scores[client])
        for row, protocols in kept.items():
            assert protocols == {"local": scores[client][row]["local"]}, (name, row)


def test_nothing_of_a_site_s_machine_is_told_to_the_centre(centre: Deployed) -> None:
    run, told = centre.run, {"server log": centre.made.centre.logged()}
    told |= {
        path.name: path.read_text() for path in run.rglob("*") if path.suffix in (".json", ".jsonl", ".html")
    }
    for name in SITES:
        assert not [where for where, text in told.items() if str(centre.site(name).folder) in text]
    files = {path.name for path in run.rglob("*") if path.is_file()}
    assert not files & {"local.safetensors", "personal.safetensors", "data.npz", "partition.json"}


def test_a_finished_run_is_not_done_again(centre: Deployed) -> None:
    before = {path: path.stat().st_mtime_ns for path in centre.run.rglob("*.safetensors")}
    centre.finish(centre.start())
    assert {path: path.stat().st_mtime_ns for path in centre.run.rglob("*.safetensors")} == before
    assert centre.digests() == simulated()[0]
