"""MedMNIST sets by name: the registry, the search path, the checksum, and the download."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from small_arrays import make_arrays

from fedbicross_flwr.data import medmnist
from fedbicross_flwr.data.npz import packed_files
from fedbicross_flwr.data.registry import available_datasets, open_source
from fedbicross_flwr.errors import FedBiCrossError


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        del format, args


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stand-in for BreastMNIST on a web server of this process; the table of facts gives its MD5."""
    folder = tmp_path / "server"
    folder.mkdir()
    file = folder / "breastmnist.npz"
    np.savez(file, **make_arrays({"train": 20, "val": 4, "test": 8}, classes=2, channels=None))  # type: ignore[arg-type]
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder)))
    facts: dict[str, Any] = dict(medmnist.medmnist_info()["breastmnist"])
    facts["MD5"] = hashlib.md5(file.read_bytes()).hexdigest()
    facts["url"] = f"http://127.0.0.1:{server.server_port}/{file.name}?download=1"
    table = {**medmnist.medmnist_info(), "breastmnist": facts}
    monkeypatch.setattr(medmnist, "medmnist_info", lambda: table)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Thread(target=server.serve_forever, daemon=True).start()
    yield file
    server.shutdown()
    server.server_close()


def test_available() -> None:
    names = available_datasets()
    assert names[:2] == ("phantom", "site") and len(names) == 2 + 11
    assert {"bloodmnist", "tissuemnist", "retinamnist", "breastmnist"} <= {*names}
    assert not {"chestmnist", "organmnist3d"} & {*names}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "bloodmnst",
            r"data.name = 'bloodmnst' is unknown \(did you mean bloodmnist.*known are phantom, site",
        ),
        ("chestmnist", "chestmnist' is a multi-label.* set; .* one class an image"),
        ("nodulemnist3d", "nodulemnist3d' is a set of volumes"),
        ("site", "data.name = 'site' needs data.path"),
    ],
)
def test_names_that_cannot_be_opened(name: str, words: str) -> None:
    with pytest.raises(FedBiCrossError, match=words):
        open_source(name)


def test_a_path_beside_a_medmnist_name() -> None:
    with pytest.raises(FedBiCrossError, match="exclude each other"):
        open_source("bloodmnist", path=Path("own.npz"))


def test_from_root(published: Path) -> None:
    source = open_source("breastmnist", root=published.parent, download=False)
    assert source.info.class_names == ("malignant", "normal, benign")
    assert source.info.channels == 1 and source.info.licence == "CC BY 4.0"
    assert len(source.labels("train")) == 24
    assert medmnist.medmnist_info()["breastmnist"]["MD5"].startswith(source.fingerprint())


def test_from_home_when_root_has_it_not(published: Path, tmp_path: Path) -> None:
    home = tmp_path / "home" / ".medmnist"
    home.mkdir(parents=True)
    published.rename(home / "breastmnist.npz")
    assert len(open_source("breastmnist", root=tmp_path / "other", download=False).labels("test")) == 8


def test_another_md5(published: Path) -> None:
    with published.open("ab") as file:
        file.write(b"x")
    with pytest.raises(FedBiCrossError, match=r"breastmnist.npz: MD5 is .*, expected .*delete it"):
        open_source("breastmnist", root=published.parent)


def test_download_goes_to_root_and_leaves_nothing_else(published: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    source = open_source("breastmnist", root=root)
    assert [file.name for file in root.iterdir()] == ["breastmnist.npz"]
    assert len(source.images("test")) == 8


def test_failed_download_says_what_to_put_where(published: Path, tmp_path: Path) -> None:
    published.unlink()
    root = tmp_path / "root"
    with pytest.raises(FedBiCrossError) as raised:
        open_source("breastmnist", root=root)
    line = str(raised.value)
    md5 = medmnist.medmnist_info()["breastmnist"]["MD5"]
    for word in (
        "could not be downloaded",
        "404",
        "/breastmnist.npz (MD5",
        md5,
        str(root / "breastmnist.npz"),
    ):
        assert word in line
    assert "\n" not in line and not list(root.iterdir())


def test_downloading_off(published: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FedBiCrossError, match=r"downloading is off; fetch .*put it at .*root/breastmnist.npz"
    ):
        open_source("breastmnist", root=tmp_path / "root", download=False)


@pytest.mark.parametrize("download", [True, False])
def test_an_absent_set_is_told_with_those_that_are_there(
    published: Path, tmp_path: Path, download: bool
) -> None:
    root, home = published.parent, tmp_path / "home" / ".medmnist"
    published.unlink()
    with pytest.raises(FedBiCrossError, match=r"; present: `phantom`, which needs no file$"):
        open_source("breastmnist", root=root, download=download)
    home.mkdir(parents=True)
    for file in (root / "pathmnist.npz", home / "bloodmnist.npz", home / "pathmnist.npz", home / "notes.txt"):
        file.touch()
    words = "; present: bloodmnist.npz, pathmnist.npz; `phantom`, which needs no file$"
    with pytest.raises(FedBiCrossError, match=words) as raised:
        open_source("breastmnist", root=root, download=download)
    line = str(raised.value)
    assert f"put it at {root / 'breastmnist.npz'};" in line and "\n" not in line


def test_of_many_files_eight_are_named(tmp_path: Path) -> None:
    for number in range(11):
        (tmp_path / f"set-{number:02d}.npz").touch()
    (tmp_path / "a\nb.npz").touch()
    first = ", ".join(["a b.npz", *(f"set-{number:02d}.npz" for number in range(7))])
    assert packed_files(tmp_path, tmp_path / "none") == f"{first} and 4 more"


def test_the_table_comes_without_the_slow_import() -> None:
    code = (
        "import sys; from fedbicross_flwr.data.registry import available_datasets as a; a();"
        "print(sorted({'medmnist', 'pandas', 'torchvision', 'datasets', 'flwr_datasets'} & {*sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
