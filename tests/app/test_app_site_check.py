"""``fedbicross site check``: each planted problem is found, all in one go, and what would leave is told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from locked_files import locked
from PIL import Image
from small_runs import Answer, checksums, save_site, tiny
from test_app_bad_input import save_folder

from fedbicross_flwr import cli
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.models import ModelSpec, build_model, state_of
from fedbicross_flwr.site.check import SiteReport, check_site, read_classes
from fedbicross_flwr.site.data import site_images
from fedbicross_flwr.training import check_trainable

CLASSES = ("class-0", "class-1", "class-2")

Command = Callable[..., Answer]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """``fedbicross site check`` with more words, on a wide terminal."""

    def run(*words: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["fedbicross", "site", "check", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return Answer(left.value.code or 0, captured.out, captured.err)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """36 training and 12 test images of three classes, in which nothing is wrong."""
    return save_folder(tmp_path / "clinic")


def checked(path: Path, classes: tuple[str, ...] | None = CLASSES) -> SiteReport:
    return check_site(path, tiny(), classes)


def problem(path: Path, *words: str, classes: tuple[str, ...] | None = CLASSES) -> None:
    """The check finds one problem, told in one line with all the words."""
    (line,) = checked(path, classes).found.problems
    assert "\n" not in line
    for word in words:
        assert word in line, line


def note(path: Path, *words: str, classes: tuple[str, ...] | None = CLASSES) -> None:
    """The check lets the site in, with one note that has all the words."""
    report = checked(path, classes)
    assert report.usable, report.found.problems
    (line,) = (one for one in report.found.notes if all(word in one for word in words))
    assert "\n" not in line


# --- nothing wrong


def test_good_data_is_told_as_it_is(command: Command, folder: Path) -> None:
    before = checksums(folder)
    answer = command(folder, "--classes", ", ".join(CLASSES))
    assert answer.status == 0 and answer.error == "", answer
    for line in (r"class-1\s+12\s+4\b", r"all\s+36\s+12\b", "48 of 28x28; channels: 1", "can be used"):
        assert re.search(line, answer.output), answer.output
    assert "note:" not in answer.output
    assert checksums(folder) == before


@pytest.mark.parametrize("channels", [1, 3])
def test_what_would_leave_is_the_network_s_own_size(tmp_path: Path, channels: int) -> None:
    shape = (28, 28) if channels == 1 else (28, 28, 3)
    images = np.random.default_rng(1).integers(0, 256, (48, *shape), dtype=np.uint8)
    path = save_site(tmp_path / "own.npz", train_images=images[:36], test_images=images[36:])
    state = state_of(build_model(ModelSpec("resnet18", 3, channels, 2, "small"), 0))
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    report = checked(path, None)
    assert report.usable
    told = {one.what: one.amount for one in report.leaving}
    assert f"{total:,} bytes" in told[f"the {len(state)} arrays of the trained resnet18 of width 2"]
    assert told["the number of training images"] == "36"
    assert "the accuracy on 3 validation images" in told
    assert any("12 test images" in what and amount == "20 numbers" for what, amount in told.items())


def test_what_a_configuration_lets_leave_is_told(command: Command, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[model]\nwidth = 4\n[clustering]\nby = 'pacfl'\npacfl_rank = 2\n")
    answer = command(folder, "--config", tmp_path / "run.toml")
    assert "of width 4" in answer.output
    assert re.search(r"2 directions of the images of each class \(PACFL\)\s+18\.8 kB", answer.output)
    assert "were not given (--classes)" in answer.output


# --- each problem alone


def test_unreadable_images_are_all_named(folder: Path) -> None:
    names = ["train/class-1/001.png", "train/class-2/002.png", "test/class-0/000.png"]
    for name in names[:2]:
        (folder / name).write_text("no image")
    (folder / names[2]).write_bytes((folder / names[2]).read_bytes()[:300])
    problem(folder, "3 files cannot be read", *names)


def test_of_many_unreadable_images_the_number_is_told(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "clinic", train=90)
    broken = sorted((folder / "train" / "class-1").iterdir())[:25]
    for file in broken:
        file.write_text("no image")
    problem(folder, "25 files cannot be read", broken[0].name, "and 5 more")
    assert checked(folder).found.images["train"]["class-1"] == 5


def test_images_of_other_sizes_and_depths_are_named(folder: Path) -> None:
    Image.new("L", (30, 28)).save(folder / "train" / "class-0" / "000.png")
    problem(folder, "1 file of another size", "train/class-0/000.png (30x28)", "28x28")
    Image.fromarray(np.zeros((28, 28), np.uint16)).save(folder / "train" / "class-0" / "000.png")
    problem(folder, "without 8 bits", "000.png (mode I;16)")


def test_a_class_by_another_name_is_told_with_the_near_one(folder: Path) -> None:
    federation = ("class_0", "class-1", "class-2")
    problem(folder, "'class-0' is none of the federation's", "did you mean class_0?", classes=federation)


def test_a_class_that_the_federation_has_and_the_site_has_not(folder: Path) -> None:
    note(folder, "'other' of the federation is not here", classes=("other", *CLASSES))
    path = save_site(folder.parent / "own.npz", class_names=np.array(CLASSES))
    problem(path, "'other' of the federation is not in class_names", classes=("other", *CLASSES))


def test_a_class_that_the_federation_has_not(folder: Path) -> None:
    problem(folder, "'class-2' is none of the federation's", classes=CLASSES[:2])


def test_another_order_of_a_folder_s_classes_is_a_note(folder: Path) -> None:
    note(folder, "in the order class-0, class-1, class-2", "class-2, class-1", classes=CLASSES[::-1])


def test_a_test_class_without_training_images(folder: Path) -> None:
    (folder / "test" / "class-0").rename(folder / "test" / "klass-0")
    problem(folder, "'klass-0' has no folder in train", "did you mean class-0")


def test_a_class_without_training_images_is_a_note(folder: Path) -> None:
    for file in (folder / "train" / "class-1").iterdir():
        file.unlink()
    note(folder, "'class-1' has no training image")
    (folder / "train" / "class-1").rmdir()
    note(folder, "'class-1' of the federation is not here")


def test_a_single_class(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.fromarray(generator.integers(0, 256, (28, 28), dtype=np.uint8)).save(
        tmp_path / "train" / "a" / "0.png"
    )
    problem(tmp_path, "training images of 1 class,", "client.min_classes = 2", classes=None)


def test_a_test_image_that_is_trained_on_is_found_under_any_name_and_format(folder: Path) -> None:
    with Image.open(folder / "train" / "class-1" / "004.png") as image:
        image.convert("RGB").save(folder / "test" / "class-1" / "new.bmp")
    problem(folder, "1 test image also", "test/class-1/new.bmp = train/class-1/004.png")


def test_a_class_of_few_images_is_a_note(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "clinic")
    for file in sorted((folder / "train" / "class-1").iterdir())[3:]:
        file.unlink()
    report = checked(folder)
    assert report.usable
    assert [note for note in report.found.notes if "class-1" in note and "3 training images" in note]


def test_files_that_are_passed_over_and_a_mix_of_colours_are_notes(folder: Path) -> None:
    (folder / "train" / "class-0" / "notes.txt").write_text("x")
    (folder / "train" / "stray.png").write_text("x")
    (folder / "train" / "class-0" / ".hidden.png").write_text("x")
    Image.new("RGB", (28, 28), "red").save(folder / "train" / "class-0" / "red.png")
    report = checked(folder)
    assert report.usable and report.found.channels == 3
    notes = "\n".join(report.found.notes)
    assert "train/class-0/notes.txt" in notes and "train/stray.png" in notes and ".hidden" not in notes
    assert "48 of 49 images are grayscale" in notes


def test_what_is_not_there(tmp_path: Path) -> None:
    problem(tmp_path / "absent", "no such file")
    problem(tmp_path, "no folder 'train'")


# --- what may not be looked at, and names of other kinds


@pytest.mark.parametrize("mode", [0o000, 0o400])
@pytest.mark.parametrize("place", ["", "train", "train/class-1", "test/class-1", "test"])
def test_a_folder_that_may_not_be_read_is_a_problem(
    command: Command, folder: Path, place: str, mode: int
) -> None:
    with locked(folder / place, mode):
        answer = command(folder)
    lines = answer.error.strip().splitlines()
    assert answer.status == 2 and all(line.startswith("error: ") for line in lines), answer
    assert sum("Permission denied; check the path" in line or "cannot be read" in line for line in lines) == 1
    assert str(folder / place) in lines[0] or f": {place}/" in lines[0]


def test_the_other_folders_are_looked_at_all_the_same(folder: Path) -> None:
    (folder / "test" / "class-2" / "002.png").write_text("no image")
    with locked(folder / "train" / "class-1"):
        report = checked(folder)
    assert len(report.found.problems) == 2
    assert report.found.images["train"] == {"class-0": 12, "class-1": 0, "class-2": 12}


def test_a_place_that_may_not_be_looked_into_is_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    path = save_site(tmp_path / "deep" / "own.npz")
    with locked(tmp_path / "deep"):
        command(path).is_refusal("own.npz: Permission denied; check the path")
    command("~nosuchuser/x").is_refusal("~nosuchuser/x: that user has no home folder here")
    command("x" * 5_000).is_refusal("File name too long", "check the path")
    monkeypatch.setattr(os, "access", lambda *words, **more: False)
    command(path).is_refusal("own.npz", "is not readable; see fedbicross site check --help")


def test_a_command_that_is_no_command_is_one_line(command: Command, folder: Path) -> None:
    command(folder, "--clases", "a,b").is_refusal(
        "No such option", "--clases", "; see fedbicross site check --help"
    )
    command().is_refusal("Missing argument 'PATH'; see fedbicross site check --help")


def test_names_of_files_that_are_no_utf_8_are_shown_and_do_not_hinder_a_run(
    command: Command, folder: Path
) -> None:
    other = folder / "train" / "class-0" / os.fsdecode(b"M\xfcller")
    (folder / "train" / "class-0" / "000.png").rename(other.with_suffix(".png"))
    other.with_suffix(".txt").write_text("x")
    answer = command(folder, "--classes", ", ".join(CLASSES))
    assert answer.status == 0 and "train/class-0/M\\udcfcller.txt" in answer.output
    assert len(site_images(folder, CLASSES, 1).train) == 36
    other.with_suffix(".png").write_text("no image")
    command(folder).is_refusal("train/class-0/M\\udcfcller.png")


def test_a_class_whose_name_is_no_utf_8_is_a_problem(command: Command, folder: Path) -> None:
    (folder / "train" / "class-0").rename(folder / "train" / os.fsdecode(b"M\xfcller"))
    command(folder).is_refusal("train/M\\udcfcller", "no text in UTF-8; rename the folder")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_report_that_cannot_be_written_is_one_line(folder: Path) -> None:
    script = Path(sys.executable).with_name("fedbicross")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [script, "site", "check", folder], stdout=full, stderr=subprocess.PIPE, text=True, timeout=300
        )
    Answer(done.returncode, "", done.stderr).is_refusal("No space left on device; make room")


# --- an .npz file


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"train_images": np.zeros((36, 32, 32), np.uint8)}, ("train_images", "32x32")),
        ({"test_images": np.zeros((12, 28, 28), np.float32)}, ("test_images is float32",)),
        ({"test_labels": np.full(12, 3)}, ("4 classes occur in its labels", "the federation has 3")),
        ({"train_labels": np.zeros(36, np.int64)}, ("training images of 1 class,",)),
        ({"train_labels": np.full(36, 3), "class_names": np.array(CLASSES)}, ("label 3 found",)),
        ({"train_labels": None}, ("missing train_labels",)),
        ({"class_names": np.array(["class-0", "class-1", "klass-2"])}, ("'klass-2'", "did you mean class-2")),
        ({"class_names": np.array(CLASSES[::-1])}, ("in the order class-2",)),
    ],
)
def test_a_problem_of_a_file_is_found(tmp_path: Path, arrays: dict[str, Any], words: tuple[str, ...]) -> None:
    problem(save_site(tmp_path / "own.npz", **arrays), *words)


def test_a_file_without_class_names_takes_the_federation_s(tmp_path: Path) -> None:
    path = save_site(tmp_path / "own.npz")
    report = checked(path)
    assert report.usable and report.classes == CLASSES
    assert report.found.images["train"] == dict.fromkeys(CLASSES, 12)
    problem(path, "3 classes occur in its labels, but the federation has 2", classes=CLASSES[:2])


def test_a_row_that_is_trained_on_and_tested_on(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (48, 28, 28), dtype=np.uint8)
    images[36 + 5] = images[17]
    path = save_site(tmp_path / "own.npz", train_images=images[:36], test_images=images[36:])
    problem(path, "1 test image also", "test 5 = train 17")


def test_both_problems_of_a_file_are_told(tmp_path: Path) -> None:
    path = save_site(
        tmp_path / "own.npz",
        train_images=np.zeros((36, 32, 32), np.uint8),
        test_labels=np.zeros(12, np.float32),
    )
    assert len(checked(path).found.problems) == 2
    path.write_bytes(path.read_bytes()[:2000])
    problem(path, "cut short")


# --- the same rules as a run's


@pytest.mark.parametrize("classes", [CLASSES, CLASSES[::-1], CLASSES[:2], (*CLASSES, "other"), ("a", "b")])
@pytest.mark.parametrize(
    "kind", ["folder", "lacking", "test alone", "names", "no names", "lacking, no names"]
)
def test_a_site_that_a_run_would_refuse_is_not_passed_and_the_other_way_round(
    tmp_path: Path, kind: str, classes: tuple[str, ...]
) -> None:
    if kind in ("folder", "lacking", "test alone"):
        path = save_folder(tmp_path / "clinic")
        for split in {"lacking": ("train", "test"), "test alone": ("train",)}.get(kind, ()):
            shutil.rmtree(path / split / "class-1")
    else:
        arrays: dict[str, Any] = {} if "no names" in kind else {"class_names": np.array(CLASSES)}
        if "lacking" in kind:
            arrays |= {"train_labels": np.arange(36) % 2, "test_labels": np.arange(12) % 2}
        path = save_site(tmp_path / "own.npz", **arrays)
    try:
        site_images(path, classes, 1)
        refused = False
    except FedBiCrossError:
        refused = True
    assert checked(path, classes).usable is not refused


def test_classes_and_channels_come_from_the_federation_s_configuration(folder: Path) -> None:
    names = {"deployment__sites": "a, b", "deployment__class_names": "class-2, class-1, class-0"}
    report = check_site(folder, tiny(**names, deployment__channels=1))
    assert report.usable and any("in the order" in line for line in report.found.notes)
    (line,) = check_site(folder, tiny(**names)).found.problems
    assert "1 channel(s), but deployment.channels = 3" in line


@pytest.mark.parametrize("few", [1, 2, 3])
def test_what_passes_is_trained_on_whichever_site_it_is_at(tmp_path: Path, few: int) -> None:
    # The first tenth of the images, in an order of each site's own, is kept for validation.
    labels = np.array([0] * (20 - few) + [1] * few)
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    classes = np.array(["a", "b"])
    path = save_site(
        tmp_path / "own.npz",
        train_images=images,
        train_labels=labels,
        test_images=None,
        test_labels=None,
        class_names=classes,
    )
    names = {"deployment__class_names": "a, b", "deployment__channels": 1}
    seen = set()
    for seed in range(6):
        config = tiny(**names, seed=seed, deployment__sites="north, south, west")
        refused = False
        for client in range(3):
            training = site_images(path, ("a", "b"), 1, seed, client).train.split(0.1)[0]
            try:
                check_trainable(training, config.client)
            except FedBiCrossError:
                refused = True
        report = check_site(path, config)
        assert report.usable is not refused, seed
        if refused:
            (line,) = report.found.problems
            for word in (
                "own.npz: 2 images of 20 would be kept for validation",
                "of the rest",
                "1 class(es)",
            ):
                assert word in line, line
        warned = any("'b'" in one and "all of them may be kept" in one for one in report.found.notes)
        assert warned is (few <= 2)
        seen.add(refused)
    assert seen == ({True, False} if few == 1 else {False})


# --- all at once, and the command


def test_all_problems_are_told_at_once_a_line_each(command: Command, folder: Path) -> None:
    (folder / "train" / "class-1" / "001.png").write_text("no image")
    Image.new("L", (30, 28)).save(folder / "test" / "class-0" / "000.png")
    (folder / "test" / "class-2" / "same.png").write_bytes(
        (folder / "train" / "class-2" / "002.png").read_bytes()
    )
    answer = command(folder, "--classes", "klass-0,class-1,class-2")
    lines = answer.error.strip().splitlines()
    assert answer.status == 2 and len(lines) == 4, answer
    assert all(line.startswith("error: ") for line in lines)
    for word in ("001.png", "000.png (30x28)", "same.png = train/class-2/002.png", "did you mean klass-0"):
        assert sum(word in line for line in lines) == 1, word
    assert "can be used." not in answer.output and "What never leaves" in answer.output


def test_names_that_look_like_markup_are_shown_as_they_are(command: Command, folder: Path) -> None:
    for split in ("train", "test"):
        (folder / split / "class-1").rename(folder / split / "[bold]x")
    answer = command(folder)
    assert answer.status == 0 and "[bold]x" in answer.output


def test_classes_come_from_a_file_or_from_text(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes("\ufeffü, or u\n\n b \r\nc".encode())
    assert read_classes(str(tmp_path / "classes.txt")) == ("ü, or u", "b", "c")
    assert read_classes("a, b ,c") == ("a", "b", "c")


@pytest.mark.parametrize(
    ("given", "words"),
    [("absent.txt", "No such file"), (".", "no file of text"), ("a,", "1 class"), ("a,b,a", "'a' twice")],
)
def test_classes_that_cannot_be_read_are_one_line(
    command: Command, folder: Path, given: str, words: str
) -> None:
    command(folder, "--classes", given).is_refusal("--classes", given, words)
    with pytest.raises(FedBiCrossError):
        read_classes(given)
