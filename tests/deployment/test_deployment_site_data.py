"""A site's own images: what fits the federation, what is refused, and that no path of the site gets out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from locked_files import locked
from PIL import Image

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.config_deployment import DeploymentConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.site.check import read_classes
from fedbicross_flwr.site.data import lies_class_by_class, site_images
from fedbicross_flwr.site.identity import Site, places_of
from fedbicross_flwr.site.path_free import path_free

CLASSES = ("round", "angular", "mixed")


def save(path: Path, labels: list[int] | None = None, **arrays: Any) -> Path:
    """Write a site's file; `arrays` replaces or adds some, None leaves one out."""
    generator = np.random.default_rng(0)
    marks = np.array(labels if labels is not None else [0, 1, 2] * 8)
    content = {
        "train_images": generator.integers(0, 256, (len(marks), 28, 28, 3), dtype=np.uint8),
        "train_labels": marks,
        "test_images": generator.integers(0, 256, (6, 28, 28, 3), dtype=np.uint8),
        "test_labels": np.arange(6) % 3,
        "class_names": np.array(CLASSES),
    } | arrays
    np.savez(path, **{name: array for name, array in content.items() if array is not None})
    return path


def test_images_and_labels_are_taken_as_they_lie(tmp_path: Path) -> None:
    images = site_images(save(tmp_path / "a.npz"), CLASSES, 3)
    assert images.train.labels.tolist() == [0, 1, 2] * 8
    assert set(images.tests) == {"local"} and len(images.tests["local"]) == 6
    assert images.train.images.shape == (24, 3, 28, 28) and images.train.images.dtype == torch.float32


def test_a_site_may_lack_a_class_if_it_says_what_its_labels_mean(tmp_path: Path) -> None:
    images = site_images(save(tmp_path / "a.npz", [0, 2] * 9), CLASSES, 3)
    assert set(images.train.labels.tolist()) == {0, 2}
    nameless = save(tmp_path / "b.npz", [0, 1] * 9, class_names=None, test_labels=np.arange(6) % 2)
    with pytest.raises(FedBiCrossError, match="2 classes occur in its labels, but the federation has 3"):
        site_images(nameless, CLASSES, 3)


def test_a_class_s_name_may_have_its_accents_apart(tmp_path: Path) -> None:
    """As a file from macOS has it, or a configuration that was written there."""
    together, apart = ("r\u00f6nd", "angular", "mixed"), ("ro\u0308nd", "angular", "mixed")
    for classes, names in ((together, apart), (apart, together)):
        path = save(tmp_path / "a.npz", class_names=np.array(names))
        agreed = DeploymentConfig(class_names=", ".join(classes)).classes
        assert agreed == together and read_classes(", ".join(classes)) == together
        assert set(site_images(path, agreed, 3).train.labels.tolist()) == {0, 1, 2}
    with pytest.raises(FedBiCrossError, match=rf"{together[0]}.* twice"):
        read_classes(", ".join({*together, *apart}))


def test_a_site_without_test_images_has_no_protocol(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", test_images=None, test_labels=None)
    assert site_images(path, CLASSES, 3).tests == {}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "names": (
        {"class_names": np.array(["round", "edgy", "mixed"])},
        "class_names is round, edgy, mixed, but",
    ),
    "order": ({"class_names": np.array(CLASSES[::-1])}, "names and order must be the same"),
    "comma": (
        {"class_names": np.array(["round, small", *CLASSES[1:]])},
        "class_names has 'round, small', but in deployment.class_names a comma ends a name",
    ),
    "label": ({"train_labels": np.array([0, 1, 3] * 8)}, "label 3 found, but the federation's 3 classes"),
    "channels": (
        {
            "train_images": np.zeros((24, 28, 28), np.uint8),
            "test_images": np.zeros((6, 28, 28), np.uint8),
        },
        r"the images have 1 channel\(s\), but deployment.channels = 3",
    ),
    "size": ({"train_images": np.zeros((24, 32, 32, 3), np.uint8)}, "32x32 pixels"),
    "missing": ({"train_labels": None}, "missing train_labels"),
}


@pytest.mark.parametrize("kind", BAD)
def test_data_that_do_not_fit_are_refused_in_one_line_that_names_the_file(tmp_path: Path, kind: str) -> None:
    change, reason = BAD[kind]
    path = save(tmp_path / "ours.npz", **change)
    with pytest.raises(FedBiCrossError, match=f"ours.npz: .*{reason}") as caught:
        site_images(path, CLASSES, 3)
    assert "\n" not in str(caught.value)


