"""Sites that come late, die, come back, or are not who they should be: the run goes on with who is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from site_runs import (
    NAMES,
    cluster_models,
    deploy,
    deployed,
    make_sites,
    outcome,
    read_json,
    reference,
    roster,
    states,
    without,
)
from sites_grid import in_its_own_name, node_for, unavailable

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.progress import EventLog
from server_app.nodes import ATTEMPTS, MARGIN


def is_reference(folder: Path, sites: Path) -> None:
    """The run came to what an undisturbed one does."""
    assert outcome(folder, sites) == outcome(*reference())


def test_a_site_that_connects_late_in_the_window_is_waited_for(tmp_path: Path) -> None:
    nodes = make_sites(tmp_path)
    nodes[1].online = False

    def script(look: int) -> None:
        nodes[1].online = look > 5

    grid = deploy(deployed(tmp_path / "run"), nodes, script)
    assert grid.looks > 5
    is_reference(tmp_path / "run", tmp_path)


def test_a_node_that_dies_at_work_is_asked_again_when_it_is_back(tmp_path: Path) -> None:
    nodes = make_sites(tmp_path)

    def script(look: int) -> None:
        if look == 4:
            nodes[1].online = True

    nodes[1].change = once_lost(lambda: setattr(nodes[1], "online", False))
    deploy(deployed(tmp_path / "run"), nodes, script)
    assert nodes[1].asked == ["train", "train", "train.personalise"]
    is_reference(tmp_path / "run", tmp_path)
    assert "broke off" not in (tmp_path / "run" / "progress.jsonl").read_text()


def broken_off(reply: Message) -> Message:
    """What Flower says in the place of a reply whose sender stopped in the middle of it."""
    said = "Reply message objects are unavailable. The sender may not have completed the upload."
    return unavailable(reply, ErrorCode.MESSAGE_UNAVAILABLE, said)


def test_an_upload_that_broke_off_is_named_and_asked_for_again(tmp_path: Path) -> None:
    nodes = make_sites(tmp_path)
    sent: list[Message] = []

    def change(reply: Message) -> Message:
        sent.append(reply)
        if len(sent) > 2:
            return reply
        return broken_off(reply)

    nodes[1].change = change
    deploy(deployed(tmp_path / "run"), nodes)
    assert nodes[1].asked == ["train", "train", "train", "train.personalise"]
    is_reference(tmp_path / "run", tmp_path)
    told = f"what node {nodes[1].id} sent broke off on its way, and is asked for again"
    assert (tmp_path / "run" / "progress.jsonl").read_text().count(told) == 1


@pytest.mark.parametrize("when", ["asked-anew", "upload-is-here", "gone-since"])
def test_an_upload_that_broke_off_when_it_was_asked_for_anew_is_not_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    """The node began anew in the middle of its upload; what became of that is known minutes later."""
    nodes = make_sites(tmp_path)
    folder = tmp_path / "run"
    sent: list[Message] = []
    may_break_off, may_arrive = threading.Event(), threading.Event()
    is_time = {
        "asked-anew": lambda: len(sent) > 1,
        "upload-is-here": (folder / "uploads" / "client-01.safetensors").exists,
        "gone-since": (folder / "outcome.json").exists,
    }[when]
    who = f"node {nodes[1].id}" if when == "asked-anew" else "site south"

    def change(reply: Message) -> Message:
        sent.append(reply)
        if len(sent) == 1:
            may_break_off.wait(120)
            return broken_off(reply)
        may_arrive.wait(120)
        return reply

    def script(look: int) -> None:
        is_told = f"{who} is not asked again for what was lost" in caplog.text
        if sent and nodes[1].activated == "first":
            nodes[1].come_back()
        if is_time():
            may_break_off.set()
            nodes[1].online = when != "gone-since" or is_told
        if is_told or when != "asked-anew":
            may_arrive.set()
        nodes[2].online = is_told or when == "gone-since"  # else it keeps the window open

    nodes[1].change = change
    with caplog.at_level("INFO"):
        deploy(deployed(folder, deployment__upload_window=60.0), nodes, script, patience=0.2)
    assert nodes[1].asked == ["train", "train", "train.personalise"]
    assert "broke off" not in (folder / "progress.jsonl").read_text()
    is_reference(folder, tmp_path)


def test_an_upload_that_comes_slowly_keeps_neither_the_others_nor_the_window_waiting(tmp_path: Path) -> None:
    nodes = make_sites(tmp_path)
    folder = tmp_path / "run"
    arrived = threading.Event()

    def change(reply: Message) -> Message:
        arrived.wait(120)
        return reply

    def script(look: int) -> None:
        if (folder / "outcome.json").exists():
            arrived.set()

    # The node with the lowest number, which is pulled first.
    slow = min(nodes, key=lambda node: node.id)
    slow.change = change
    deploy(deployed(folder, deployment__upload_window=20.0), nodes, script, patience=3.0)
    entries = roster(folder)
    assert set(states(folder).values()) == {"done"}
    assert [name for name, entry in entries.items() if entry["late"]] == [slow.config["site-name"]]
    assert slow.asked == ["train", "train.personalise"]


def test_an_upload_that_stalls_takes_no_other_sites_place_at_the_windows_end(tmp_path: Path) -> None:
    nodes = make_sites(tmp_path)
    folder = tmp_path / "run"
    window, opened = 5.0, time.monotonic()
    looked_for: list[Message] = []
    arrived = threading.Event()

    def stall(reply: Message) -> Message:
        arrived.wait(120)
        return reply

    def work_until_shortly_before_the_end(reply: Message) -> Message | None:
        looked_for.append(reply)
        is_ready = len(looked_for) > 1 and time.monotonic() > opened + window - 0.3
        return reply if is_ready else None

    def script(look: int) -> None:
        nonlocal opened
        if look == 1:
            opened = time.monotonic()
        if (folder / "outcome.json").exists():
            arrived.set()

    stalled, _, last = sorted(nodes, key=lambda node: node.id)
    stalled.change, last.change = stall, work_until_shortly_before_the_end
    deploy(deployed(folder, deployment__upload_window=window), nodes, script, patience=4.0)
    assert set(states(folder).values()) == {"done"}
    late = [name for name, entry in roster(folder).items() if entry["late"]]
    assert late == [stalled.config["site-name"]]


def test_what_has_begun_to_come_in_time_is_waited_for_at_the_end(tmp_path: Path) -> None:
    nodes = make_sites(tmp_path)

    def change(reply: Message) -> Message:
        if "arrays" in reply.content:
            time.sleep(6.0)  # a look's patience ends before, and the window with it
        return reply

    min(nodes, key=lambda node: node.id).change = change
    deploy(deployed(tmp_path / "run", deployment__upload_window=2.0), nodes, patience=4.0)
    assert not any(entry["late"] for entry in roster(tmp_path / "run").values())
    is_reference(tmp_path / "run", tmp_path)


def test_a_message_lives_as_long_as_its_window(tmp_path: Path) -> None:
    """Without a time of its own it would die after Flower's twelve hours, and windows last days."""
    config = deployed(tmp_path / "run", deployment__upload_window=9e5, deployment__personal_window=4e5)
    grid = deploy(config, make_sites(tmp_path))
    lives = {message.metadata.message_type: message.metadata.ttl for message in grid.sent}
    assert lives["train"] == pytest.approx(9e5 + MARGIN, abs=60.0)
    assert lives["train.personalise"] == pytest.approx(4e5 + MARGIN, abs=60.0)


