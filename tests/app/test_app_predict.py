"""``fedbicross predict`` and ``fedbicross card``: the file holds what the model says."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import Answer, checksums, flip_byte, read_json, tiny

from fedbicross_flwr import cli
from fedbicross_flwr.artifacts import digest, load_model, read_tensors, save_model
from fedbicross_flwr.calibration import validation_temperature
from fedbicross_flwr.client import ClientImages, second_round, upload_key
from fedbicross_flwr.compute import Compute, client_work
from fedbicross_flwr.data.source import normalise
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.evaluation import METRICS, score
from fedbicross_flwr.labelled_images import LabelledImages, predict_logits
from fedbicross_flwr.models import ModelSpec, StateDict, build_model, load_state, state_of
from fedbicross_flwr.progress import Silent
from fedbicross_flwr.shipment import Shipment
from fedbicross_flwr.site import prediction
from fedbicross_flwr.site.store import SiteStore
from fedbicross_flwr.training import ClientTask, LocalModel

SPECS = {1: ModelSpec("resnet18", 3, 1, 2, "small"), 3: ModelSpec("resnet18", 3, 3, 2, "small")}
NAMES = ("a, or b", "ü|x", "c")
CPU = Compute(torch.device("cpu"))

Command = Callable[..., Answer]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """``fedbicross`` with some words."""

    def run(*words: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["fedbicross", *map(str, words)])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return Answer(left.value.code or 0, captured.out, captured.err)

    return run


def lively(channels: int = 1, seed: int = 1) -> StateDict:
    """Untrained weights whose answers differ from image to image."""
    state = state_of(build_model(SPECS[channels], seed))
    return state | {"fc.weight": 40 * state["fc.weight"]}


def save(folder: Path, channels: int = 1, **facts: str) -> Path:
    path = folder / "model.safetensors"
    save_model(path, SPECS[channels], lively(channels), NAMES, **facts)
    return path


def pixels(count: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    shape = (count, 28, 28) if channels == 1 else (count, 28, 28, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def gray_folder(path: Path, count: int = 3) -> Path:
    path.mkdir()
    for index, image in enumerate(pixels(count)):
        Image.fromarray(image).save(path / f"{index}.png")
    return path


def table(text: str) -> tuple[list[str], list[str], list[str], np.ndarray]:
    """The heading, the names, the classes and the probabilities of a CSV."""
    heading, *rows = csv.reader(io.StringIO(text))
    values = np.array([[np.float32(cell) for cell in row[2:]] for row in rows])
    return heading, [row[0] for row in rows], [row[1] for row in rows], values


# --- what is written is what the model says


def test_a_folder_s_images_are_answered_file_by_file(command: Command, tmp_path: Path) -> None:
    folder, images = tmp_path / "new", pixels(5, 3)
    (folder / "deep" / "er").mkdir(parents=True)
    names = ["a.png", "b.BMP", "deep/er/c.tiff", "deep/x, y.bmp", "z.tif"]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "a.png").write_text("no image")
    (folder / ".b.png").write_text("no image")
    model = save(tmp_path, 3, temperature="2.5")
    out = tmp_path / "made" / "predictions.csv"
    answer = command("predict", "--model", model, "--images", folder, "--out", out, "--device", "cpu")
    said = f"note: {folder}: 1 file passed over, without the ending of an image, such as notes.txt\n"
    assert (answer.status, answer.output, answer.error) == (0, "", said)
    heading, files, classes, values = table(out.read_text(encoding="utf-8"))
    assert heading == ["file", "predicted", *(f"probability of {name}" for name in NAMES)]
    assert files == names
    expected = load_model(model, "cpu").predict(images)
    assert expected.std(0).min() > 1e-3
    np.testing.assert_array_equal(values, expected)
    assert classes == [NAMES[index] for index in expected.argmax(1)]
    # An image of another kind is not passed over, or it would go unanswered.
    Image.fromarray(images[0]).save(folder / "z.webp")
    command("predict", "--model", model, "--images", folder, "--out", out, "--device", "cpu").is_refusal(
        "z.webp", "not an image of the kinds BMP, JPEG, PNG, TIFF"
    )


def test_an_array_is_answered_row_by_row_on_standard_output(command: Command, tmp_path: Path) -> None:
    model, images = save(tmp_path), pixels(4)
    np.savez(tmp_path / "own.npz", images=images, test_images=pixels(2, seed=1))
    answer = command("predict", "--model", model, "--images", tmp_path / "own.npz", "--device", "cpu")
    heading, rows, _, values = table(answer.output)
    assert answer.status == 0 and answer.error == ""
    assert heading[0] == "index" and rows == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(values, load_model(model, "cpu").predict(images))
    np.savez(tmp_path / "own.npz", test_images=images[:3, ..., None], test_labels=np.zeros(3, np.uint8))
    answer = command("predict", "--model", model, "--images", tmp_path / "own.npz", "--device", "cpu")
    np.testing.assert_array_equal(table(answer.output)[3], values[:3])


def test_chunks_join_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = save(tmp_path), pixels(7)
    np.savez(tmp_path / "own.npz", images=images)
    monkeypatch.setattr(prediction, "CHUNK", 3)
    _, rows, _, values = table(prediction.predictions(model, tmp_path / "own.npz", "cpu").decode())
    assert rows == [str(index) for index in range(7)]
    np.testing.assert_allclose(values, load_model(model, "cpu").predict(images), atol=1e-6)


def test_gray_files_among_colour_ones_are_read_as_rgb_as_in_a_site_s_folder(tmp_path: Path) -> None:
    folder, model = gray_folder(tmp_path / "new", 1), save(tmp_path, 3)
    Image.fromarray(pixels(1, 3)[0]).save(folder / "1.png")
    _, _, _, values = table(prediction.predictions(model, folder, "cpu").decode())
    as_rgb = np.repeat(pixels(1)[..., None], 3, axis=3)
    np.testing.assert_array_equal(
        values[:1], load_model(model, "cpu").predict(np.concatenate([as_rgb, pixels(1, 3)]))[:1]
    )


def test_linked_folders_are_followed_and_circles_are_not(command: Command, tmp_path: Path) -> None:
    folder, model = gray_folder(tmp_path / "new", 1), save(tmp_path)
    (gray_folder(tmp_path / "elsewhere", 2) / "scan.dcm").write_text("no image")
    (folder / "slide").symlink_to("../elsewhere")
    (folder / "again").symlink_to(".")
    (tmp_path / "elsewhere" / "back").symlink_to("../new")
    answer = command("predict", "--model", model, "--images", "new", "--device", "cpu")
    assert answer.status == 0 and table(answer.output)[1] == ["0.png", "slide/0.png", "slide/1.png"]
    assert answer.error.startswith("note: new: 1 file passed over") and "slide/scan.dcm\n" in answer.error


# --- the temperature of a personal model


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site's folder after a second round that trains for no epoch: 150 images, 15 of them for validation.

    Four validation answers are wrong. The classes have 97, 31 and 22 images, and 13, 8 and 6 to test on.
    """
    state = lively()
    train, test = normalise(pixels(150)[..., None]), normalise(pixels(27, seed=5)[..., None])
    first = predict_logits(load_state(SPECS[1], state), train[:15], CPU).argmax(1)
    first[:4] = (first[:4] + 1) % 3
    rest = torch.tensor([97, 31, 22]) - first.bincount(minlength=3)
    labels = torch.cat([first, torch.repeat_interleave(torch.arange(3), rest)])
    tests = torch.repeat_interleave(torch.arange(3), torch.tensor([13, 8, 6]))
    images = ClientImages(LabelledImages(train, labels), {"local": LabelledImages(test, tests)}, "f")
    config = tiny(personal__epochs=0, data__phantom_channels=1)
    task, folder = ClientTask(0, SPECS[1], config, CPU, Silent()), tmp_path_factory.mktemp("sites") / "here"
    store = SiteStore(folder, NAMES)
    store.save_local(LocalModel(state, 1, (0.5,)), SPECS[1], upload_key(images, task))
    second_round(images, Shipment(state, None), task, store)
    with client_work(config.runtime):  # With other threads the last digits are others.
        expected = validation_temperature(images.train, state, task)
    assert load_model(folder / "personal.safetensors", "cpu").temperature == expected != 1.0
    return folder