def paint(folder: Path, *places: str, size: int = 28) -> Path:
    """Write two images into every ``split/class``."""
    generator = np.random.default_rng(1)
    for place in places:
        (folder / place).mkdir(parents=True)
        for number in range(2):
            pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / place / f"cell {number}.png")
    return folder


def test_a_folder_s_labels_are_those_of_the_federation_whatever_their_order(tmp_path: Path) -> None:
    folder = paint(tmp_path / "a", "train/angular", "train/round", "test/round")
    images = site_images(folder, CLASSES, 3)
    assert sorted(images.train.labels.tolist()) == [0, 0, 1, 1]
    assert images.tests["local"].labels.tolist() == [0, 0]


def test_images_that_lie_class_by_class_are_mixed_and_the_same_way_each_time(tmp_path: Path) -> None:
    # The first of them serve as validation images: those must not be of one class alone.
    path = save(tmp_path / "a.npz", [0] * 20 + [1] * 20 + [2] * 20)
    first, again, other = (site_images(path, CLASSES, 3, seed=seed).train for seed in (0, 0, 1))
    assert torch.equal(first.labels, again.labels) and torch.equal(first.images, again.images)
    assert not torch.equal(first.labels, other.labels)
    assert len(set(first.labels[:12].tolist())) > 1 and first.labels.bincount().tolist() == [20, 20, 20]


def test_only_blocks_of_classes_count_as_lying_class_by_class() -> None:
    assert lies_class_by_class(np.array([0, 0, 1, 1, 2, 2, 0, 0, 1, 2]))
    assert not lies_class_by_class(np.array([0, 1, 2] * 6))
    assert not lies_class_by_class(np.zeros(9, dtype=np.int64))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda folder: paint(folder, "train/round", "train/anguler"),
            "train/anguler: is none of .*did you mean",
        ),
        (lambda folder: paint(folder, "test/round"), "no folder 'train' in it"),
        (lambda folder: paint(folder, "train/round", size=30), "30x30 pixels"),
        (lambda folder: folder, "no such file or folder; set data-path"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], reason: str
) -> None:
    with pytest.raises(FedBiCrossError, match=reason) as caught:
        site_images(make(tmp_path / "ours"), CLASSES, 3)
    assert "ours" not in path_free(str(caught.value), {"the site's data": tmp_path / "ours"})


# --- who a site is


def config(**changes: Any) -> RunConfig:
    flat = {"deployment.sites": "north, south", "deployment.class_names": "a, b"}
    return RunConfig.from_flat(flat | {f"deployment.{key}": value for key, value in changes.items()})


def test_a_site_s_number_is_the_place_of_its_name(tmp_path: Path) -> None:
    site = Site.of(config(), {"site-name": "south", "data-path": "~/x", "store-path": str(tmp_path / "s")})
    assert (site.name, site.client, site.store) == ("south", 1, tmp_path / "s")
    assert site.data == Path("~/x").expanduser()
    usual = Site.of(config(), {"site-name": "north", "data-path": "/x"})
    assert usual.store == Path("~/.fedbicross/north").expanduser()


def test_a_store_that_is_read_only_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site("north", 0, tmp_path / "x", tmp_path / "store")
    assert site.open_store().is_dir() and not list(site.store.iterdir())

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FedBiCrossError, match=r"cannot write .*store.*Read-only file system"):
        site.open_store()


# --- paths


def test_a_path_is_replaced_up_to_its_end_though_its_name_has_spaces_and_colons(tmp_path: Path) -> None:
    file = tmp_path / "data" / "train" / "Ward 7: Jane Doe, 1962.png"
    file.parent.mkdir(parents=True)
    file.touch()
    places = {"the site's data": tmp_path / "data", "the site's store": tmp_path / "store"}
    said = path_free(f"{file}: is 30x30 pixels; see {tmp_path}/store/local.safetensors", places)
    assert said == "the site's data: is 30x30 pixels; see the site's store"


def test_a_relative_path_is_made_absolute_and_a_linked_one_is_known_by_both_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    site = Site.of(config(), {"site-name": "north", "data-path": "link", "store-path": "store"})
    assert (site.data, site.store) == (tmp_path / "link", tmp_path / "store")
    for text in (f"{tmp_path}/real/a.png: is bad", f"{tmp_path}/link/a.png: is bad"):
        assert path_free(text, {"the site's data": Path("link")}) == "the site's data: is bad"


