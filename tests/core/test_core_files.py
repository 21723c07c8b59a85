"""Files are written whole or not at all, for those whom the umask lets read them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedbicross_flwr.errors import LONGEST_TEXT, FedBiCrossError, harmless
from fedbicross_flwr.files import write_bytes


@contextmanager
def umask(mask: int) -> Iterator[None]:
    former = os.umask(mask)
    try:
        yield
    finally:
        os.umask(former)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640)])
def test_who_may_read_a_file_is_the_umask_s_to_say(tmp_path: Path, mask: int, mode: int) -> None:
    with umask(mask):
        path = write_bytes(tmp_path / "new" / "model", b"weights")
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_bytes(path, b"first")
    write_bytes(path, b"second")
    assert path.read_bytes() == b"second" and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_text("kept")
    with pytest.raises(FedBiCrossError, match=r"cannot write .*folder"):
        write_bytes(tmp_path / "folder", b"no file")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "kept"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("disk full", "disk full"),
        ("two\nlines\r\n and\ttabs", "two lines and tabs"),
        ("\x1b[2J\x1b]52;c;eA==\x07 gone", "[2J ]52;c;eA== gone"),
        ("\u202eright to left", "right to left"),
        ("Universitätsklinikum 東京", "Universitätsklinikum 東京"),
        ("", ""),
    ],
)
def test_foreign_words_are_one_harmless_line(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_foreign_words_are_cut() -> None:
    assert harmless("x" * 10**6) == "x" * LONGEST_TEXT + " ..."