def once_lost(die: Callable[[], None]) -> Callable[[Message], Message | None]:
    """A change that loses the first reply: the node dies while it sends it."""
    calls: list[Message] = []

    def change(reply: Message) -> Message | None:
        calls.append(reply)
        if len(calls) > 1:
            return reply
        die()
        return None

    return change


def test_a_node_that_dies_in_round_2_is_shipped_its_model_again(tmp_path: Path) -> None:
    nodes = make_sites(tmp_path)
    died: list[int] = []

    def change(reply: Message) -> Message | None:
        if "scores" in reply.content and not died:
            died.append(1)
            nodes[2].online = False
            return None
        return reply

    def script(look: int) -> None:
        if died and not nodes[2].online:
            died.append(look)
            if len(died) > 4:
                nodes[2].come_back()

    nodes[2].change = change
    deploy(deployed(tmp_path / "run"), nodes, script)
    assert nodes[2].asked == ["train", "train.personalise", "train.personalise"]
    is_reference(tmp_path / "run", tmp_path)


def test_a_message_that_was_lost_with_a_quick_restart_is_sent_again(tmp_path: Path) -> None:
    # The node was never seen offline; only the time of its activation says that it began anew.
    nodes = make_sites(tmp_path)

    def script(look: int) -> None:
        if look == 4:
            nodes[0].change = lambda reply: reply
            nodes[0].come_back()

    nodes[0].change = lambda reply: None
    deploy(deployed(tmp_path / "run"), nodes, script)
    assert nodes[0].asked == ["train", "train", "train.personalise"]
    is_reference(tmp_path / "run", tmp_path)


