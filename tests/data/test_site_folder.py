"""A site's folder of images: order, channels, formats, and each mistake's line."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from locked_files import locked
from PIL import EpsImagePlugin, Image

from fedbicross_flwr.data.folder import FolderSource
from fedbicross_flwr.data.site import open_site
from fedbicross_flwr.data.source import ImageSource
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.site.findings import Findings, look_at_folder

CLASSES = ("benign", "malignant")


def _picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (28, 28)) -> Image.Image:
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """3 training, 1 validation and 2 test images a class, in two formats, and a file that is no image."""
    root = tmp_path / "clinic"
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                suffix = "BMP" if number == 2 else "png"
                seed = 100 * label + 10 * count + number
                _picture(seed).save(root / split / name / f"{number}.{suffix}")
    (root / "train" / "benign" / "notes.txt").write_text("not an image")
    (root / "train" / ".cache").mkdir()
    return root


def test_content_and_order(folder: Path) -> None:
    source = open_site(folder)
    assert isinstance(source, ImageSource)
    assert source.info.name == "clinic" and source.info.class_names == CLASSES
    assert source.info.channels == 3 and source.info.has_test
    np.testing.assert_array_equal(source.labels("train"), [0, 0, 0, 1, 1, 1, 0, 1])
    np.testing.assert_array_equal(source.labels("test"), [0, 0, 1, 1])
    np.testing.assert_array_equal(source.images("train")[4], np.asarray(_picture(131)))
    np.testing.assert_array_equal(source.images("train", np.asarray([7, 2]))[0], np.asarray(_picture(110)))
    assert source.images("test").shape == (4, 28, 28, 3)


def test_gray_only_if_every_file_is(folder: Path) -> None:
    for file in folder.rglob("*.[pB][nM][gP]"):
        with Image.open(file) as image:
            image.convert("L").save(file)
    gray = open_site(folder)
    assert gray.info.channels == 1 and gray.images("train").shape == (8, 28, 28, 1)
    _picture(1).save(folder / "test" / "benign" / "0.png")
    assert open_site(folder).info.channels == 3


def test_without_test(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    source = open_site(folder)
    assert not source.info.has_test and source.images("test").shape == (0, 28, 28, 3)


def test_fingerprint_follows_content_and_names(folder: Path) -> None:
    first = open_site(folder).fingerprint()
    assert open_site(folder).fingerprint() == first
    file = folder / "val" / "benign" / "0.png"
    file.rename(file.with_name("9.png"))
    renamed = open_site(folder).fingerprint()
    _picture(77).save(file.with_name("9.png"))
    assert len({first, renamed, open_site(folder).fingerprint()}) == 3


def test_names_of_files_need_not_be_utf_8(folder: Path) -> None:
    file = folder / "val" / "benign" / "0.png"
    plain = open_site(folder).fingerprint()
    digest = hashlib.sha256()
    for part in ("test", "train"):
        for other, _ in cast(FolderSource, open_site(folder)).files[part]:
            content = other.read_bytes()
            digest.update(f"{other.relative_to(folder).as_posix()}|{len(content)}|".encode() + content)
    assert plain == digest.hexdigest()[:16]  # on which kept models depend
    file.rename(file.with_name(os.fsdecode(b"M\xfcller.png")))
    assert open_site(folder).fingerprint() != plain
    assert len(open_site(folder).images("train")) == 8


def _fail(folder: Path, words: str) -> None:
    with pytest.raises(FedBiCrossError, match=words) as raised:
        open_site(folder).images("train")
    assert "\n" not in str(raised.value)


def test_image_of_another_size(folder: Path) -> None:
    _picture(0, size=(32, 30)).save(folder / "train" / "benign" / "1.png")
    _fail(folder, r"benign/1.png: is 32x30 pixels; resize the images to 28x28")


def test_sixteen_bits(folder: Path) -> None:
    Image.fromarray(np.zeros((28, 28), np.uint16)).save(folder / "train" / "benign" / "1.png")
    _fail(folder, r"1.png: has pixels of mode I.*8 bits")


def deep_png(colour_type: int, channels: int) -> bytes:
    """A PNG of 16 bits a channel, as microscopes write them; Pillow itself writes none in colour."""
    row = b"\0" + (np.arange(28 * channels) % 4096).astype(">u2").tobytes()

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 28, 28, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(28 * row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("colour_type", "channels", "mode"), [(2, 3, "RGB;16"), (4, 2, "LA;16"), (6, 4, "RGBA;16")]
)
def test_sixteen_bits_in_colour(folder: Path, colour_type: int, channels: int, mode: str) -> None:
    """Pillow opens them as if they had 8, and keeps the upper half of each value."""
    (folder / "train" / "benign" / "1.png").write_bytes(deep_png(colour_type, channels))
    _fail(folder, rf"1.png: has pixels of mode {mode}.*8 bits")
    found = Findings()
    look_at_folder(folder, found, None)
    assert any("without 8 bits" in one and f"1.png (mode {mode}" in one for one in found.problems)


@pytest.mark.parametrize("name", ["1.tif", "9.png"])
def test_a_file_of_several_images(folder: Path, name: str) -> None:
    """Pages of a TIFF, or an animated PNG: Pillow opens them at the first one."""
    file = folder / "train" / "benign" / name
    _picture(1).save(file, save_all=True, append_images=[_picture(2), _picture(3)])
    _fail(folder, rf"benign/{name}: holds 3 images, and one a file is read; save each")
    found = Findings()
    look_at_folder(folder, found, None)
    assert found.problems == [
        f"1 file with several images in it; save each that is meant in its own file: train/benign/{name} (3)"
    ]


def test_pages_that_are_cut_short(folder: Path) -> None:
    file = folder / "train" / "benign" / "1.tif"
    _picture(1).save(file, save_all=True, append_images=[_picture(2)])
    whole = file.read_bytes()
    for length in range(0, len(whole), 97):
        file.write_bytes(whole[:length])
        _fail(folder, r"1.tif: (cannot be read as an image|holds 2 images)")


def test_an_image_that_is_cut_short_is_found_before_it_is_needed(folder: Path) -> None:
    file = folder / "test" / "malignant" / "1.png"
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(FedBiCrossError, match=r"test/malignant/1.png: cannot be read as an image"):
        open_site(folder)


def test_unreadable_image(folder: Path) -> None:
    file = folder / "train" / "malignant" / "1.png"
    file.write_bytes(b"no image at all")
    _fail(
        folder,
        r"malignant/1.png: cannot be read as an image \(not an image of the kinds BMP, JPEG, PNG, TIFF\)",
    )


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\nshowpage\n%%EOF\n"


def test_no_image_is_handed_to_another_program(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *words, **more: pytest.fail("it was called"))
    file = folder / "train" / "malignant" / "1.png"
    file.write_bytes(EPS)
    _fail(folder, r"malignant/1.png: cannot be read as an image \(not an image of the kinds")
    found = Findings()
    look_at_folder(folder, found, None)
    assert len(found.problems) == 1 and "train/malignant/1.png" in found.problems[0]


@pytest.mark.parametrize("place", ["", "train", "val/benign", "test/benign"])
@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_a_folder_that_may_not_be_read(folder: Path, place: str, mode: int) -> None:
    with locked(folder / place, mode):
        _fail(folder, f"clinic.*{place}.*Permission denied; check the path, and who may|cannot be read as an")


def test_a_class_whose_name_is_no_utf_8(folder: Path) -> None:
    (folder / "train" / "benign").rename(folder / "train" / os.fsdecode(b"M\xfcller"))
    _fail(folder, "train/M.ller: the name of this class is no text in UTF-8; rename the folder")


def test_a_class_is_the_same_in_either_form_of_unicode(folder: Path) -> None:
    """On macOS a folder's name may have its accents apart, and in another split it may not."""
    together, apart = "b\u00e9nin", "be\u0301nin"
    for split, name in (("train", apart), ("val", together), ("test", apart)):
        (folder / split / "benign").rename(folder / split / name)
    source = open_site(folder)
    assert source.info.class_names == (together, "malignant")
    np.testing.assert_array_equal(source.labels("train"), [0, 0, 0, 1, 1, 1, 0, 1])
    found = Findings()
    assert look_at_folder(folder, found, (together, "malignant")) == (together, "malignant")
    assert not found.problems and found.images["val"] == {together: 1, "malignant": 1}


