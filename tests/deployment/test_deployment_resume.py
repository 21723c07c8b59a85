"""A server that is killed anywhere ends with the same models; what is whole in a store is used again."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from site_runs import NAMES, deploy, deployed, make_sites, outcome, read_json, reference, states
from sites_grid import SiteNode, node_for

from fedbicross_flwr.centre import server as site_server
from fedbicross_flwr.centre.roster import Roster
from fedbicross_flwr.centre.server import SiteServer
from fedbicross_flwr.errors import FedBiCrossError, MachineError
from fedbicross_flwr.progress import EventLog
from fedbicross_flwr.site.identity import make_store

Step = tuple[str, int | None]


class Killed(BaseException):
    """Stands for a kill: nothing in the app may catch it."""


class Watch:
    """Sees every step that is reported, and kills the process at one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, stop: Step | None = None) -> None:
        self.work: set[Step] = set()
        report = EventLog.advance

        def advance(log: EventLog, stage: str, done: int, total: int, *, client: int | None = None) -> None:
            report(log, stage, done, total, client=client)
            self.work.add((stage, client))
            if (stage, client) == stop:
                raise Killed

        patch.setattr(EventLog, "advance", advance)


def may_not_read(patch: pytest.MonkeyPatch, path: Path) -> None:
    """Let the system refuse a file; the tests may be root's, whom it refuses nothing."""
    opened = Path.open

    def may_not(name: Path, *arguments: Any, **options: Any) -> Any:
        if name == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(name))
        return opened(name, *arguments, **options)

    patch.setattr(Path, "open", may_not)


TRAINING: list[Step] = [("training", client) for client in range(3)]


def nodes_of(sites: Path) -> list[SiteNode]:
    """The nodes of sites whose files are there."""
    return [node_for(index, sites, name) for index, name in enumerate(NAMES)]


def go_on(folder: Path, sites: Path) -> set[Step]:
    """Run to the end; return the work that was done."""
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        deploy(deployed(folder), nodes_of(sites))
    assert outcome(folder, sites) == outcome(*reference())
    assert set(states(folder).values()) == {"done"}
    return watch.work