def test_a_late_site_is_told_that_an_upload_is_lost_which_its_cluster_depends_on(tmp_path: Path) -> None:
    folder = run_without_west(tmp_path)
    (folder / "uploads" / "client-00.safetensors").unlink()
    west, north = node_for(2, tmp_path, "west"), node_for(0, tmp_path, "north")
    north.online = False

    def script(look: int) -> None:
        north.online = bool(west.told)  # with it the run has all that it waits for

    deploy(deployed(folder, deployment__upload_window=0.3), [west, north], script)
    entry = roster(folder)["west"]
    assert entry["state"] == "refused" and "the upload of client 0 is lost" in entry["reason"]
    assert west.told == [entry["reason"]]


def run_without_west(tmp_path: Path) -> Path:
    """A window that closes before the third site has come."""
    nodes = make_sites(tmp_path)
    nodes[2].online = False
    folder = tmp_path / "run"
    deploy(deployed(folder, deployment__upload_window=0.3, deployment__personal_window=0.3), nodes)
    return folder


def test_the_run_goes_on_without_a_site_and_says_so(tmp_path: Path) -> None:
    folder = run_without_west(tmp_path)
    assert states(folder) == {"north": "done", "south": "done", "west": "missing"}
    assert "did not answer" in roster(folder)["west"]["reason"]
    entry = read_json(folder / "run.json")["clients"][2]
    assert entry["status"] == "failed" and "did not answer" in entry["reason"]
    assert read_json(folder / "clustering.json")["clients"] == [0, 1]
    assert "site west is missing" in (folder / "progress.jsonl").read_text()


def test_a_late_site_joins_a_cluster_and_nothing_is_learned_anew(tmp_path: Path) -> None:
    alone = run_without_west(tmp_path / "alone")
    nodes = make_sites(tmp_path)
    nodes[2].online = False
    folder = tmp_path / "run"

    def script(look: int) -> None:
        nodes[2].online = (folder / "outcome.json").exists()

    deploy(deployed(folder, deployment__upload_window=0.3), nodes, script, report=True)
    assert set(states(folder).values()) == {"done"}
    entry = roster(folder)["west"]
    assert entry["late"] and entry["cluster"] in (0, 1)
    assert nodes[2].asked == ["train", "train.personalise"]
    assert cluster_models(folder) == cluster_models(alone)
    assert read_json(folder / "clustering.json")["clients"] == [0, 1]
    scored = {one["client"] for row in read_json(folder / "metrics.json")["rows"] for one in row["clients"]}
    assert scored == {0, 1, 2}


