"""The whole app through Flower's own objects: what travels, who gets what, what happens when one fails."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from flwr.app import DEFAULT_TTL, Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from local_grid import Change, LocalGrid, arrays_of, error_reply, run_app
from small_runs import Watch, outcome, read_json, reference, tiny, without_report

from fedbicross_flwr.artifacts import digest, read_tensors
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.in_process import run_in_process
from fedbicross_flwr.pacfl import subspace_bytes
from fedbicross_flwr.progress import new_events, read_events
from fedbicross_flwr.report import write_report
from fedbicross_flwr.uploads import payload_bytes
from server_app.nodes import MARGIN
from server_app.strategy import NO_ANSWER, OneShot


def flower_run(folder: Path, change: Change | None = None, **settings: Any) -> LocalGrid:
    """Run the app in `folder`; the grid has recorded all that travelled."""
    config = dataclasses.replace(tiny(**settings), out=str(folder))
    grid = LocalGrid(config, config.partition.clients, change)
    with without_report():
        run_app(config, grid)
    return grid


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LocalGrid]:
    folder = tmp_path_factory.mktemp("flower") / "run"
    return folder, flower_run(folder)


def states_sent(grid: LocalGrid) -> dict[int, dict[str, torch.Tensor]]:
    """The model that each client was sent in round 2."""
    return {
        grid.nodes[message.metadata.dst_node_id]: dict(record.to_torch_state_dict())
        for message in grid.rounds[1]
        for name, record in arrays_of(message).items()
        if name == "arrays"
    }


def test_the_numbers_are_those_of_the_run_in_process(run: tuple[Path, LocalGrid]) -> None:
    assert outcome(run[0]) == outcome(reference())
    assert read_json(run[0] / "run.json")["runner"] == "flower"
    assert not (run[0] / "stages").exists()


def test_there_are_two_rounds_with_one_message_a_client(run: tuple[Path, LocalGrid]) -> None:
    grid = run[1]
    for messages, kind in zip(grid.rounds, ("train", "train.personalise"), strict=True):
        assert sorted(message.metadata.dst_node_id for message in messages) == sorted(grid.nodes)
        assert {message.metadata.message_type for message in messages} == {kind}


def test_messages_live_as_long_as_replies_are_waited_for(run: tuple[Path, LocalGrid]) -> None:
    lives = {message.metadata.ttl for messages in run[1].rounds for message in messages}
    assert lives == {tiny().runtime.reply_timeout + MARGIN} and min(lives) > DEFAULT_TTL


@pytest.mark.parametrize("number", [1, 2])
def test_a_full_disk_is_that_of_all_clients(tmp_path: Path, number: int) -> None:
    def full(round: int, client: int, reply: Message) -> Message:
        if (round, client) == (number, 1):
            said = "cannot write personal.safetensors: No space left on device; make room"
            reply.content["refusal"] = ConfigRecord({"reason": said})
        return reply

    with pytest.raises(FedBiCrossError, match="No space left on device; make room"):
        flower_run(tmp_path / "run", full)
    assert not (tmp_path / "run" / "run.json").exists()


def test_round_1_sends_no_arrays_down_and_one_model_up(run: tuple[Path, LocalGrid]) -> None:
    folder, grid = run
    for message in grid.rounds[0]:
        assert set(message.content) == {"config"}
        assert set(cast(dict[str, Any], message.content["config"])) == {"folder", "received"}
    for message, reply in zip(grid.rounds[0], grid.replies[0], strict=True):
        client = grid.nodes[message.metadata.dst_node_id]
        assert set(reply.content) == {"arrays", "metrics", "client"}
        assert set(cast(MetricRecord, reply.content["metrics"])) == {"num-examples", "validation-accuracy"}
        assert dict(cast(MetricRecord, reply.content["client"])) == {"client": client}
        sent = cast(ArrayRecord, reply.content["arrays"]).to_torch_state_dict()
        own = read_tensors(folder / "sites" / f"client-{client:02d}" / "local.safetensors")[0]
        assert digest(sent) == digest(own)


def test_round_2_sends_the_cluster_s_model_and_takes_back_scores(run: tuple[Path, LocalGrid]) -> None:
    folder, grid = run
    clustering = read_json(folder / "clustering.json")
    cluster_of = dict(zip(clustering["clients"], clustering["assignment"], strict=True))
    for message in grid.rounds[1]:
        assert set(message.content) == {"config", "arrays", "replay"}
    sent = states_sent(grid)
    assert set(sent) == {0, 1, 2}
    for client, state in sent.items():
        model = folder / "models" / f"cluster-{cluster_of[client]}.safetensors"
        assert digest(state) == digest(read_tensors(model)[0])
    for reply in grid.replies[1]:
        assert set(reply.content) == {"scores", "client"}
        values = cast(MetricRecord, reply.content["scores"]).values()
        assert values and all(isinstance(value, float) for value in values)


def test_the_record_counts_the_bytes_of_the_arrays(run: tuple[Path, LocalGrid]) -> None:
    folder, grid = run
    sent = states_sent(grid)
    for message, reply in zip(grid.rounds[0], grid.replies[0], strict=True):
        client = grid.nodes[message.metadata.dst_node_id]
        record = cast(ArrayRecord, reply.content["arrays"])
        entry = read_json(folder / "run.json")["clients"][client]
        assert entry["bytes_sent"] == sum(array.numpy().nbytes for array in record.values())
        images = cast(ArrayRecord, grid.rounds[1][0].content["replay"]).to_torch_state_dict()
        assert entry["bytes_received"] == payload_bytes(sent[client]) + payload_bytes(dict(images))
        assert images["images"].dtype == torch.float16 and len(images["scores"]) == 2 * 12


def fail_in(wanted_round: int, wanted_client: int, reason: str) -> Change:
    """One client's ClientApp raises in one round."""

    def change(round_: int, client: int, reply: Message) -> Message:
        if (round_, client) != (wanted_round, wanted_client):
            return reply
        return Message(error_reply(reply, reason).error, reply_to=reply)

    return change