def test_other_absolute_paths_go_and_explanations_stay() -> None:
    said = path_free("cannot read '/home/jane/x.png'; expected train/<class>/*.png (n, 28) or a/b", {})
    assert said == "cannot read 'a path of the site'; expected train/<class>/*.png (n, 28) or a/b"


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="ascii", exclude_characters="/\x00"), min_size=3, max_size=20))
def test_the_name_of_no_file_that_is_there_gets_out(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = tmp_path_factory.mktemp("data")
    if not name.strip(" .") or name in ("the", "site", "data", "bad"):
        return
    file = folder / f"patient-{name}"
    file.touch()
    said = path_free(f"cannot read {file}: it is bad", {"the site's data": folder})
    assert "patient-" not in said and said.startswith("cannot read the site's data")


NAMES = ("0 Mueller Hans 1950.png", "Ward 7: Jane Doe, 1962.png", "O'Brien (2), ward 7.png", "a\nb c.png")


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_file_that_nobody_may_look_at_does_not_get_out(tmp_path: Path, name: str) -> None:
    file = tmp_path / "data" / "train" / "a" / name
    file.parent.mkdir(parents=True)
    file.touch()
    places = {"the site's data": tmp_path / "data"}
    quote = '"' if "'" in name else "'"
    with locked(file.parent, 0o400):
        said = path_free(f"{file}: cannot be read (Permission denied); remove it", places)
        quoted = path_free(f"Permission denied: {str(file)!r}; remove it", places)
    assert said == "the site's data: cannot be read (Permission denied); remove it"
    assert quoted == f"Permission denied: {quote}the site's data{quote}; remove it"


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_file_that_was_removed_meanwhile_does_not_get_out(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    (folder / "train").mkdir(parents=True)
    places = {"the site's data": folder}
    assert path_free(f"{folder}/train/{name}: is bad", places) == "the site's data: is bad"
    assert path_free(f"{folder}/train/{name} is bad", places).startswith("the site's data")
    for place in (folder / "train", Path("/home/jane/my images")):
        said = path_free(f"there is {place}/{name} and this: it is bad", places)
        assert said in (f"there is {word}: it is bad" for word in ("the site's data", "a path of the site"))


def test_places_are_those_of_the_node_s_configuration(tmp_path: Path) -> None:
    places = places_of({"data-path": str(tmp_path), "site-name": "north"})
    assert places == {
        "the site's data": tmp_path,
        "the site's store": Path("~/.fedbicross/north"),
    }
    home = Path("~/.fedbicross/north").expanduser()
    assert path_free(f"{home}/local.safetensors: is bad", places) == "the site's store: is bad"
    assert places_of({}) == {} and "the site's store" not in places_of({"site-name": "../../x"})


# --- settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sites": "north, north"}, "deployment.sites names 'north' twice"),
        ({"sites": "north, ../south"}, "deployment.sites names '../south'"),
        ({"class_names": ""}, "deployment.class_names = '' names 0 class"),
        ({"class_names": "a, a"}, "deployment.class_names names 'a' twice"),
        ({"channels": 2}, "deployment.channels = 2"),
        ({"min_sites": 3}, "deployment.min_sites = 3 is more than the 2 site"),
        ({"sites": "north", "min_sites": 1}, "clustering.clusters = 2 is more than the 1 site"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FedBiCrossError, match=words):
        config(**changes)


def test_an_upload_depends_on_classes_and_channels_and_not_on_who_else_is_there() -> None:
    one = config().upload_fingerprint()
    assert config(sites="north, south, west", min_sites=1, hold_back=True).upload_fingerprint() == one
    assert config(class_names="a, b, c").upload_fingerprint() != one
    assert config(channels=1).upload_fingerprint() != one
    assert config(sites="north, south, west").fingerprint() != config().fingerprint()
    assert config(upload_window=5.0, min_sites=1).fingerprint() == config().fingerprint()


def test_a_simulation_s_fingerprint_knows_nothing_of_sites_nor_a_deployment_s_of_partitions() -> None:
    plain = RunConfig()
    assert not any(key.startswith("deployment.") for key in plain.shaping())
    assert not any(key.startswith(("data.", "partition.")) for key in config().shaping())
    assert plain.num_clients == 5 and config().num_clients == 2