def test_a_finished_run_is_opened_again_for_who_is_missing_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_without_west(tmp_path)
    before = cluster_models(folder)
    stages: set[str] = set()
    report = EventLog.advance

    def advance(log: EventLog, stage: str, *arguments: Any, **options: Any) -> None:
        stages.add(stage)
        report(log, stage, *arguments, **options)

    monkeypatch.setattr(EventLog, "advance", advance)
    nodes = [node_for(index, tmp_path, name) for index, name in enumerate(NAMES)]
    deploy(deployed(folder), nodes)
    assert set(states(folder).values()) == {"done"}
    assert [node.asked for node in nodes] == [["train"], ["train"], ["train", "train.personalise"]]
    assert stages == {"training", "personalisation", "fine-tuning"}
    assert cluster_models(folder) == before
    # And once all have theirs, nobody is asked anything.
    assert deploy(deployed(folder), nodes).looks == 0


def test_too_few_uploads_end_the_run_in_one_line_and_the_same_command_opens_a_new_window(
    tmp_path: Path,
) -> None:
    nodes = make_sites(tmp_path)
    nodes[1].online = nodes[2].online = False
    folder = tmp_path / "run"
    config = deployed(folder)
    with pytest.raises(
        FedBiCrossError, match=r"1 upload\(s\) when the window closed, but .*min_sites = 2"
    ) as caught:
        deploy(without(config, upload_window=0.2), nodes)
    assert "\n" not in str(caught.value) and "south: it did not answer" in str(caught.value)
    content = read_json(folder / "roster.json")
    assert content["stage"] == "failed" and content["reason"] == str(caught.value)
    nodes[1].online = nodes[2].online = True
    deploy(config, nodes)
    assert nodes[0].asked == ["train", "train", "train.personalise"], "it is asked who it is"
    is_reference(folder, tmp_path)


def test_fewer_uploads_than_clusters_are_too_few(tmp_path: Path) -> None:
    nodes = make_sites(tmp_path)[:1]
    config = deployed(tmp_path / "run", deployment__min_sites=1, deployment__upload_window=0.2)
    with pytest.raises(FedBiCrossError, match=r"clustering.clusters = 2 needs 2"):
        deploy(config, nodes)


def test_two_nodes_of_one_name_are_told_and_the_first_stays(tmp_path: Path) -> None:
    nodes = make_sites(tmp_path)
    twin = node_for(7, tmp_path, "north", **{"store-path": str(tmp_path / "twin")})
    folder = tmp_path / "run"
    deploy(deployed(folder), [*nodes, twin])
    told = [node.told for node in (nodes[0], twin) if node.told]
    assert len(told) == 1 and "site-name = 'north' is that of another node" in told[0][0]
    assert "site-name = 'north' is that of another node" in (folder / "progress.jsonl").read_text()
    assert set(states(folder).values()) == {"done"}
    assert cluster_models(folder) == cluster_models(reference()[0])


def test_a_site_s_new_node_is_let_in_once_its_former_one_is_offline(tmp_path: Path) -> None:
    """As after a new key: until Flower misses the former node, both are there."""
    nodes = make_sites(tmp_path)
    nodes[0].change = lambda reply: None if "scores" in reply.content else reply
    moved = node_for(7, tmp_path, "north")
    moved.online = False

    def script(look: int) -> None:
        if (tmp_path / "run" / "outcome.json").exists():
            moved.online, nodes[0].online = True, not moved.told

    deploy(deployed(tmp_path / "run"), [*nodes, moved], script, patience=0.5)
    assert len(moved.told) == 1 and f"another node, {nodes[0].id}, which is connected" in moved.told[0]
    assert "let in once it is offline" in moved.told[0]
    assert moved.asked == ["train", "train", "train.personalise"]
    is_reference(tmp_path / "run", tmp_path)


