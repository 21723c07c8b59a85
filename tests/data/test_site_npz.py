"""A site's .npz file: what is read equals what was saved, in little memory; each mistake has its line."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_arrays import Arrays, make_arrays

from fedbicross_flwr.data.npz import read_chunks, read_header, read_rows
from fedbicross_flwr.data.packed import PackedSource
from fedbicross_flwr.data.registry import open_source
from fedbicross_flwr.data.site import open_site
from fedbicross_flwr.data.source import ImageSource
from fedbicross_flwr.errors import FedBiCrossError

Save = Callable[..., Path]


@pytest.fixture
def arrays() -> Arrays:
    return make_arrays({"train": 30, "val": 9, "test": 12})


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save arrays as ``site.npz``; keyword arguments replace arrays, None drops one."""

    def write(arrays: Arrays, **changes: NDArray[Any] | None) -> Path:
        content = {name: array for name, array in {**arrays, **changes}.items() if array is not None}
        path = tmp_path / "site.npz"
        np.savez_compressed(path, allow_pickle=True, **content)
        return path

    return write


def test_train_is_train_and_val_merged(arrays: Arrays, save: Save) -> None:
    path = save(arrays)
    source = open_site(path)
    with np.load(path) as packed:
        images = np.concatenate([packed["train_images"], packed["val_images"]])
        labels = np.concatenate([packed["train_labels"], packed["val_labels"]])[:, 0]
        np.testing.assert_array_equal(source.images("train"), images)
        np.testing.assert_array_equal(source.images("test"), packed["test_images"])
    np.testing.assert_array_equal(source.labels("train"), labels)
    assert source.labels("train").dtype == np.int64
    assert isinstance(source, ImageSource)
    assert (source.info.name, source.info.channels, source.info.num_classes) == ("site", 3, 3)
    assert source.info.class_names == ("class 0", "class 1", "class 2") and source.info.has_test


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.integers(0, 4_999), max_size=40))
def test_rows_are_those_of_np_load(rows: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    # 5,000 images are four chunks, so selections cross their borders; made once for all examples.
    path = tmp_path_factory.getbasetemp() / "rows.npz"
    if not path.exists():
        np.savez(path, **make_arrays({"train": 3_900, "val": 1_100}, channels=None))  # type: ignore[arg-type]
    with np.load(path) as packed:
        whole = np.concatenate([packed["train_images"], packed["val_images"]])[..., None]
    chosen = np.asarray(rows, dtype=np.int64)
    np.testing.assert_array_equal(open_site(path).images("train", chosen), whole[chosen])


@pytest.mark.parametrize("save_as", [np.savez, np.savez_compressed])
def test_memory_stays_near_the_selection(tmp_path: Path, save_as: Any) -> None:
    path = tmp_path / "large.npz"
    save_as(path, **make_arrays({"train": 20_000, "val": 20_000}, channels=1))  # 31 MB of images
    chosen = np.random.default_rng(1).permutation(40_000)[:1_000]
    source = open_site(path)
    source.images("train", chosen[:5])
    tracemalloc.start()
    images = source.images("train", chosen)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert images.nbytes == 784_000
    assert peak < images.nbytes + 5e6, f"{peak / 1e6:.1f} MB"


def test_fortran_order_is_read_too(arrays: Arrays, save: Save) -> None:
    turned = np.asfortranarray(arrays["train_images"])
    source = open_site(save(arrays, train_images=turned))
    chosen = np.asarray([29, 3, 3, 35])
    expected = np.concatenate([turned, arrays["val_images"]])[chosen]
    np.testing.assert_array_equal(source.images("train", chosen), expected)


def test_labels_flat_and_wide_and_named(arrays: Arrays, save: Save) -> None:
    path = save(
        arrays,
        train_labels=arrays["train_labels"][:, 0].astype(">i4"),
        class_names=np.asarray(["benign", "atypical", "malignant"]),
    )
    source = open_site(path)
    np.testing.assert_array_equal(source.labels("train")[:30], arrays["train_labels"][:, 0])
    assert source.info.class_names == ("benign", "atypical", "malignant")


def test_without_test_and_val(arrays: Arrays, save: Save) -> None:
    source = open_site(save(make_arrays({"train": 10}, channels=None)))
    assert not source.info.has_test and source.info.channels == 1
    assert source.labels("test").shape == (0,) and source.images("test").shape == (0, 28, 28, 1)
    assert len(source.labels("train")) == 10


def test_an_empty_test_split_is_none(arrays: Arrays, save: Save) -> None:
    source = open_site(save(make_arrays({"train": 10, "test": 0}, channels=None)))
    assert not source.info.has_test and source.labels("test").shape == (0,)


def test_labels_are_the_callers_own(arrays: Arrays, save: Save) -> None:
    source = open_site(save(arrays))
    source.labels("test")[:] = 9
    assert source.labels("test").max() == 2


def test_fingerprint_follows_the_content(arrays: Arrays, save: Save) -> None:
    first = open_site(save(arrays)).fingerprint()
    assert open_site(save(arrays)).fingerprint() == first
    changed = arrays["test_images"].copy()
    changed[0, 0, 0, 0] ^= 1
    assert open_site(save(arrays, test_images=changed)).fingerprint() != first
    assert len(first) == 16 and int(first, 16) >= 0


def test_registry_opens_it(arrays: Arrays, save: Save) -> None:
    path = save(arrays)
    assert isinstance(open_source("site", path=path), PackedSource)
    assert isinstance(open_source("phantom", path=path), PackedSource)


def _labels(*values: int, dtype: Any = np.int64) -> NDArray[Any]:
    return np.resize(np.asarray(values, dtype=dtype), 30)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_images": None}, "missing train_images; found test_images, test_labels, train_labels"),
        ({"test_labels": None}, "missing test_labels"),
        ({"val_images": None}, "missing val_images"),
        ({"train_images": np.zeros((30, 28, 28, 3))}, "train_images is float64; save the images as uint8"),
        ({"train_images": np.zeros((30, 32, 32, 3), np.uint8)}, "32x32 pixels; resize them to 28x28"),
        ({"train_images": np.zeros((30, 28, 28, 4), np.uint8)}, r"shape \(30, 28, 28, 4\)"),
        ({"train_images": np.zeros((30, 784), np.uint8)}, r"shape \(30, 784\)"),
        ({"train_images": np.zeros((30, 28, 28), np.uint8)}, "differ in channels .train_images has 1, val"),
        ({"train_images": np.zeros((29, 28, 28, 3), np.uint8)}, "29 train_images but 30 train_labels"),
        ({"train_labels": np.uint8(1)}, "30 train_images but a single train_labels"),
        ({"train_labels": _labels(0, 1, 2, dtype=np.float32)}, "train_labels is float32; labels must be int"),
        ({"train_labels": _labels(0, 1, -1)}, "train_labels holds the label -1"),
        ({"train_labels": _labels(0, 1, 2**64 - 1, dtype=np.uint64)}, "train_labels holds the label 18446"),
        ({"test_labels": _labels(0, 2**64 - 1, dtype=np.uint64)[:12]}, "test_labels holds the label 18446"),
        ({"train_labels": np.zeros((30, 2), np.int64)}, "one label an image"),
        ({"train_labels": _labels(0, 1, 2, 4)}, "class 3 has no training image, though 5 classes"),
        ({"train_labels": _labels(0, 1, 2, 2_000_000_000)}, "class 3 has no training image"),
        ({"test_labels": _labels(0, 1, 2, 3)[:12]}, "test label 3 does not occur in the training data"),
        ({"class_names": np.asarray(["a", "b", "c", "d"])}, r"class 3 \(d\) has no training image"),
        ({"class_names": np.asarray(["a", "b"])}, "training label 2 but class_names lists 2 classes"),
        ({"class_names": np.asarray([1, 2, 3])}, "class_names is int64"),
        ({"class_names": np.asarray(["a", "b", "a"])}, "class_names has 'a' twice; name every class once"),
        ({"class_names": np.asarray(["a", "", "c"])}, "class_names has '', which is no name"),
        ({"class_names": np.asarray(["a", "\ud800", "c"])}, r"class_names has '\\ud800', which is no name"),
        ({"class_names": np.full(3, 0x110000, np.uint32).view("<U1")}, "class_names cannot be read"),
        (
            {"train_images": np.full(30, None)},
            "train_images' holds Python objects, which are never unpickled",
        ),
        ({"class_names": np.asarray([{}, 1], dtype=object)}, "class_names' holds Python objects"),
        (
            {f"{s}_labels": np.zeros(n, np.int64) for s, n in (("train", 30), ("val", 9), ("test", 12))},
            "single class; at least two",
        ),
        (
            {
                "train_images": np.zeros((0, 28, 28, 3), np.uint8),
                "train_labels": np.zeros(0, np.int64),
                "val_images": None,
                "val_labels": None,
            },
            "no training image",
        ),
    ],
)
def test_each_mistake_has_its_line(
    changes: dict[str, NDArray[Any] | None], words: str, arrays: Arrays, save: Save
) -> None:
    path = save(arrays, **changes)
    with pytest.raises(FedBiCrossError, match=words) as raised:
        open_site(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(FedBiCrossError, match=r"pipe\.npz is a pipe or device"):
        open_site(tmp_path / "pipe.npz")


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(FedBiCrossError, match=r"none.npz: no such file or folder; give an .npz file"):
        open_site(tmp_path / "none.npz")
    text = tmp_path / "text.npz"
    text.write_text("not a zip")
    with pytest.raises(FedBiCrossError, match=r"text.npz cannot be read .*numpy.savez_compressed"):
        open_site(text)
    with pytest.raises(FedBiCrossError, match=r"no such file or folder; its folder has text.npz; give an"):
        open_site(tmp_path / "none.npz")
    single = tmp_path / "single.npy"
    np.save(single, np.zeros(3))
    with pytest.raises(FedBiCrossError, match="cannot be read"):
        open_site(single)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_file(share: float, arrays: Arrays, save: Save) -> None:
    path = save(arrays)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FedBiCrossError, match=r"cannot be read .*cut short"):
        open_site(path)


