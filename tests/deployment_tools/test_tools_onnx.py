"""The ONNX file answers as the model does, calibration included, or there is no file."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tool_runs import Fedbicross

from fedbicross_flwr.artifacts import digest, load_model, save_model
from fedbicross_flwr.models import ModelSpec, StateDict, build_model, state_of
from fedbicross_flwr.site import onnx_export

NAMES = ("a, or b", "ü|x", "c")
SPECS = {
    1: ModelSpec("resnet18", 3, 1, 2, "imagenet"),
    3: ModelSpec("resnet18", 3, 3, 2, "small"),
}
"""Both kinds of stem and of images."""

ABSENT = [name for name in onnx_export.PACKAGES if importlib.util.find_spec(name) is None]
installed = pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fedbicross:
    return Fedbicross(monkeypatch, capsys)


def lively(channels: int) -> StateDict:
    """Untrained weights whose answers differ from image to image."""
    state = state_of(build_model(SPECS[channels], 1))
    return state | {"fc.weight": 40 * state["fc.weight"]}


def save(folder: Path, channels: int, temperature: float = 2.5) -> Path:
    path = folder / "model.safetensors"
    save_model(path, SPECS[channels], lively(channels), NAMES, temperature=repr(temperature))
    return path


def pixels(count: int, channels: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, 28, 28, channels), dtype=np.uint8)


@installed
@pytest.mark.parametrize("channels", [1, 3])
def test_the_file_answers_uint8_images_with_calibrated_probabilities(
    channels: int, tmp_path: Path, command: Fedbicross
) -> None:
    import onnxruntime

    model, out = save(tmp_path, channels), tmp_path / "made" / "model.onnx"
    answer = command("export-onnx", "--model", model, "--out", out)
    assert (answer.status, answer.error) == (0, "") and "64 images" in answer.output
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    classifier = load_model(model, "cpu")
    for count in (1, 3, 40):
        images = pixels(count, channels)
        (found,) = session.run(["probabilities"], {"images": images})
        np.testing.assert_allclose(found, classifier.predict(images), atol=1e-5)
    plain = classifier.predict(images, calibrated=False)
    assert np.abs(found - plain).max() > 0.01 and found.std(0).max() > 0.01
    (taken,) = session.get_inputs()
    assert (taken.type, taken.shape[1:]) == ("tensor(uint8)", [28, 28, channels])
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["class_names"]) == list(NAMES)
    assert said["sha256_of_arrays"] == digest(lively(channels)) and said["temperature"] == "2.5"
    # Neither the paths of this machine nor the code that made the graph.
    content = out.read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content and b"forward" not in content
    assert b"site-packages" not in content and str(tmp_path).encode() not in content


@installed
def test_a_file_that_answers_otherwise_is_not_put_in_place(
    tmp_path: Path, command: Fedbicross, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = save(tmp_path, 3), tmp_path / "model.onnx"
    (tmp_path / "other").mkdir()
    wrong = onnx_export.serialised(load_model(save(tmp_path / "other", 3, temperature=2.4), "cpu"))
    out.write_text("of yesterday")
    monkeypatch.setattr(onnx_export, "serialised", lambda classifier: wrong)
    command("export-onnx", "--model", model, "--out", out).is_refusal("differ from PyTorch", "model.onnx")
    assert out.read_text() == "of yesterday"
    nothing = np.full((1, 3), np.nan, np.float32)
    monkeypatch.setattr(onnx_export, "runner", lambda content: lambda images: nothing.repeat(len(images), 0))
    command("export-onnx", "--model", model, "--out", out).is_refusal("differ from PyTorch")
    monkeypatch.setattr(onnx_export, "runner", lambda content: lambda images: nothing)
    command("export-onnx", "--model", model, "--out", out).is_refusal("differ from PyTorch")
    assert out.read_text() == "of yesterday"


@installed
def test_the_model_is_not_overwritten(tmp_path: Path, command: Fedbicross) -> None:
    model = save(tmp_path, 3)
    before = model.read_bytes()
    command("export-onnx", "--model", model, "--out", model).is_refusal(str(model), "would be overwritten")
    assert model.read_bytes() == before


def test_absent_packages_are_named(
    tmp_path: Path, command: Fedbicross, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> importlib.machinery.ModuleSpec | None:
        return None if name in ("onnxscript", "onnxruntime") else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    answer = command("export-onnx", "--model", save(tmp_path, 3), "--out", tmp_path / "model.onnx")
    answer.is_refusal("onnxscript, onnxruntime", "uv pip install -e '.[onnx]' in the checkout")
    assert not (tmp_path / "model.onnx").exists()


@installed
def test_a_model_of_nothing_is_one_line(tmp_path: Path, command: Fedbicross) -> None:
    out = tmp_path / "model.onnx"
    command("export-onnx", "--model", tmp_path, "--out", out).is_refusal("no personal.safetensors")
    command("export-onnx", "--model", tmp_path / "no", "--out", out).is_refusal("no such file")