def test_a_personal_model_s_probabilities_are_those_of_its_tempered_logits(site: Path) -> None:
    model, images = load_model(site / "personal.safetensors", "cpu"), pixels(6, seed=3)
    logits = predict_logits(model.model, normalise(images[..., None]), CPU).numpy()
    for temperature, found in (
        (model.temperature, model.predict(images)),
        (1.0, model.predict(images, calibrated=False)),
    ):
        powers = np.exp(logits / temperature)
        np.testing.assert_allclose(found, powers / powers.sum(1, keepdims=True), rtol=1e-4)
    assert np.abs(model.predict(images) - model.predict(images, calibrated=False)).max() > 0.01


def test_scores_stay_those_of_the_uncalibrated_model(site: Path) -> None:
    labels = np.repeat(np.arange(3), [13, 8, 6])
    model, kept = load_model(site / "personal.safetensors", "cpu"), read_json(site / "scores.json")["scores"]
    images = pixels(27, seed=5)
    plain, calibrated = (
        score(labels, model.predict(images, calibrated=way).astype(np.float64)) for way in (False, True)
    )
    assert kept["personal"]["local"] == pytest.approx(plain, abs=1e-6)
    assert abs(kept["personal"]["local"]["ece"] - calibrated["ece"]) > 1e-3
    assert kept["personal"]["local"]["accuracy"] == calibrated["accuracy"]