def test_damaged_bytes_inside_are_noticed_when_read(tmp_path: Path) -> None:
    path = tmp_path / "site.npz"
    np.savez_compressed(path, **make_arrays({"train": 400}))  # type: ignore[arg-type]
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(FedBiCrossError, match=r"array 'train_images' cannot be read"):
        open_site(path).images("train")


@pytest.mark.filterwarnings("error")
def test_whatever_is_damaged_in_a_header_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "site.npz"
    np.savez(path, **make_arrays({"train": 30}, channels=None))  # type: ignore[arg-type]
    content = path.read_bytes()
    start = content.index(b"\x93NUMPY")
    refused = 0
    for position in range(start, start + 128):
        for bit in range(0, 8, 3):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                read_header(path, "train_images")
            except FedBiCrossError as error:
                assert "train_images' cannot be read" in str(error) and "\n" not in str(error)
                refused += "its header is damaged" in str(error)
    assert refused > 100


def test_chunks_are_the_rows_in_their_order(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3_000, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "c.npz", images=images, turned=np.asfortranarray(images))
    for name in ("images", "turned"):
        for step, sizes in ((0, [1337, 1337, 326]), (2_000, [2_000, 1_000]), (5_000, [3_000])):
            chunks = list(read_chunks(tmp_path / "c.npz", name, step))
            assert [len(chunk) for chunk in chunks] == sizes
            np.testing.assert_array_equal(np.concatenate(chunks), images)


def test_an_array_shorter_than_its_header_says(arrays: Arrays, tmp_path: Path) -> None:
    path = tmp_path / "site.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            data = buffer.getvalue()
            archive.writestr(f"{name}.npy", data[:-1000] if name == "train_images" else data)
    with pytest.raises(FedBiCrossError, match="where its header announces"):
        open_site(path)
    out = np.empty((1, 28, 28, 3), np.uint8)
    with pytest.raises(FedBiCrossError, match="ends early"):
        read_rows(path, "train_images", np.asarray([29]), out, np.asarray([0]))