def as_sender(change: Change) -> Change:
    """Replies made from replies have sender and receiver exchanged: put them right."""

    def corrected(round_: int, client: int, reply: Message) -> Message | None:
        changed = change(round_, client, reply)
        if changed is not None and changed is not reply:
            changed.metadata.__dict__["_src_node_id"] = reply.metadata.src_node_id
        return changed

    return corrected


def notes(folder: Path) -> str:
    """What the terminal shows of a run beside its bars."""
    events = new_events(read_events(folder / "progress.jsonl"))
    return "\n".join(event.text for event in events if event.stage in ("note", "error"))


@pytest.mark.parametrize("failing_round", [1, 2])
def test_the_run_goes_on_without_a_client_that_fails(tmp_path: Path, failing_round: int) -> None:
    reason = "<class 'RuntimeError'>:<'disk on fire'>\nTraceback: many lines"
    folder = tmp_path / "run"
    grid = flower_run(folder, as_sender(fail_in(failing_round, 1, reason)))
    entries = read_json(folder / "run.json")["clients"]
    assert [entry["status"] for entry in entries] == ["ok", "failed", "ok"]
    assert "disk on fire" in entries[1]["reason"] and "\n" not in entries[1]["reason"]
    assert "client 1 is left out" in notes(folder) and "disk on fire" in notes(folder)
    rows = read_json(folder / "metrics.json")["rows"]
    assert all([one["client"] for one in row["clients"]] == [0, 2] for row in rows)
    assert sorted(states_sent(grid)) == ([0, 2] if failing_round == 1 else [0, 1, 2])
    if failing_round == 2:
        page = write_report(folder).read_text()
        assert "Client 1 failed" in page and "disk on fire" in page


def test_a_client_that_does_not_answer_is_left_out(tmp_path: Path) -> None:
    flower_run(tmp_path / "run", lambda round_, client, reply: None if client == 2 else reply)
    entry = read_json(tmp_path / "run" / "run.json")["clients"][2]
    assert entry["reason"] == "it did not answer in time" and entry["bytes_sent"] == 0


@pytest.mark.parametrize("failing_round", [1, 2])
def test_no_client_is_given_the_reason_of_another(tmp_path: Path, failing_round: int) -> None:
    """In round 2 the nodes are known; in round 1 what may be the reason is not said to be it."""
    fail = as_sender(fail_in(failing_round, 1, "<class 'RuntimeError'>:<'disk on fire'>"))

    def change(round_: int, client: int, reply: Message) -> Message | None:
        return None if (round_, client) == (failing_round, 2) else fail(round_, client, reply)

    flower_run(tmp_path / "run", change, clustering__clusters=1)
    reasons = [entry["reason"] for entry in read_json(tmp_path / "run" / "run.json")["clients"]]
    failed = "its ClientApp failed (<class 'RuntimeError'>:<'disk on fire'>)"
    either = f"{failed} or {NO_ANSWER}"
    assert reasons == (["", either, either] if failing_round == 1 else ["", failed, NO_ANSWER])


def test_every_client_failing_is_one_clear_error(tmp_path: Path) -> None:
    def change(round_: int, client: int, reply: Message) -> Message:
        return Message(error_reply(reply, "out of memory").error, reply_to=reply)

    with pytest.raises(FedBiCrossError, match=r"no client sent a usable model.*out of memory"):
        flower_run(tmp_path / "run", as_sender(change))
    assert "out of memory" in notes(tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_fewer_clients_than_clusters_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FedBiCrossError, match=r"clustering.clusters = 3, but only 2 client\(s\)"):
        flower_run(tmp_path / "run", as_sender(fail_in(1, 0, "gone")), clustering__clusters=3)


def test_too_few_nodes_are_told_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(tiny(), out=str(tmp_path / "run"))
    monkeypatch.setattr("server_app.app.OneShot", lambda server: OneShot(server, node_timeout=0.05))
    with pytest.raises(FedBiCrossError, match=r"partition.clients = 3, but 2 node\(s\) are connected"):
        run_app(config, LocalGrid(config, 2))