def test_predict_takes_a_site_s_folder_and_its_temperature(
    command: Command, site: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "own.npz", images=pixels(3))
    answer = command("predict", "--model", site, "--images", "own.npz", "--device", "cpu")
    expected = load_model(site / "personal.safetensors", "cpu").predict(pixels(3))
    np.testing.assert_array_equal(table(answer.output)[3], expected)


def test_a_model_file_without_the_fact_has_temperature_one(tmp_path: Path) -> None:
    model = load_model(save(tmp_path), "cpu")
    assert model.temperature == 1.0
    np.testing.assert_array_equal(model.predict(pixels(3)), model.predict(pixels(3), calibrated=False))


@pytest.mark.parametrize("written", ["0", "-1.0", "nan", "inf", "warm"])
def test_a_temperature_that_is_none_is_refused(tmp_path: Path, written: str) -> None:
    with pytest.raises(FedBiCrossError, match=rf"model\.safetensors.*{re.escape(written)}"):
        load_model(save(tmp_path, temperature=written))


# --- mistakes


def test_a_model_that_is_not_there_is_named(command: Command, tmp_path: Path) -> None:
    images = gray_folder(tmp_path / "new")
    command("predict", "--model", "absent", "--images", images).is_refusal("absent", "no such file")
    command("predict", "--model", images, "--images", images).is_refusal("no personal.safetensors")
    command("predict", "--model", images / "0.png", "--images", images).is_refusal("cannot read", "0.png")
    model = save(tmp_path)
    flip_byte(model)
    command("predict", "--model", model, "--images", images).is_refusal("model.safetensors is damaged")


def wrong_size(folder: Path) -> None:
    Image.new("L", (30, 28)).save(folder / "1.png")


def deep_pixels(folder: Path) -> None:
    Image.fromarray(np.zeros((28, 28), np.uint16)).save(folder / "1.png")


def several_pages(folder: Path) -> None:
    Image.new("L", (28, 28)).save(folder / "1.tif", save_all=True, append_images=[Image.new("L", (28, 28))])


def no_image(folder: Path) -> None:
    (folder / "1.png").write_text("no image")


def cut_short(folder: Path) -> None:
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:200])


def in_colour(folder: Path) -> None:
    Image.new("RGB", (28, 28)).save(folder / "1.png")


def dangling(folder: Path) -> None:
    (folder / "1.png").unlink()
    (folder / "1.png").symlink_to("absent.png")


