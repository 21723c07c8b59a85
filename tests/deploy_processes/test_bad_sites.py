"""Sites that send what no training makes: each is refused, and the run of the others is not touched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from deployed import SITES, Deployed, deployed, simulated, until

pytestmark = pytest.mark.deploy
TAMPERED = Path(__file__).parent / "tampered"
SPOILED = {
    "truncated": "5 tensor(s) are missing",
    "not_a_number": "fc.weight holds values that are not finite",
    "another_architecture": "fc.weight has shape",
    "oversized": "",
    "enormous": "fc.weight holds",
}
"""Way of spoiling -> what the refusal says."""


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployed(tmp_path_factory.mktemp("bad") / "fed", sites=[*SITES, *SPOILED], started=[]) as here:
        for name in SPOILED:
            here.site(name).environment = {"PYTHONPATH": str(TAMPERED), "FEDBICROSS_TEST_SPOIL": name}
        yield here


def test_spoiled_uploads_are_refused_and_the_rest_goes_on(centre: Deployed) -> None:
    for name in [*SPOILED, *SITES]:
        centre.start_site(name)
    centre.finish(centre.start([*SITES, *SPOILED], deployment__upload_window=900.0))
    states = centre.states()
    assert {name: states[name] for name in SPOILED} == dict.fromkeys(SPOILED, "refused")
    assert {name: states[name] for name in SITES} == dict.fromkeys(SITES, "done")
    assert centre.digests() == simulated()[0]


@pytest.mark.parametrize("name", list(SPOILED))
def test_the_reason_is_told_at_the_centre_and_at_the_site(centre: Deployed, name: str) -> None:
    reason = str(centre.entry(name)["reason"])
    assert SPOILED[name] in reason and "\n" not in reason
    until(lambda: reason in centre.made.sites[name].logged(), f"{name} is told {reason!r}", 60.0)
    notes = [json.loads(line)["text"] for line in centre.progress().splitlines()]
    assert any(reason in note for note in notes)


def test_an_upload_that_stalls_keeps_neither_the_others_nor_the_window_waiting(tmp_path: Path) -> None:
    """Flower's own processes: the server is handed the beginning of an upload, and the rest never comes."""
    names, window = [*SITES, "stalled"], 240.0
    with deployed(tmp_path / "fed", sites=names, started=[]) as here:
        stalled = here.site("stalled")
        stalled.environment = {"PYTHONPATH": str(TAMPERED), "FEDBICROSS_TEST_SPOIL": "stalled"}
        here.start_site("stalled")
        run_id = here.start(names, deployment__upload_window=window)
        until(lambda: (here.store("stalled") / "local.safetensors").exists(), "it has begun to send")
        for name in SITES:
            here.start_site(name)
        # Flower waits for the rest of an upload for 180 s.
        until(
            lambda: all(here.entry(name)["state"] == "uploaded" for name in SITES),
            "the others' uploads are taken meanwhile",
            window - 10.0,
        )
        until(lambda: here.roster()["closed"], "the window closes")
        opened, closed = (datetime.fromisoformat(here.roster()[key]) for key in ("opened", "closed"))
        assert (closed - opened).total_seconds() < window + 30.0
        # Round 2 would wait for it to its end.
        here.made.kill(stalled)
        stalled.environment = {}
        here.start_site("stalled")
        here.finish(run_id)
        assert here.states() == dict.fromkeys(names, "done") and here.entry("stalled")["late"]
        found, expected = here.digests(), simulated()[0]
        assert {name: found[name] for name in expected} == expected
