"""Files are written whole or not at all, for those whom the umask lets read them."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedbicross_flwr.errors import LONGEST_TEXT, FedBiCrossError, harmless
from fedbicross_flwr.files import (
    LEFT_AFTER,
    check_apart,
    expanded,
    is_temporary,
    remove_leftovers,
    shown,
    unusable,
    write_bytes,
    written,
)


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


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path: Path) -> None:
    kept = ["model", ".model.tmp", ".model.0123456.tmp", "model.01234567.tmp", ".model.01234567.tmp.x"]
    old, new = tmp_path / "uploads" / ".model.01234567.tmp", tmp_path / ".model.89abcdef.tmp"
    (tmp_path / "uploads").mkdir()
    for path in (old, new, *(tmp_path / name for name in kept)):
        path.write_text("half")
        os.utime(path, (time.time() - 2 * LEFT_AFTER,) * 2)
    os.utime(new)
    remove_leftovers(tmp_path)
    assert not old.exists() and {path.name for path in tmp_path.iterdir()} == {*kept, new.name, "uploads"}


def test_the_name_of_a_file_that_is_not_whole_is_known(tmp_path: Path) -> None:
    with written(tmp_path / "model") as temporary:
        assert is_temporary(temporary.name)


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_text("kept")
    with pytest.raises(FedBiCrossError, match=r"cannot write .*folder"):
        write_bytes(tmp_path / "folder", b"no file")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "kept"]


def test_a_pipe_or_device_is_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link", Path("/dev/null")):
        with pytest.raises(FedBiCrossError, match=f"cannot write {path}: .*no ordinary file; give the name"):
            write_bytes(path, b"x")
    assert pipe.is_fifo() and (tmp_path / "link").is_symlink() and Path("/dev/null").is_char_device()


def test_a_link_stays_one_and_the_file_that_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(Path("real") / "model")
    for content in (b"first", b"second"):  # at first there is no such file
        assert write_bytes(link, content) == link
        assert link.is_symlink() and (tmp_path / "real" / "model").read_bytes() == content
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "model", "real"]


def test_the_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    write_bytes(path, b"first")
    synced: list[tuple[bytes, bytes]] = []
    sync = os.fsync

    def watched(handle: int) -> None:
        sync(handle)
        synced.append((Path(f"/proc/self/fd/{handle}").read_bytes(), path.read_bytes()))

    monkeypatch.setattr(os, "fsync", watched)
    write_bytes(path, b"second")
    assert synced == [(b"second", b"first")] and path.read_bytes() == b"second"


def test_a_home_that_nobody_has_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jane")
    assert expanded(Path("~/x")) == Path("/home/jane/x") and expanded(Path("x/~a")) == Path("x/~a")
    with pytest.raises(FedBiCrossError, match=r"^~nosuchuser/x: that user has no home folder here; write"):
        expanded(Path("~nosuchuser/x"))


def test_what_can_be_no_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for path in (tmp_path / "a", tmp_path / "a" / "below", Path("zero\0byte")):
        with pytest.raises(FedBiCrossError, match=r"no such path can be \(.*\); give another"):
            expanded(path)


def test_a_result_is_not_written_over_what_it_is_made_from(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    own.write_text("read")
    other.write_text("of yesterday")
    (tmp_path / "link").symlink_to(own)
    (tmp_path / "hard").hardlink_to(own)
    (tmp_path / "nowhere").symlink_to("absent")
    for out in (own, tmp_path / "link", tmp_path / "hard", tmp_path / ".." / tmp_path.name / "own"):
        with pytest.raises(FedBiCrossError, match=f"{out} is read by this command and would be overwritten"):
            check_apart(out, [other, own])
    for out in (other, tmp_path / "new", tmp_path / "nowhere"):
        check_apart(out, [own, tmp_path / "absent", tmp_path / "link"])


def test_what_the_system_refuses_is_one_line() -> None:
    denied = PermissionError(errno.EACCES, "Permission denied", "/a/b")
    assert unusable(denied, Path("/a")).startswith("/a/b: Permission denied; check the path, and who may")
    full = OSError(errno.ENOSPC, "No space left on device")
    assert unusable(full, Path("/a")) == "/a: No space left on device; make room"
    assert unusable(full) == "No space left on device; make room"
    assert len(unusable(OSError(errno.ENAMETOOLONG, "File name too long", "x" * 10**6))) < 800


def test_names_are_shown_on_one_line_whatever_their_bytes() -> None:
    assert shown("ü 東\n\x1b[2J" + os.fsdecode(b"M\xfcller")) == "ü 東\\n\\x1b[2JM\\udcfcller"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("disk full", "disk full"),
        ("two\nlines\r\n and\ttabs", "two lines and tabs"),
        ("\x1b[2J\x1b]52;c;eA==\x07 gone", "[2J ]52;c;eA== gone"),
        ("\u202eright to left", "right to left"),
        ("Universitätsklinikum 東京", "Universitätsklinikum 東京"),
        ("", ""),
    ],
)
def test_foreign_words_are_one_harmless_line(text: str, line: str) -> None:
    assert harmless(text) == line


def test_foreign_words_are_cut() -> None:
    assert harmless("x" * 10**6) == "x" * LONGEST_TEXT + " ..."