def test_a_site_that_moved_to_another_node_is_the_same_site(tmp_path: Path) -> None:
    nodes = make_sites(tmp_path)
    moved = node_for(7, tmp_path, "north")
    moved.online = False

    def script(look: int) -> None:
        if (tmp_path / "run" / "outcome.json").exists():
            nodes[0].online, moved.online = False, True

    deploy(deployed(tmp_path / "run"), [*nodes, moved], script)
    assert nodes[0].asked == ["train"] and moved.asked == ["train", "train.personalise"]
    assert not moved.told
    is_reference(tmp_path / "run", tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"site-name": "nroth"}, "site-name = 'nroth' is none of the federation's sites (did you mean north"),
        ({"site-name": ""}, "lacks site-name"),
        ({"data-path": ""}, "lacks data-path"),
    ],
)
def test_a_node_that_is_no_site_is_left_out(tmp_path: Path, change: dict[str, str], reason: str) -> None:
    nodes = make_sites(tmp_path)
    stranger = node_for(7, tmp_path, "north", **change)
    folder = tmp_path / "run"
    deploy(deployed(folder), [*nodes, stranger])
    assert reason in (folder / "progress.jsonl").read_text()
    assert stranger.asked == ["train"]
    is_reference(folder, tmp_path)


def test_a_refusal_is_not_waited_for_and_told_without_paths(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = make_sites(tmp_path)
    Path(nodes[1].config["data-path"]).unlink()
    folder = tmp_path / "run"
    deploy(deployed(folder), nodes)
    reason = roster(folder)["south"]["reason"]
    assert states(folder) == {"north": "done", "south": "refused", "west": "done"}
    assert reason.startswith("the site's data: no such file or folder")
    assert str(tmp_path) not in (folder / "progress.jsonl").read_text()
    assert f"{nodes[1].config['data-path']}: no such file" in caplog.text, "the site's own log names the file"


def test_a_site_that_mends_its_data_and_starts_again_takes_part(tmp_path: Path) -> None:
    nodes = make_sites(tmp_path)
    path = Path(nodes[1].config["data-path"])
    path.rename(tmp_path / "elsewhere.npz")
    nodes[2].online = False  # keeps the window open

    def script(look: int) -> None:
        if look == 4:
            (tmp_path / "elsewhere.npz").rename(path)
            nodes[1].come_back()
        nodes[2].online = look > 6

    deploy(deployed(tmp_path / "run"), nodes, script)
    assert nodes[1].asked == ["train", "train", "train.personalise"]
    is_reference(tmp_path / "run", tmp_path)


def test_a_client_app_that_fails_is_asked_again_but_not_for_ever(tmp_path: Path) -> None:
    nodes = make_sites(tmp_path)
    folder = tmp_path / "run"
    nodes[1].change = crash_in_round_2
    deploy(deployed(folder), nodes)
    assert nodes[1].asked == ["train", *["train.personalise"] * 3]
    assert states(folder)["south"] == "refused"
    assert roster(folder)["south"]["reason"] == "its ClientApp failed (killed)"


def test_an_error_of_its_own_is_no_loss_on_the_way(tmp_path: Path) -> None:
    nodes = make_sites(tmp_path)
    folder = tmp_path / "run"

    def change(reply: Message) -> Message:
        return in_its_own_name(broken_off(reply), nodes[1].id) if "scores" in reply.content else reply

    nodes[1].change = change
    deploy(deployed(folder, deployment__personal_window=20.0), nodes)
    assert nodes[1].asked == ["train", *["train.personalise"] * ATTEMPTS]
    assert states(folder)["south"] == "refused"
    assert "and is asked for again" not in (folder / "progress.jsonl").read_text()


def crash_in_round_2(reply: Message) -> Message:
    """The reply of a node whose ClientApp was killed."""
    if "scores" not in reply.content:
        return reply
    made = Message(Error(ErrorCode.CLIENT_APP_CRASHED, "killed"), reply_to=reply)
    made.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
    return made