def spoil(name: str, values: torch.Tensor) -> Change:
    """Client 1 uploads other values for one tensor."""

    def change(round_: int, client: int, reply: Message) -> Message:
        if (round_, client) == (1, 1):
            record = cast(ArrayRecord, reply.content["arrays"])
            record[name] = Array(values.numpy())
        return reply

    return change


def test_a_bad_upload_is_refused_on_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    grid = flower_run(folder, spoil("fc.bias", torch.full((8,), torch.nan)))
    entry = read_json(folder / "run.json")["clients"][1]
    assert entry["status"] == "failed"
    assert "fc.bias holds values that are not finite" in entry["reason"]
    assert sorted(states_sent(grid)) == [0, 2]
    assert not (folder / "uploads" / "client-01.safetensors").exists()


def test_a_run_that_was_interrupted_goes_on_under_flower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Watch(patch, stop=("synthesis, cluster 1", None, 2))
        flower_run(folder)
    watch = Watch(monkeypatch)
    grid = flower_run(folder)
    assert not {"training", "clustering", "synthesis, cluster 0"} & {stage for stage, _ in watch.work}
    assert not any(arrays_of(reply) for reply in grid.replies[0])
    assert outcome(folder) == outcome(reference())
    assert read_json(folder / "run.json")["resumed"] and "resumed" not in read_json(reference() / "run.json")


def test_a_client_that_comes_back_after_an_interruption_takes_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stages that were finished without it must not be used: they know nothing of its upload.
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Watch(patch, stop=("synthesis, cluster 1", None, 2))
        flower_run(folder, as_sender(fail_in(1, 1, "for now")))
    flower_run(folder)
    assert outcome(folder) == outcome(reference())


@pytest.mark.parametrize("reason", ["disk on fire", NO_ANSWER])
def test_a_node_that_is_gone_after_an_interruption_leaves_its_upload_to_the_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Watch(patch, stop=("synthesis, cluster 1", None, 2))
        flower_run(folder)

    def gone(round_: int, client: int, reply: Message) -> Message | None:
        return None if client == 1 else reply

    grid = flower_run(folder, gone if reason == NO_ANSWER else as_sender(fail_in(1, 1, reason)))
    assert sorted(states_sent(grid)) == [0, 2]
    assert read_json(folder / "clustering.json")["clients"] == [0, 1, 2]
    entries = read_json(folder / "run.json")["clients"]
    assert [entry["status"] for entry in entries] == ["ok", "failed", "ok"]
    assert reason in entries[1]["reason"]


def test_a_node_without_a_number_is_told_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SuperNode started as a site's, in a run that is no deployment."""
    monkeypatch.setattr("local_grid.node_config", lambda client: {"site-name": f"site-{client}"})
    with pytest.raises(FedBiCrossError, match=r"no partition-id, and deployment\.sites, .* is empty"):
        flower_run(tmp_path / "run")


def test_no_reply_carries_arrays_in_round_2(run: tuple[Path, LocalGrid]) -> None:
    assert all(arrays_of(reply) for reply in run[1].replies[0])
    assert not any(arrays_of(reply) for reply in run[1].replies[1])


def test_pacfl_s_subspaces_travel_count_and_cluster_in_both_runners(tmp_path: Path) -> None:
    grid = flower_run(tmp_path / "flower", clustering__by="pacfl", clustering__pacfl_rank=2)
    with without_report():
        run_in_process(tiny(clustering__by="pacfl", clustering__pacfl_rank=2), tmp_path / "here")
    assert outcome(tmp_path / "flower") == outcome(tmp_path / "here")
    extra = subspace_bytes(8, 3 * 28 * 28, 2)
    for reply in grid.replies[0]:
        assert set(reply.content) == {"arrays", "metrics", "client", "subspace"}
    model = payload_bytes(states_sent(grid)[0])
    for entry in read_json(tmp_path / "flower" / "run.json")["clients"]:
        assert entry["bytes_sent"] == model + extra
    rows = {row["name"]: row for row in read_json(tmp_path / "here" / "metrics.json")["rows"]}
    assert rows["FedBiCross"]["bytes_up"] == model + extra and rows["FedAvg-1"]["bytes_up"] == model


@pytest.mark.parametrize("spoil", [torch.nan, None])
def test_an_upload_without_a_usable_subspace_is_refused(tmp_path: Path, spoil: float | None) -> None:
    def change(round_: int, client: int, reply: Message) -> Message:
        if (round_, client) == (1, 1):
            if spoil is None:
                del reply.content["subspace"]
            else:
                reply.content["subspace"] = ArrayRecord({"subspace": torch.full((8, 2352, 3), spoil)})
        return reply

    flower_run(tmp_path / "run", change, clustering__by="pacfl")
    reasons = [entry["reason"] for entry in read_json(tmp_path / "run" / "run.json")["clients"]]
    assert "subspace" in reasons[1] and not reasons[0] and not reasons[2]
