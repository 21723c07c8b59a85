"""The phantom: determinism, independence of the selection, class balance, and that its classes differ."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import RidgeClassifier

from fedbicross_flwr.data.cell_types import CELL_TYPES
from fedbicross_flwr.data.phantom import PhantomSource, class_counts
from fedbicross_flwr.data.phantom_sheet import draw_contact_sheet
from fedbicross_flwr.data.source import ImageSource, Part
from fedbicross_flwr.errors import FedBiCrossError

SMALL = PhantomSource(train=300, test=80, seed=5)
WHOLE = {"train": SMALL.images("train"), "test": SMALL.images("test")}


def test_is_an_image_source() -> None:
    assert isinstance(SMALL, ImageSource)
    assert SMALL.info.num_classes == 8 and SMALL.info.has_test
    assert WHOLE["train"].shape == (300, 28, 28, 3) and WHOLE["train"].dtype == np.uint8


@settings(max_examples=25, deadline=None)
@given(part=st.sampled_from(["train", "test"]), rows=st.lists(st.integers(0, 79), max_size=9))
def test_an_image_does_not_depend_on_which_others_are_drawn(part: Part, rows: list[int]) -> None:
    chosen = np.asarray(rows, dtype=np.int64)
    np.testing.assert_array_equal(SMALL.images(part, chosen), WHOLE[part][chosen])


def test_every_image_alone_equals_its_row_of_the_whole() -> None:
    for index in range(0, 300, 7):
        np.testing.assert_array_equal(SMALL.images("train", np.asarray([index]))[0], WHOLE["train"][index])


def test_gray_pictures_do_not_depend_on_the_selection_either() -> None:
    gray = PhantomSource(train=200, test=8, channels=1)
    whole, chosen = gray.images("train"), np.asarray([199, 0, 130])
    assert whole.shape == (200, 28, 28, 1)
    np.testing.assert_array_equal(gray.images("train", chosen), whole[chosen])


def test_same_settings_same_pixels_and_other_seed_other_pixels() -> None:
    again, other = PhantomSource(train=300, test=80, seed=5), PhantomSource(train=300, test=80, seed=6)
    rows = np.arange(20)
    np.testing.assert_array_equal(again.images("train", rows), WHOLE["train"][:20])
    np.testing.assert_array_equal(again.labels("train"), SMALL.labels("train"))
    assert not np.array_equal(other.images("train", rows), WHOLE["train"][:20])
    assert again.fingerprint() == SMALL.fingerprint() != other.fingerprint()
    assert PhantomSource(train=300, test=80, seed=5, channels=1).fingerprint() != SMALL.fingerprint()


def test_no_two_images_are_alike_and_the_parts_differ() -> None:
    flat = np.concatenate([WHOLE["train"], WHOLE["test"]]).reshape(380, -1)
    assert len(np.unique(flat, axis=0)) == 380


@given(total=st.integers(8, 20_000))
def test_class_counts_sum_up_and_follow_bloodmnist(total: int) -> None:
    counts = class_counts(total)
    weights = np.asarray([cell.train_count for cell in CELL_TYPES])
    assert counts.sum() == total and counts.min() >= 1
    assert np.abs(counts - total * weights / weights.sum()).max() < 3


def test_labels_have_these_counts_in_no_order() -> None:
    labels = SMALL.labels("train")
    np.testing.assert_array_equal(np.bincount(labels, minlength=8), class_counts(300))
    assert (np.diff(labels) < 0).sum() > 50


def test_classes_are_told_apart_but_not_trivially() -> None:
    source = PhantomSource(train=1200, test=400, seed=1)
    train, test = (source.images(part).reshape(-1, 28 * 28 * 3) / 255.0 for part in ("train", "test"))
    model = RidgeClassifier(alpha=300.0).fit(train, source.labels("train"))
    accuracy = model.score(test, source.labels("test"))
    assert 0.45 < accuracy < 0.90, accuracy


@pytest.mark.parametrize(
    ("label", "smaller"), [(name, "platelet") for name in ("basophil", "monocyte", "lymphocyte")]
)
def test_platelets_are_the_smallest(label: str, smaller: str) -> None:
    names = [cell.name for cell in CELL_TYPES]
    labels = SMALL.labels("train")

    def dark_share(name: str) -> float:
        images = WHOLE["train"][labels == names.index(name)]
        return float((images[..., 1] < 130).mean())

    assert dark_share(smaller) < 0.6 * dark_share(label)


def test_drawing_is_fast() -> None:
    start = time.process_time()
    PhantomSource(train=1000, test=8).images("train")
    assert time.process_time() - start < 5  # it takes .6 s on one core


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"train": 7}, "data.phantom_train = 7"),
        ({"test": 0}, "data.phantom_test = 0"),
        ({"channels": 2}, "data.phantom_channels = 2"),
    ],
)
def test_impossible_settings(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(FedBiCrossError, match=words):
        PhantomSource(**arguments)


def test_index_outside_is_a_programming_error() -> None:
    with pytest.raises(IndexError):
        SMALL.images("test", np.asarray([80]))
    with pytest.raises(IndexError):
        SMALL.images("test", np.asarray([-1]))


def test_contact_sheet(tmp_path: Path) -> None:
    path = tmp_path / "phantom.png"
    draw_contact_sheet(path, columns=3)
    with Image.open(path) as sheet:
        assert sheet.size == (190 + 3 * 88, 8 * 88)
    assert [file.name for file in tmp_path.iterdir()] == ["phantom.png"]