def test_two_folders_of_one_name(folder: Path) -> None:
    for name in ("b\u00e9nin", "be\u0301nin"):
        (folder / "val" / name).mkdir()
    said = r"val: two folders have the name 'b\u00e9nin', written in two ways of Unicode; move the images"
    _fail(folder, said)
    found = Findings()
    look_at_folder(folder, found, None)
    assert len(found.problems) == 1 and "two folders have the name" in found.problems[0]


def test_truncated_image(folder: Path) -> None:
    file = folder / "train" / "malignant" / "1.png"
    file.write_bytes(file.read_bytes()[:800])
    _fail(folder, r"malignant/1.png: cannot be read as an image")


def test_empty_folder(tmp_path: Path) -> None:
    _fail(tmp_path, "no folder 'train' in it")
    (tmp_path / "train").mkdir()
    _fail(tmp_path, "no class folder in it")


def test_a_single_class(folder: Path) -> None:
    shutil.rmtree(folder / "train" / "malignant")
    _fail(folder, r"one class folder \('benign'\) in it; at least two")


def test_class_that_training_has_not(folder: Path) -> None:
    (folder / "test" / "malignant").rename(folder / "test" / "unclear")
    _fail(folder, r"test/unclear: class 'unclear' has no folder in .*train")


def test_class_without_images(folder: Path) -> None:
    for split in ("train", "val"):
        for file in (folder / split / "malignant").iterdir():
            file.unlink()
    (folder / "train" / "malignant" / "scan.dcm").write_bytes(b"x")
    _fail(folder, r"train/malignant: no image in it .*\.png")