def pipe(folder: Path) -> None:
    (folder / "1.png").unlink()
    os.mkfifo(folder / "1.png")


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "notes.txt").write_text("no image")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (wrong_size, ("1.png", "30x28", "28x28")),
        (deep_pixels, ("1.png", "mode I;16", "8 bits")),
        (several_pages, ("1.tif", "holds 2 images")),
        (no_image, ("1.png", "not an image")),
        (cut_short, ("1.png", "cannot be read as an image")),
        (dangling, ("1.png", "cannot be read as an image", "No such file")),
        (pipe, ("1.png", "pipe or device")),
        (in_colour, ("new", "in colour, 3 channels", "takes images grayscale, 1 channel")),
        (empty, ("new", "no image in it")),
    ],
)
def test_a_folder_that_the_model_cannot_answer_is_one_line_and_leaves_the_old_file(
    command: Command, tmp_path: Path, spoil: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    folder, model, out = gray_folder(tmp_path / "new"), save(tmp_path), tmp_path / "out.csv"
    out.write_text("of yesterday")
    spoil(folder)
    command("predict", "--model", model, "--images", folder, "--out", out).is_refusal(*words)
    assert out.read_text() == "of yesterday"


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": pixels(2)}, ("no array 'images' or 'test_images'", "found pictures")),
        ({"images": pixels(2).astype(np.float32)}, ("images is float32",)),
        ({"images": pixels(2)[:, :20]}, ("shape (2, 20, 28)", "28")),
        ({"images": pixels(2)[0]}, ("shape (28, 28)",)),
        ({"images": pixels(0)}, ("no image in images",)),
        ({"images": pixels(2, 3)}, ("in colour, 3 channels", "grayscale, 1 channel")),
        ({"images": np.array([{}], object)}, ("never unpickled",)),
    ],
)
def test_a_file_that_the_model_cannot_answer_is_one_line(
    command: Command, tmp_path: Path, arrays: dict[str, Any], words: tuple[str, ...]
) -> None:
    np.savez(tmp_path / "own.npz", **arrays)
    model = save(tmp_path)
    command("predict", "--model", model, "--images", tmp_path / "own.npz").is_refusal("own.npz", *words)


def test_a_path_of_nothing_is_one_line(command: Command, tmp_path: Path) -> None:
    model = save(tmp_path)
    command("predict", "--model", model, "--images", "absent").is_refusal("absent", "no such file")
    command("predict", "--model", model, "--images", model).is_refusal(
        "model.safetensors", "not an .npz file"
    )
    images = gray_folder(tmp_path / "new")
    command("predict", "--model", model, "--images", images, "--device", "gpu").is_refusal(
        "--device = 'gpu'", "cpu"
    )


