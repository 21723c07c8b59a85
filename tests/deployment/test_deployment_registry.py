"""A node is the site that its key was registered for, whatever name it gives; others' numbers stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord
from site_runs import NAMES, deploy, deployed, make_sites, outcome, reference, states
from sites_grid import node_for

from fedbicross_flwr.centre.registry import SiteRegistry
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.handover.file import portable

REGISTERED = {1000: "north", 990: "south", 980: "west"}
"""The nodes of `make_sites`."""


def write(path: Path, names: dict[int, str]) -> Path:
    """Write a registry as ``register-site`` does."""
    content = {str(node): {"site": name, "fingerprint": "SHA256:x"} for node, name in names.items()}
    path.write_text(json.dumps(content))
    return path


def registry(path: Path) -> SiteRegistry:
    return SiteRegistry.open(deployed(path, deployment__registry=str(path)).deployment)


def test_several_nodes_may_be_one_site_s_and_without_a_registry_names_are_believed(tmp_path: Path) -> None:
    some = registry(write(tmp_path / "sites.json", {1: "north", 2: "north", 2**64 - 1: "south"}))
    for node, name in ((1, "north"), (2, "north"), (2**64 - 1, "south")):
        some.check(node, name)
    with pytest.raises(FedBiCrossError, match="is registered as 'north', but its site-name is 'south'"):
        some.check(2, "south")
    with pytest.raises(FedBiCrossError, match="SuperNode 3 is not in the coordinating centre's registry"):
        some.check(3, "north")
    SiteRegistry.open(deployed(tmp_path).deployment).check(3, "anything")


@pytest.mark.parametrize(
    "content",
    [None, "", "[]", '{"x": {"site": "north"}}', '{"1": {}}', '{"1": {"site": 3}}', '{"1": "north"}'],
)
def test_a_registry_that_cannot_be_read_is_one_line_before_the_run(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "sites.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(FedBiCrossError, match=r"deployment.registry: .*sites.json cannot be read") as caught:
        deploy(deployed(tmp_path / "run", deployment__registry=str(path)), [])
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_the_registry_shapes_nothing_and_is_not_handed_over() -> None:
    flat = {"deployment.sites": "a, b", "deployment.class_names": "x, y"}
    plain, checked = (RunConfig.from_flat(flat | {"deployment.registry": path}) for path in ("", "/x.json"))
    assert plain.fingerprint() == checked.fingerprint()
    assert portable(checked).deployment.registry == ""


def test_strangers_and_impostors_are_turned_away_and_harm_nobody(tmp_path: Path) -> None:
    nodes = make_sites(tmp_path)
    for number in (7, 8, 9):
        (tmp_path / f"more-{number}").mkdir()
    # Their ids are the lowest, so they are asked, and answer, before the sites do.
    stranger, mistaken, impostor = (
        node_for(number, tmp_path, name, **{"store-path": str(tmp_path / f"more-{number}")})
        for number, name in ((7, "north"), (8, "north"), (9, "south"))
    )

    def forge(reply: Message) -> Message:
        """Say that the reply is from north."""
        reply.content["site"] = ConfigRecord({"name": "north"})
        reply.content["client"] = MetricRecord({"client": 0})
        return reply

    impostor.change = forge
    names = {**REGISTERED, mistaken.id: "west", impostor.id: "south"}
    config = deployed(tmp_path / "run", deployment__registry=str(write(tmp_path / "sites.json", names)))
    deploy(config, [*nodes, stranger, mistaken, impostor])
    assert outcome(tmp_path / "run", tmp_path) == outcome(*reference())
    assert set(states(tmp_path / "run").values()) == {"done"}
    assert stranger.asked == [], "a stranger's machine is not put to work"
    assert len(stranger.told) == 1 and "SuperNode 930 is not in" in stranger.told[0]
    assert mistaken.asked == ["train"] and not list((tmp_path / "more-8").iterdir()), "it trains nothing"
    assert impostor.asked == ["train"] and "is registered as 'south'" in impostor.told[0]
    noted = (tmp_path / "run" / "progress.jsonl").read_text()
    for node, reason in (
        (stranger, "SuperNode 930 is not in the coordinating centre's registry"),
        (mistaken, "this SuperNode is registered as 'west', but its site-name is 'north'"),
        (impostor, "this SuperNode is registered as 'south', but its site-name is 'north'"),
    ):
        lines = [line for line in noted.splitlines() if f"node {node.id} " in line]
        assert len(lines) == 1 and reason in lines[0]


def test_a_site_that_is_registered_while_the_window_is_open_is_let_in(tmp_path: Path) -> None:
    nodes = make_sites(tmp_path)
    path = write(tmp_path / "sites.json", {node: REGISTERED[node] for node in (1000, 990)})

    def script(look: int) -> None:
        if look == 3:
            path.write_text("{")
        if look == 5:
            write(path, REGISTERED)

    deploy(deployed(tmp_path / "run", deployment__registry=str(path)), nodes, script)
    assert outcome(tmp_path / "run", tmp_path) == outcome(*reference())
    assert [len(node.told) for node in nodes] == [0, 0, 1]
    assert nodes[2].asked == ["train", "train.personalise"]
    noted: list[dict[str, Any]] = [
        json.loads(line) for line in (tmp_path / "run" / "progress.jsonl").read_text().splitlines()
    ]
    stays = [str(one) for one in noted if "the registry stays as it was" in str(one)]
    assert len(stays) == 1 and str(path) in stays[0]


def test_a_site_may_move_to_a_node_with_a_new_key(tmp_path: Path) -> None:
    nodes = make_sites(tmp_path)
    moved = node_for(7, tmp_path, "north")
    moved.online = False
    path = write(tmp_path / "sites.json", {**REGISTERED, moved.id: "north"})

    def script(look: int) -> None:
        if (tmp_path / "run" / "outcome.json").exists():
            nodes[0].online, moved.online = False, True

    deploy(deployed(tmp_path / "run", deployment__registry=str(path)), [*nodes, moved], script)
    assert moved.asked == ["train", "train.personalise"] and not moved.told
    assert outcome(tmp_path / "run", tmp_path) == outcome(*reference())
    assert tuple(states(tmp_path / "run")) == NAMES
