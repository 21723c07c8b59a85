"""What a site's store keeps of the models that were replaced: without room, in number, the last ones used."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fedbicross_flwr.artifacts import digest, read_tensors
from fedbicross_flwr.errors import MachineError
from fedbicross_flwr.evaluation import METRICS
from fedbicross_flwr.models import ModelSpec
from fedbicross_flwr.site.store import FORMER_KEPT, LOCAL, PERSONAL, SCORES, SiteStore
from fedbicross_flwr.training import LocalModel

SPEC = ModelSpec("resnet18", 2, 1, 4, "small")
MANY = FORMER_KEPT + 3


def store_in(folder: Path) -> SiteStore:
    return SiteStore(folder, ("a", "b"), keeps_former=True)


def model(number: int) -> LocalModel:
    return LocalModel({"fc.weight": torch.full((2, 3), float(number))}, 1, (0.5,))


def train(store: SiteStore, number: int) -> None:
    """Keep an f_i that is told by its number."""
    store.save_local(model(number), SPEC, f"key-{number}", f"images-{number}")


def personalise(store: SiteStore, number: int) -> None:
    scores = {"personal": {"local": dict.fromkeys(METRICS, 1.0)}}
    store.save_personal(model(number).state, SPEC, scores, f"personal-{number}", "local")


def grow_old(store: SiteStore, day: int) -> None:
    """Let what was used until now be used on a day long ago, later than on those before."""
    for folder in store.folder.glob("former/*"):
        if folder.stat().st_mtime > 1e9:
            os.utime(folder, (day, day))


def kept(store: SiteStore, name: str) -> set[int]:
    """The numbers of the former models of a name."""
    return {int(read_tensors(path)[0]["fc.weight"][0, 0]) for path in store.folder.glob(f"former/*/{name}")}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def no_room(patch: pytest.MonkeyPatch, where: str) -> list[str]:
    """Let the disk be full for files in folders of this name; return the list of those that are written."""
    made, written = Path.touch, []

    def make_in_room(path: Path, mode: int = 0o666, exist_ok: bool = True) -> None:
        if where in path.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path.name.split(".")[1] + ("" if "former" not in path.parts else " (former)"))
        made(path, mode, exist_ok)

    patch.setattr(Path, "touch", make_in_room)
    return written


def no_links(patch: pytest.MonkeyPatch) -> None:
    """Let the file system know no hard links, as exFAT and many network drives."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    patch.setattr(os, "link", refuse)


def test_a_former_model_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path)
    train(store, 1)
    personalise(store, 1)
    before = contents(tmp_path)
    no_room(monkeypatch, "former")
    train(store, 2)
    personalise(store, 2)
    monkeypatch.undo()
    assert store.local("key-2") is not None and store.personal_scores("personal-2", "local") is not None
    former = {path.name: path.read_bytes() for path in tmp_path.glob("former/*/*")}
    assert former == before and set(former) == {LOCAL, PERSONAL, SCORES}


def test_of_a_linked_model_the_file_behind_the_link_is_kept(tmp_path: Path) -> None:
    store, elsewhere = store_in(tmp_path / "store"), tmp_path / "disk" / "f_i"
    train(store, 1)
    elsewhere.parent.mkdir()
    (store.folder / LOCAL).rename(elsewhere)
    (store.folder / LOCAL).symlink_to(elsewhere)
    train(store, 2)
    assert kept(store, LOCAL) == {1} and (store.folder / LOCAL).is_symlink()


def test_without_hard_links_it_is_copied_after_the_new_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path)
    train(store, 1)
    no_links(monkeypatch)
    written = no_room(monkeypatch, "nowhere")
    train(store, 2)
    assert written == ["local", "local (former)"] and kept(store, LOCAL) == {1}


def test_a_new_model_is_kept_though_the_former_one_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path)
    train(store, 1)
    personalise(store, 1)
    no_links(monkeypatch)
    no_room(monkeypatch, "former")
    train(store, 2)
    personalise(store, 2)
    assert store.local("key-2") is not None and store.personal_scores("personal-2", "local") is not None
    assert kept(store, LOCAL) == kept(store, PERSONAL) == set()


def test_without_room_for_the_new_model_the_one_in_its_place_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path)
    train(store, 1)
    no_room(monkeypatch, tmp_path.name)
    with pytest.raises(MachineError, match="No space left on device"):
        train(store, 2)
    assert store.local("key-1") is not None


def test_a_damaged_former_model_is_replaced_when_it_was_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path)
    train(store, 1)
    train(store, 2)
    (damaged,) = tmp_path.glob(f"former/*/{LOCAL}")
    damaged.write_bytes(damaged.read_bytes()[:-5])
    assert store.local("key-1") is None
    train(store, 1)
    no_room(monkeypatch, "former")
    train(store, 3)
    monkeypatch.undo()
    assert kept(store, LOCAL) == {1, 2}


@pytest.mark.parametrize(("make", "name"), [(train, LOCAL), (personalise, PERSONAL)])
def test_the_last_former_models_are_kept_of_each_kind(make: Any, name: str, tmp_path: Path) -> None:
    store, other = store_in(tmp_path), {train: personalise, personalise: train}[make]
    for number in (1, 2):
        other(store, number)
    for number in range(MANY):
        make(store, number)
        grow_old(store, number)
    assert kept(store, name) == set(range(MANY - 1 - FORMER_KEPT, MANY - 1))
    assert len([*tmp_path.glob("former/*")]) == FORMER_KEPT + 1, "the other kind's one is not counted"


@pytest.mark.parametrize("by", ["its key", "what was sent"])
def test_a_former_f_i_that_is_used_is_not_the_next_to_go(by: str, tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for number in range(MANY):
        train(store, number)
        grow_old(store, number)
        sent = digest(model(0).state)
        assert store.local("key-0") if by == "its key" else store.sent(sent, "images-0")
        grow_old(store, number)
    assert kept(store, LOCAL) == {0, *range(MANY - FORMER_KEPT, MANY - 1)}