@pytest.mark.parametrize(
    ("stop", "stage", "not_again"),
    [
        (("training", 1), "uploads", set()),
        (("clustering", None), "method", {*TRAINING}),
        (("synthesis, cluster 1", None), "method", {*TRAINING, ("clustering", None)}),
        (("cross-cluster optimisation", None), "method", {*TRAINING, ("synthesis, cluster 0", None)}),
        (("personalisation", 1), "shipping", {*TRAINING, ("cross-cluster optimisation", None)}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_killed_server_goes_on(tmp_path: Path, stop: Step, stage: str, not_again: set[Step]) -> None:
    folder = tmp_path / "run"
    make_sites(tmp_path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        Watch(patch, stop)
        deploy(deployed(folder), nodes_of(tmp_path))
    assert read_json(folder / "roster.json")["stage"] == stage
    assert not go_on(folder, tmp_path) & not_again


@pytest.mark.parametrize("call", (1, 4, 6, 9, 11))
def test_a_server_killed_while_it_writes_the_roster_goes_on(tmp_path: Path, call: int) -> None:
    # Files and roster are written one after the other: any of the two may be the newer one.
    folder, calls = tmp_path / "run", []
    make_sites(tmp_path)
    write = Roster.write

    def killed(roster: Roster) -> None:
        calls.append(roster.stage)
        if len(calls) == call:
            raise Killed
        write(roster)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Roster, "write", killed)
        deploy(deployed(folder), nodes_of(tmp_path))
    go_on(folder, tmp_path)


def test_scores_of_a_site_are_kept_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    nodes = make_sites(tmp_path)

    def change(reply: Message) -> Message:
        if "scores" in reply.content and (folder / "scores").exists():
            raise Killed
        return reply

    for node in nodes:
        node.change = change
    with pytest.raises(Killed):
        deploy(deployed(folder), nodes)
    done = {path.name for path in (folder / "scores").iterdir()}
    assert done == {"client-02.json"}, "the node of the third site has the lowest id"
    again = nodes_of(tmp_path)
    deploy(deployed(folder), again)
    assert [node.asked for node in again] == [["train", "train.personalise"]] * 2 + [["train"]]
    assert outcome(folder, tmp_path) == outcome(*reference())
    assert len(read_json(folder / "metrics.json")["rows"][0]["clients"]) == 3


def test_an_upload_that_was_damaged_before_the_method_is_asked_for_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_sites(tmp_path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        Watch(patch, ("synthesis, cluster 1", None))
        deploy(deployed(folder), nodes_of(tmp_path))
    path = folder / "uploads" / "client-01.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert not go_on(folder, tmp_path) & {*TRAINING}, "the site has its model still"
    assert "the kept upload of site south is damaged" in (folder / "progress.jsonl").read_text()


def test_an_upload_that_may_not_be_read_is_kept_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(reference()[0], tmp_path / "run")
    path = folder / "uploads" / "client-01.safetensors"
    whole = path.read_bytes()
    may_not_read(monkeypatch, path)
    with pytest.raises(MachineError, match=r"client-01.safetensors.*Permission denied"):
        SiteServer.open_sites(deployed(folder), folder)
    monkeypatch.undo()
    assert path.read_bytes() == whole
    assert states(folder) == states(reference()[0])


def test_an_outcome_that_was_damaged_is_learned_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_sites(tmp_path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        Watch(patch, ("personalisation", 1))
        deploy(deployed(folder), nodes_of(tmp_path))
    path = folder / "models" / "cluster-1.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    go_on(folder, tmp_path)


def test_models_of_another_learning_are_no_part_of_an_outcome(tmp_path: Path) -> None:
    """As when a server is killed between two files of a method that is run again."""
    folder = shutil.copytree(reference()[0], tmp_path / "run")
    assert SiteServer.open_sites(deployed(folder), folder).outcome is not None
    shutil.copy(folder / "models" / "cluster-0.safetensors", folder / "models" / "cluster-1.safetensors")
    assert SiteServer.open_sites(deployed(folder), folder).outcome is None


@pytest.mark.parametrize("name", ["outcome.json", "models/cluster-0.safetensors", "replay.safetensors"])
def test_an_outcome_that_may_not_be_read_is_not_learned_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(reference()[0], tmp_path / "run")
    may_not_read(monkeypatch, folder / name)
    with pytest.raises(MachineError, match=rf"{Path(name).name}.*Permission denied"):
        SiteServer.open_sites(deployed(folder), folder)


def test_when_the_window_opens_again_nothing_of_the_former_outcome_stands(tmp_path: Path) -> None:
    folder = shutil.copytree(reference()[0], tmp_path / "run")
    (folder / "outcome.json").unlink()
    (folder / "uploads" / "client-01.safetensors").unlink()
    found = read_json(folder / "roster.json")
    found["sites"][0].update(held=True, late=True, cluster=7, state="held back")
    found["opened"] = found["shipping"] = "2020-01-01T00:00:00.000+00:00"
    (folder / "roster.json").write_text(json.dumps(found))
    assert any((folder / "scores").iterdir())
    server = SiteServer.open_sites(deployed(folder), folder)
    entry = server.site(0)
    assert (entry.held, entry.late, entry.cluster, entry.state) == (False, False, None, "uploaded")
    assert server.roster.closed is None and not any((folder / "scores").iterdir())
    # Two uploads are left, which are enough: the window must not be the one that is over.
    assert server.enough and server.open_uploads() == pytest.approx(60.0, abs=5.0)
    assert server.roster.shipping is None


def test_a_clock_that_is_set_back_makes_no_window_longer(tmp_path: Path) -> None:
    folder = shutil.copytree(reference()[0], tmp_path / "run")
    server = SiteServer.open_sites(deployed(folder), folder)
    server.roster.opened = server.roster.shipping = "2999-01-01T00:00:00.000+00:00"
    assert server.open_uploads() == server.open_shipping() == 60.0


def test_a_server_killed_at_the_first_file_of_its_folder_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "lock").touch()
    half, old = folder / ".identity.json.01234567.tmp", folder / ".config.toml.89abcdef.tmp"
    for path in (half, old):
        path.write_text('{"fingerpr')
    os.utime(old, (0, 0))
    SiteServer.open_sites(deployed(folder), folder)
    assert half.exists() and not old.exists()


def test_other_settings_are_refused_and_windows_may_change(tmp_path: Path) -> None:
    folder = shutil.copytree(reference()[0], tmp_path / "run")
    with pytest.raises(FedBiCrossError, match=r"belongs to a run with deployment\.sites"):
        SiteServer.open_sites(deployed(folder, deployment__sites="north, south, east"), folder)
    config = deployed(folder, deployment__upload_window=5.0, deployment__min_sites=3, partition__clients=9)
    assert SiteServer.open_sites(config, folder).finished


def test_a_damaged_roster_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    SiteServer.open_sites(deployed(folder), folder)
    (folder / "roster.json").write_text('{"stage": "uploads"')
    with pytest.raises(FedBiCrossError, match=r"roster.json cannot be read"):
        SiteServer.open_sites(deployed(folder), folder)


# --- at the site


@pytest.mark.parametrize("name", ["local", "personal"])
def test_a_site_whose_model_was_damaged_makes_it_again(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    nodes = make_sites(tmp_path)
    path = tmp_path / "south" / "store" / f"{name}.safetensors"

    def change(reply: Message) -> Message | None:
        """Damage the model once it is there, and lose the reply with the node."""
        if path.exists() and nodes[1].activated == "first":
            path.write_bytes(path.read_bytes()[:-50])
            nodes[1].come_back()
            return None
        return reply

    nodes[1].change = change
    deploy(deployed(folder), nodes)
    assert len(nodes[1].asked) == 3
    assert outcome(folder, tmp_path) == outcome(*reference())


def test_a_site_that_lost_its_store_trains_again_in_round_2(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    nodes = make_sites(tmp_path)

    def script(look: int) -> None:
        local = tmp_path / "south" / "store" / "local.safetensors"
        if (folder / "outcome.json").exists() and not (folder / "scores").exists():
            local.unlink(missing_ok=True)

    deploy(deployed(folder), nodes, script)
    assert outcome(folder, tmp_path) == outcome(*reference())


def test_a_model_that_another_run_replaces_is_kept_and_used_again(tmp_path: Path) -> None:
    make_sites(tmp_path)
    south = tmp_path / "south" / "store"
    deploy(deployed(tmp_path / "first"), nodes_of(tmp_path))
    files = ("local.safetensors", "personal.safetensors", "scores.json")
    before = {name: (south / name).read_bytes() for name in files}
    deploy(deployed(tmp_path / "other", client__lr=0.03), nodes_of(tmp_path))
    assert all((south / name).read_bytes() != before[name] for name in files)
    assert {path.name: path.read_bytes() for path in south.glob("former/*/*")} == before
    # The first run's settings once more, in a new folder: what it trained is not trained again.
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        deploy(deployed(tmp_path / "third"), nodes_of(tmp_path))
    assert not watch.work & {*TRAINING}
    assert outcome(tmp_path / "third", tmp_path) == outcome(*reference())


def test_what_a_killed_site_left_of_a_model_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "store" / ".local.safetensors.01234567.tmp"
    path.parent.mkdir()
    path.write_text("half")
    os.utime(path, (0, 0))
    make_store(path.parent, "set store-path to")
    assert list(path.parent.iterdir()) == []


def test_a_store_that_cannot_be_made_is_refused_before_any_training(tmp_path: Path) -> None:
    nodes = make_sites(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    nodes[1].config["store-path"] = str(tmp_path / "file" / "store")
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        deploy(deployed(folder), nodes)
    assert states(folder)["south"] == "refused" and ("training", 1) not in watch.work
    assert "cannot make the store the site's store" in (folder / "progress.jsonl").read_text()


def test_an_error_that_nobody_foresaw_reaches_the_server_without_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError(f"{tmp_path}/patient-7.png")

    nodes = make_sites(tmp_path)
    monkeypatch.setattr("client_app.app.first_round", broken)
    config = deployed(tmp_path / "run", deployment__upload_window=0.2)
    with pytest.raises(FedBiCrossError, match="an unexpected RuntimeError ended the site's work") as caught:
        deploy(config, nodes)
    assert "patient-7" not in str(caught.value)
    assert site_server.SiteServer.open_sites(config, tmp_path / "run").roster.stage == "failed"
