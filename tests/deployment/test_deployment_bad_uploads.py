"""What comes from a site is foreign: it is checked, refused with its reason, flagged, or held back."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord
from google.protobuf.message import DecodeError
from site_runs import (
    NAMES,
    cluster_models,
    deploy,
    deployed,
    make_sites,
    read_json,
    reference,
    roster,
    states,
)
from sites_grid import SiteNode, node_for
from small_runs import TINY

from fedbicross_flwr.artifacts import read_tensors
from fedbicross_flwr.centre.server import SiteServer
from fedbicross_flwr.centre.upload_flags import find_flags
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError, MachineError
from fedbicross_flwr.evaluation import METRICS
from fedbicross_flwr.methods import ClientUpload, ServerTask
from fedbicross_flwr.models import ModelSpec, StateDict, build_model, state_of
from fedbicross_flwr.progress import Silent
from fedbicross_flwr.report import load_run
from fedbicross_flwr.report.view import warnings
from fedbicross_flwr.server import Server
from fedbicross_flwr.sound import check_sound

Spoil = Callable[[Message], None]


def spoiled(kind: str, spoil: Spoil) -> Callable[[Message], Message]:
    """A change of the replies that carry a record of this name."""

    def change(reply: Message) -> Message:
        if kind in reply.content:
            spoil(reply)
        return reply

    return change


def arrays(reply: Message) -> ArrayRecord:
    return cast(ArrayRecord, reply.content["arrays"])


def metrics(reply: Message, **values: Any) -> None:
    record = cast(MetricRecord, reply.content["metrics"])
    for name, value in values.items():
        record[name.replace("_", "-")] = value


def put(name: str, values: Any) -> Spoil:
    return lambda reply: arrays(reply).__setitem__(name, Array(np.asarray(values, dtype=np.float32)))


def scale(factor: float) -> Spoil:
    """All weights times a factor."""

    def spoil(reply: Message) -> None:
        record = arrays(reply)
        for name, tensor in record.to_torch_state_dict().items():
            if name.endswith("weight"):
                record[name] = Array((tensor * factor).numpy())

    return spoil


def cut_short(reply: Message) -> None:
    """An array whose bytes end early."""
    whole = arrays(reply)["fc.weight"]
    arrays(reply)["fc.weight"] = Array(whole.dtype, whole.shape, whole.stype, whole.data[:-40])


def pickled(reply: Message) -> None:
    """An array that would have to be unpickled."""
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    arrays(reply)["fc.bias"] = Array("float32", (8,), "numpy.ndarray", buffer.getvalue())


def unasked(reply: Message) -> None:
    """What PACFL sends, of numbers that a file of tensors cannot hold."""
    reply.content["subspace"] = ArrayRecord({"subspace": Array(np.zeros((2, 2), dtype=np.complex128))})


BAD: dict[str, tuple[Spoil, str]] = {
    "nan": (put("fc.bias", [np.nan] * 8), "fc.bias holds values that are not finite"),
    "another-network": (put("fc.bias", [0.0] * 7), r"fc.bias has shape (7,) instead of (8,)"),
    "oversized": (put("more", np.zeros((400, 400, 4))), "but the model that was agreed on has"),
    "truncated": (cut_short, "the upload cannot be read"),
    "pickled": (pickled, "the upload cannot be read"),
    "huge": (put("fc.bias", [1e30] * 8), "fc.bias holds 1e+30"),
    "overflowing": (scale(300.0), "its answers reach"),
    "no-count": (lambda reply: reply.content.__delitem__("metrics"), "the upload cannot be read (KeyError"),
    "count": (lambda reply: metrics(reply, num_examples=-1), "it was trained on -1 images"),
    "accuracy": (lambda reply: metrics(reply, validation_accuracy=7.0), "validation accuracy is 7.0"),
    "subspace": (unasked, "a subspace of the site's images, which was not asked for"),
}


def with_more(
    tmp_path: Path, changes: dict[str, Callable[[Message], Message]]
) -> tuple[Path, list[SiteNode]]:
    """Run a federation of the three sites and one more for each change, which does that to its replies."""
    nodes = make_sites(tmp_path)
    for index, (name, change) in enumerate(changes.items()):
        node = node_for(index + 3, tmp_path, name, **{"data-path": nodes[0].config["data-path"]})
        node.change = change
        nodes.append(node)
    folder = tmp_path / "run"
    sites = ", ".join([*NAMES, *changes])
    deploy(
        deployed(
            folder, deployment__sites=sites, deployment__upload_window=0.5, deployment__personal_window=0.3
        ),
        nodes,
    )
    assert all(states(folder)[name] == "done" for name in NAMES)
    return folder, nodes[3:]


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, SiteNode]]:
    """One run with every bad upload beside three good ones."""
    changes = {kind: spoiled("arrays", spoil) for kind, (spoil, _) in BAD.items()}
    folder, nodes = with_more(tmp_path_factory.mktemp("refused"), changes)
    return folder, {node.config["site-name"]: node for node in nodes}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_upload_is_refused_and_told(refused: tuple[Path, dict[str, SiteNode]], kind: str) -> None:
    folder, nodes = refused
    entry = roster(folder)[kind]
    assert entry["state"] == "refused" and BAD[kind][1] in entry["reason"] and "\n" not in entry["reason"]
    assert nodes[kind].told == [entry["reason"]]
    assert not (folder / "uploads" / f"client-{entry['client']:02d}.safetensors").exists()


def test_bad_uploads_leave_the_others_as_they_would_be(refused: tuple[Path, dict[str, SiteNode]]) -> None:
    folder, _ = refused
    assert read_json(folder / "clustering.json")["clients"] == [0, 1, 2]
    assert cluster_models(folder) == cluster_models(reference()[0])


def whose(name: str, client: int) -> Spoil:
    def spoil(reply: Message) -> None:
        reply.content["site"] = ConfigRecord({"name": name})
        reply.content["client"] = MetricRecord({"client": client})

    return spoil


def test_a_node_that_contradicts_itself_is_turned_away(tmp_path: Path) -> None:
    claims = {"east": ("north", 3), "far": ("far", 77), "below": ("below", -2), "nobody": ("someone", 1)}
    folder, nodes = with_more(
        tmp_path, {site: spoiled("arrays", whose(*claim)) for site, claim in claims.items()}
    )
    for node in nodes:
        assert states(folder)[node.config["site-name"]] == "missing"
        assert len(node.told) == 1 and "deployment.sites does not have" in node.told[0]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no chunk"),
        KeyError("child"),
        IndexError("empty"),
        DecodeError("cut"),
        RecursionError("deep"),
    ],
)
def test_a_reply_that_flower_cannot_put_together_is_its_sender_s_matter(
    tmp_path: Path, error: Exception
) -> None:
    def fail(reply: Message) -> Message:
        raise error

    folder, (node,) = with_more(tmp_path, {"odd": fail})
    assert states(folder)["odd"] == "missing"
    assert node.told == [f"its reply cannot be put together ({type(error).__name__})"]


def test_what_a_site_says_cannot_write_on_the_screen(tmp_path: Path) -> None:
    words = "no data \x1b]52;c;c2VjcmV0\x07\x1b[2J\n" + "x" * 5000

    def refuse(reply: Message) -> None:
        reply.content["refusal"] = ConfigRecord({"reason": words})

    folder, _ = with_more(tmp_path, {"loud": spoiled("arrays", refuse)})
    reason = roster(folder)["loud"]["reason"]
    assert reason.startswith("no data ]52;c;c2VjcmV0 [2J x") and len(reason) < 700 and reason.isprintable()
    assert "\x1b" not in (folder / "progress.jsonl").read_text().replace("\\u001b", "\x1b")


def test_what_a_node_s_failure_says_cannot_write_on_the_screen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(reply: Message) -> Message:
        return Message(Error(1, "broken \x1b[2J\x07 glass"), reply_to=reply)

    folder, _ = with_more(tmp_path, {"loud": fail})
    assert "is asked again: its ClientApp failed (broken [2J glass)" in caplog.text
    assert "\x1b" not in caplog.text and "\x1b" not in roster(folder)["loud"]["reason"]


SCORES: dict[str, dict[str, float]] = {
    "above-one": {"personal/local/accuracy": 1.5},
    "incomplete": {"personal/local/accuracy": 0.5},
    "elsewhere": {"personal/global/accuracy": 0.5},
    "no-path": {"personal": 0.5},
    "unknown": {"fedavg/local/colour": 0.5},
    "too-many": {f"personal/local/{metric}": 1e19 if metric == "samples" else 0.5 for metric in METRICS},
}


def test_scores_that_cannot_be_are_refused(tmp_path: Path) -> None:
    def instead(scores: dict[str, float]) -> Spoil:
        return lambda reply: reply.content.__setitem__("scores", MetricRecord(dict(scores)))

    folder, nodes = with_more(
        tmp_path, {name: spoiled("scores", instead(scores)) for name, scores in SCORES.items()}
    )
    for node in nodes:
        entry = roster(folder)[node.config["site-name"]]
        assert entry["state"] == "refused" and "the scores" in entry["reason"] and node.told
    scored = {one["client"] for row in read_json(folder / "metrics.json")["rows"] for one in row["clients"]}
    assert scored == {0, 1, 2}


@pytest.mark.parametrize("step", ["record", "shipment"])
def test_what_the_centre_cannot_write_or_read_is_no_refusal_of_a_site_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*arguments: object) -> None:
        raise MachineError("cannot write scores: No space left on device")

    monkeypatch.setattr(SiteServer, step, fail)
    with pytest.raises(MachineError, match="No space left on device"):
        deploy(deployed(tmp_path / "run"), make_sites(tmp_path))
    assert "refused" not in states(tmp_path / "run").values()


def test_scores_without_a_model_are_refused(tmp_path: Path) -> None:
    def scores_at_once(reply: Message) -> Message:
        if "arrays" in reply.content:
            del reply.content["arrays"]
            reply.content["scores"] = MetricRecord({})
        return reply

    folder, (node,) = with_more(tmp_path, {"hasty": scores_at_once})
    entry = roster(folder)["hasty"]
    assert entry["state"] == "refused" and "a model that it was not shipped" in entry["reason"]
    assert node.told == [entry["reason"]] and not (folder / "scores" / "client-03.json").exists()


# --- flags

SPEC = ModelSpec("resnet18", 8, 3, 2, "small")


def task() -> ServerTask:
    config = RunConfig.from_flat(TINY)
    return ServerTask(SPEC, config, Compute.of(config.runtime), Silent())


def trained() -> list[StateDict]:
    """Models that sites of the reference have trained."""
    return [read_tensors(path)[0] for path in sorted((reference()[0] / "uploads").glob("client-*"))]


def flags_of(states: list[StateDict]) -> dict[int, list[str]]:
    return find_flags([ClientUpload(client, 30, state) for client, state in enumerate(states)], task())


def test_models_that_are_alike_are_not_flagged_nor_are_two_of_them() -> None:
    assert flags_of(trained()) == {}
    assert flags_of([trained()[0], scaled(trained()[1], 9.0)]) == {}


def test_a_site_that_says_it_has_far_more_images_is_flagged() -> None:
    counts = (30, 40, 10**9)
    uploads = [ClientUpload(index, counts[index], state) for index, state in enumerate(trained())]
    found = find_flags(uploads, task())
    assert set(found) == {2} and "says that it has 1,000,000,000 images, the median is 40" in found[2][0]


def scaled(state: StateDict, factor: float) -> StateDict:
    """Weights times a factor; BatchNorm and the statistics as they were."""
    return {name: tensor * factor if tensor.ndim > 1 else tensor for name, tensor in state.items()}


def constant(state: StateDict) -> StateDict:
    """A model that says class 3 to everything."""
    bias = torch.zeros(8)
    bias[3] = 5.0
    return {**state, "fc.weight": torch.zeros_like(state["fc.weight"]), "fc.bias": bias}


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("factor", [0.05, 6.0])
def test_a_model_of_another_size_is_flagged(index: int, factor: float) -> None:
    states = trained()
    states[index] = scaled(states[index], factor)
    found = flags_of(states)
    assert set(found) == {index}
    # BatchNorm's scales, which are of any model's size, keep the norm of the smaller one up.
    assert factor < 1 or any("the norm of its weights" in text for text in found[index])


def test_a_model_that_says_one_thing_is_flagged_unless_most_do() -> None:
    one, two, three = trained()
    assert any("class 3 whatever it is shown" in text for text in flags_of([one, constant(two), three])[1])
    assert not any(
        "whatever" in t for texts in flags_of([one, constant(two), constant(three)]).values() for t in texts
    )


def test_a_model_that_contradicts_all_others_is_flagged() -> None:
    one, two, _ = trained()
    turned = {**two, "fc.weight": two["fc.weight"].flip(0) * 4, "fc.bias": two["fc.bias"].flip(0) * 4}
    alike = {**one, "fc.weight": one["fc.weight"] * 4, "fc.bias": one["fc.bias"] * 4}
    found = flags_of([alike, alike, turned, alike, alike])
    assert any("agree with the rest" in text for text in found[2]) and set(found) == {2}


def test_a_fresh_model_and_trained_ones_far_from_the_limit_are_sound_and_overflow_is_not() -> None:
    state = state_of(build_model(SPEC, seed=3))
    check_sound(0, state, task())
    for trained_state in trained():
        louder = {name: trained_state[name] * 1e4 for name in ("fc.weight", "fc.bias")}
        check_sound(0, {**trained_state, **louder}, task())
    with pytest.raises(FedBiCrossError, match="upload of client 4 is refused: its answers reach"):
        check_sound(4, {**state, "fc.weight": torch.full_like(state["fc.weight"], 9e5)}, task())


def outlying(tmp_path: Path, **settings: Any) -> Path:
    """A run in which the third site sends a classifier far too large."""
    nodes = make_sites(tmp_path)

    def enlarge(reply: Message) -> None:
        weight = arrays(reply).to_torch_state_dict()["fc.weight"]
        arrays(reply)["fc.weight"] = Array((weight * 60.0).numpy())

    nodes[2].change = spoiled("arrays", enlarge)
    folder = tmp_path / "run"
    deploy(deployed(folder, **settings), nodes)
    return folder


def test_an_outlying_upload_takes_part_and_is_pointed_out(tmp_path: Path) -> None:
    folder = outlying(tmp_path)
    entry = roster(folder)["west"]
    assert entry["state"] == "done" and "the norm of its weights" in entry["flags"][0] and not entry["held"]
    assert "the upload of site west is outlying" in (folder / "progress.jsonl").read_text()
    assert [one.get("flags") for one in read_json(folder / "run.json")["clients"]] == [
        None,
        None,
        entry["flags"],
    ]
    (warning,) = warnings(load_run(folder))
    assert warning.startswith("The upload of client 2 (west) is unlike the others: the norm of its weights")
    assert read_json(folder / "clustering.json")["clients"] == [0, 1, 2]
    for path in folder.glob("models/*.safetensors"):
        assert all(bool(torch.isfinite(tensor).all()) for tensor in read_tensors(path)[0].values())


def test_an_outlying_upload_that_is_held_back_leaves_the_others_as_they_would_be(tmp_path: Path) -> None:
    folder = outlying(tmp_path / "held", deployment__hold_back=True)
    nodes = make_sites(tmp_path / "two")[:2]
    alone = tmp_path / "two" / "run"
    deploy(deployed(alone, deployment__upload_window=0.3, deployment__personal_window=0.2), nodes)
    assert cluster_models(folder) == cluster_models(alone)
    entry = roster(folder)["west"]
    assert entry["state"] == "done" and entry["held"] and entry["cluster"] in (0, 1)
    assert not entry["late"] and set(states(folder)) == set(NAMES)


def test_holding_back_all_but_too_few_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        FedBiCrossError, match=r"2 upload\(s\) when the window closed, .*min_sites = 3 needs 3"
    ):
        outlying(tmp_path, deployment__hold_back=True, deployment__min_sites=3)


def two_uploads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[int, list[str]], **changes: Any
) -> SiteServer:
    """A server with the uploads of sites 0 and 1, which are enough, and what is known against them."""
    monkeypatch.setattr("fedbicross_flwr.centre.uploads.find_flags", lambda uploads, task: flags)
    config = deployed(folder, deployment__min_sites=2, **changes)
    server = SiteServer.open_sites(config, folder)
    server.open_uploads()
    for client in (0, 1):
        server.uploads[client] = ClientUpload(client, 10, {})
        server.roster.change(client, state="uploaded")
    return server


def test_flags_are_those_of_the_last_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {1: ["outlying"]}
    server = two_uploads(tmp_path / "run", monkeypatch, flags)
    server.close_uploads()
    assert [server.site(client).flags for client in (0, 1)] == [[], ["outlying"]]
    flags.clear()  # among more uploads it is no longer outlying
    server.close_uploads()
    assert [server.site(client).flags for client in (0, 1)] == [[], []]
    assert all(not entry["flags"] for entry in roster(tmp_path / "run").values())


def test_after_holding_back_too_many_the_next_window_is_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = two_uploads(tmp_path / "run", monkeypatch, {1: ["outlying"]}, deployment__hold_back=True)
    ended = "2020-01-01T00:00:00+00:00"
    server.roster.opened = ended
    assert server.open_uploads() < 0.0  # two are enough, as nothing is known against either
    with pytest.raises(FedBiCrossError, match="run the same command again to open another window"):
        server.close_uploads()
    assert server.open_uploads() > 0.0 and server.roster.opened != ended


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        (
            {"min_sites": 3, "hold_back": True},
            r"lower deployment\.min_sites, or start a run with another out",
        ),
        ({"min_sites": 1, "hold_back": True}, r"held back; start a run with another out"),
    ],
)
def test_where_every_site_has_uploaded_no_other_window_is_advised(
    tmp_path: Path, changes: dict[str, Any], remedy: str
) -> None:
    config = deployed(tmp_path / "run", **{f"deployment__{key}": value for key, value in changes.items()})
    server = SiteServer.open_sites(config, tmp_path / "run")
    server.uploads.update({client: ClientUpload(client, 10, {}) for client in range(3)})
    with pytest.raises(FedBiCrossError, match=remedy) as told:
        server.hold_back({1: ["outlying"], 2: ["outlying"]})
    assert "another window" not in str(told.value)


def test_an_outlying_upload_that_breaks_the_method_is_held_back_whatever_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Server.run_method

    def diverging(server: Server) -> Any:
        if any(upload.client == 2 for upload in server.method_uploads()):
            raise FedBiCrossError("the cross-cluster optimisation diverged")
        return run(server)

    monkeypatch.setattr(Server, "run_method", diverging)
    folder = outlying(tmp_path)
    assert roster(folder)["west"]["held"] and set(states(folder).values()) == {"done"}
    assert "run again without outlying uploads" in (folder / "progress.jsonl").read_text()
    assert read_json(folder / "clustering.json")["clients"] == [0, 1]


def test_a_full_disk_is_no_reason_to_hold_an_upload_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(server: Server) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", no_room)
            server.folder.write_json("clustering.json", {})

    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Server, "run_method", full)
    with pytest.raises(FedBiCrossError, match="No space left on device"):
        outlying(tmp_path)
    entry = roster(tmp_path / "run")["west"]
    assert entry["flags"] and not entry["held"]
