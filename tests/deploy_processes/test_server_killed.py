"""The server is killed in every stage, as is the SuperLink; the same command goes on to the same models."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest
from deployed import Deployed, deployed, simulated, until

pytestmark = pytest.mark.deploy


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployed(tmp_path_factory.mktemp("killed") / "fed") as here:
        yield here


def uploads(here: Deployed) -> bool:
    return "uploaded" in here.states().values()


def clustered(here: Deployed) -> bool:
    return '"clustering"' in here.progress()


def inverts(here: Deployed) -> bool:
    return '"synthesis, cluster' in here.progress()


def optimises(here: Deployed) -> bool:
    return '"cross-cluster optimisation"' in here.progress()


def ships(here: Deployed) -> bool:
    return any(state in ("shipped", "done") for state in here.states().values())


STAGES: dict[str, Callable[[Deployed], bool]] = {
    "taking uploads": uploads,
    "clustering": clustered,
    "synthesis": inverts,
    "optimisation": optimises,
    "shipping": ships,
}


@pytest.mark.parametrize("stage", list(STAGES))
def test_the_server_app_is_killed(centre: Deployed, stage: str) -> None:
    run_id = centre.start()
    until(lambda: STAGES[stage](centre), stage)
    for pid in centre.server_app():
        os.kill(pid, signal.SIGKILL)
    centre.stop(run_id)
    assert centre.roster()["stage"] not in ("finished", "failed")


def test_the_superlink_is_killed(centre: Deployed) -> None:
    run_id = centre.start()
    until(lambda: centre.server_app(), "the ServerApp runs")
    centre.made.kill(centre.made.centre)
    centre.made.start_superlink()
    centre.stop(run_id)


def test_it_ends_with_the_same_models(centre: Deployed) -> None:
    centre.finish(centre.start())
    assert centre.digests() == simulated()[0]
    assert set(centre.states().values()) == {"done"}
