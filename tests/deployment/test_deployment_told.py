"""What a site tells the centre of files that it cannot use: why, and no name of any of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from locked_files import locked
from PIL import Image
from site_runs import deployed
from sites_grid import RUN_ID, identify, node_for
from small_runs import save_site

from client_app import app as client_module
from fedbicross_flwr.site.check import check_site

Tell = Callable[..., str]
CLASSES = ("a", "b")


@pytest.fixture
def tell(tmp_path: Path) -> Tell:
    """Ask a site for its upload, and return why it cannot take part, as the centre reads it."""
    identify()
    config = deployed(tmp_path / "run", deployment__class_names="a, b", deployment__channels=1)

    def ask(**changes: str) -> str:
        node = node_for(0, tmp_path, "north", **changes)
        content = RecordDict({"config": ConfigRecord({})})
        context = Context(RUN_ID, node.id, node.config, RecordDict(), dict(config.flat()))
        reply = client_module.app(Message(content, node.id, "train"), context)
        reason = str(reply.content["refusal"]["reason"])
        assert reason.isprintable() and reason.encode() and str(tmp_path) not in reason
        return reason

    return ask


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """Six images of two classes, called by patients' names."""
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "clinic" / "train" / name).mkdir(parents=True)
        for number in range(3):
            pixels = generator.integers(0, 256, (28, 28), dtype=np.uint8)
            file = tmp_path / "clinic" / "train" / name / f"{number} Mueller Hans 1950.png"
            Image.fromarray(pixels).save(file)
    return tmp_path / "clinic"


@pytest.mark.parametrize("mode", [0o000, 0o400])
@pytest.mark.parametrize("place", ["", "train", "train/a", "train/a/1 Mueller Hans 1950.png"])
def test_a_folder_or_file_that_may_not_be_read(tell: Tell, clinic: Path, place: str, mode: int) -> None:
    if place.endswith(".png"):
        mode = 0
    with locked(clinic / place, mode):
        reason = tell(**{"data-path": str(clinic)})
    assert reason.startswith("the site's data: ") and "Permission denied" in reason
    assert not any(word in reason for word in ("Mueller", "Hans", "1950", "png", "clinic"))


def test_a_file_in_a_folder_that_may_not_be_read(tell: Tell, tmp_path: Path) -> None:
    path = save_site(tmp_path / "own.npz")
    (tmp_path / "deep").mkdir()
    path.rename(tmp_path / "deep" / "Mueller.npz")
    with locked(tmp_path / "deep"):
        reason = tell(**{"data-path": str(tmp_path / "deep" / "Mueller.npz")})
    assert reason.startswith("the site's data: Permission denied")


def test_a_path_of_no_user_or_far_too_long(tell: Tell) -> None:
    for key, word in (("data-path", "the site's data"), ("store-path", "the site's store")):
        reason = tell(**{key: "~nosuchuser/Mueller Hans"})
        assert reason == f"{word}: that user has no home folder here; write the path in full"
    assert "File name too long" in tell(**{"data-path": f"/{'Mueller' * 100}.npz"})


def test_a_file_that_is_refused_anywhere_else(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied", "/secret/Mueller Hans 1950.png")

    monkeypatch.setattr(client_module, "open_site", refuse)
    reason = tell()
    assert reason == (
        "a file of the site cannot be used (Permission denied); the SuperNode's log has the details"
    )


def test_names_of_foreign_arrays_stay_and_are_told_at_the_site_alone(tell: Tell, tmp_path: Path) -> None:
    kind = np.dtype([("Mueller_Hans", np.uint8)])
    path = save_site(tmp_path / "own.npz", train_labels=None, Mueller_Hans_1950=np.zeros(3))
    reason = tell(**{"data-path": str(path)})
    assert "missing train_labels; found test_images, test_labels, train_images, 1 other array(s);" in reason
    assert "Mueller" not in reason
    (problem,) = check_site(path, deployed(tmp_path / "run"), CLASSES).found.problems
    assert "found Mueller_Hans_1950, test_images" in problem
    save_site(path, train_images=np.zeros((36, 28, 28), kind))
    reason = tell(**{"data-path": str(path)})
    assert "train_images is void8; save the images as uint8" in reason


def test_names_that_are_no_utf_8(tell: Tell, clinic: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"clinic \xff")
    clinic.rename(folder)
    (folder / "train" / "a").rename(folder / "train" / os.fsdecode(b"M\xfcller"))
    reason = tell(**{"data-path": str(folder)})
    assert reason == "the site's data: the name of this class is no text in UTF-8; rename the folder"
    (problem,) = check_site(folder, deployed(tmp_path / "run"), CLASSES).found.problems
    assert "train/M\udcfcller: the name of this class is no text" in problem