def test_an_output_that_cannot_be_written_leaves_what_was_there(command: Command, tmp_path: Path) -> None:
    folder, model, out = gray_folder(tmp_path / "new"), save(tmp_path), tmp_path / "out.csv"
    out.write_text("of yesterday")
    before = checksums(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond 20 bytes, as if the disk were full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        answer = command("predict", "--model", model, "--images", folder, "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    answer.is_refusal("cannot write", "out.csv")
    command("predict", "--model", model, "--images", folder, "--out", folder).is_refusal(
        "cannot write", "new"
    )
    below = out / "deeper.csv"
    command("predict", "--model", model, "--images", folder, "--out", below).is_refusal("cannot write")
    assert checksums(tmp_path) == before


def test_no_result_is_written_over_what_it_is_made_from(command: Command, site: Path, tmp_path: Path) -> None:
    here, folder = Path(shutil.copytree(site, tmp_path / "here")), gray_folder(tmp_path / "new")
    np.savez(tmp_path / "own.npz", images=pixels(2))
    (tmp_path / "link.npz").symlink_to("own.npz")
    before = checksums(tmp_path)
    for images, out in (
        ("own.npz", "own.npz"),
        ("own.npz", "link.npz"),
        ("own.npz", "here/personal.safetensors"),
        ("new", "new/../new/1.png"),
    ):
        command("predict", "--model", here, "--images", images, "--out", out).is_refusal(out, "overwritten")
    for out in ("here/personal.safetensors", "here/scores.json"):
        command("card", "--model", here, "--out", out).is_refusal(out, "overwritten")
    assert checksums(tmp_path) == before
    for _ in range(2):  # What is no image may lie among them, and be written anew.
        assert command("predict", "--model", here, "--images", folder, "--out", "new/a.csv").status == 0


# --- the card


def test_the_card_says_what_the_folder_holds_and_no_class_counts(
    command: Command, site: Path, tmp_path: Path
) -> None:
    out = tmp_path / "card.md"
    answer = command("card", "--model", site, "--out", out)
    assert (answer.status, answer.output, answer.error) == (0, "", "")
    text = out.read_text(encoding="utf-8")
    model = load_model(site / "personal.safetensors", "cpu")
    accuracy = read_json(site / "scores.json")["scores"]["personal"]["local"]["accuracy"]
    for said in (
        "not a medical device",
        f"temperature | {model.temperature:.4g}",
        digest(read_tensors(site / "personal.safetensors")[0]),
        f"| local | this model | 27 | {100 * accuracy:.1f} |",
        f"PyTorch {torch.__version__}",
        "- a, or b\n- ü\\|x\n- c\n",
    ):
        assert said in text, said
    undated = re.sub(r"\d{4}-\d\d-\d\d", "", text)
    numbers = set(re.findall(r"(?<![\w.])\d+(?![\w.%])", undated))
    assert "27" in numbers and not numbers & {"97", "31", "22", "13", "8", "6", "150", "135", "15"}, numbers
    assert "{{" not in text and "{%" not in text
    assert command("card", "--model", site / "personal.safetensors").output == text


def test_the_card_of_a_model_without_scores_says_so(tmp_path: Path, command: Command) -> None:
    model = save(tmp_path, key="another", temperature="1.0")
    (tmp_path / "scores.json").write_text('{"key": "k", "scores": {"personal": {}}}')
    answer = command("card", "--model", model)
    assert answer.status == 0
    assert "No scores of this model" in answer.output and "are not calibrated" in answer.output
    (tmp_path / "scores.json").write_text("[]")
    assert "No scores of this model" in command("card", "--model", model).output


@pytest.mark.parametrize(
    "damaged",
    [
        [],
        {"personal": 3},
        {"personal": {"local": []}},
        {"personal": {"local": {"accuracy": 0.5}}},
        {"personal": {"local": dict.fromkeys(METRICS, "0.5")}},
        {"personal": {"local": dict.fromkeys(METRICS, 40.0)}},
        {"personal": {"local": dict.fromkeys(METRICS, -0.5)}},
        {"personal": {"local": dict.fromkeys(METRICS, 0.25)}},  # a quarter of an image
    ],
)
def test_damaged_scores_are_not_on_the_card(command: Command, tmp_path: Path, damaged: object) -> None:
    model = save(tmp_path, key="k", temperature="1.0")
    whole = {"personal": {"local": {**dict.fromkeys(METRICS, 0.25), "samples": 4.0}}}
    (tmp_path / "scores.json").write_text(json.dumps({"key": "k", "scores": whole}))
    assert "| 25.0 | 25.0 |" in command("card", "--model", model).output
    (tmp_path / "scores.json").write_text(json.dumps({"key": "k", "scores": damaged}))
    answer = command("card", "--model", model)
    assert (answer.status, answer.error) == (0, "") and "No scores of this model" in answer.output


@pytest.mark.parametrize(
    ("facts", "missing"),
    [({}, "no key and no temperature"), ({"key": "k", "chosen_epoch": "1"}, "no temperature")],
    ids=["cluster", "local"],
)
def test_there_is_no_card_of_a_model_that_is_not_personal(
    command: Command, tmp_path: Path, facts: dict[str, str], missing: str
) -> None:
    model = save(tmp_path, 1, **facts)
    said = "model.safetensors is no personal model", missing, "give a site's folder"
    command("card", "--model", model).is_refusal(*said)


def test_a_card_of_nothing_is_one_line(tmp_path: Path, command: Command) -> None:
    command("card", "--model", tmp_path).is_refusal("no personal.safetensors")
    command("card", "--model", tmp_path / "absent").is_refusal("no such file")


def test_a_fresh_process_knows_the_endings_of_images() -> None:
    source = "from fedbicross_flwr.site.prediction import readable_endings as r; assert '.png' in r()"
    subprocess.run([sys.executable, "-c", source], check=True, cwd=Path(__file__).parents[2])
