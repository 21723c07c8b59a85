"""One process works in a run's folder; the next one waits a little for it to end, and then says so."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from site_runs import deploy, deployed, no_report
from small_runs import TINY

from fedbicross_flwr.centre.server import SiteServer
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.in_process import run_in_process
from fedbicross_flwr.runs import opening as run_opening
from fedbicross_flwr.runs.opening import sole_use

BUSY = "another process works on the run in "
HOLDER = """
import sys
from pathlib import Path
from fedbicross_flwr.runs.opening import sole_use
with sole_use(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a folder until it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_process_is_refused_until_the_first_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    SiteServer.open_sites(deployed(folder), folder)
    before = files(folder)
    with holder(folder) as process:
        monkeypatch.setattr(run_opening, "PATIENCE", 0.3)
        with pytest.raises(FedBiCrossError, match=BUSY) as caught:
            deploy(deployed(folder), [])
        with pytest.raises(FedBiCrossError, match=BUSY):
            run_in_process(RunConfig.from_flat(TINY), folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
        assert files(folder) == {**before, "lock": b""}, "who is refused writes nothing"
        # A former server that is dying is waited for.
        start = time.monotonic()
        threading.Timer(0.5, process.kill).start()
        with sole_use(folder, 60.0):
            assert time.monotonic() - start > 0.3


def test_a_folder_cannot_be_used_twice_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_report(monkeypatch)
    monkeypatch.setattr(run_opening, "PATIENCE", 0.2)
    config, folder = RunConfig.from_flat(TINY), tmp_path / "run"
    refused: list[str] = []

    def after_client() -> None:
        if not refused:
            with pytest.raises(FedBiCrossError, match=BUSY) as caught:
                run_in_process(config, folder)
            refused.append(str(caught.value))

    run_in_process(config, folder, after_client)
    assert len(refused) == 1
    with sole_use(folder, 0.0):
        assert (folder / "run.json").exists()


def test_nothing_is_left_where_no_run_was_begun(tmp_path: Path) -> None:
    with sole_use(tmp_path / "new"):
        assert (tmp_path / "new" / "lock").exists()
    (tmp_path / "empty").mkdir()
    with sole_use(tmp_path / "empty"):
        pass
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with sole_use(tmp_path / "thesis"):
        assert not (tmp_path / "thesis" / "lock").exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["chapter.tex", "empty", "thesis"]


def test_where_no_lock_can_be_the_folder_s_own_refusal_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FedBiCrossError, match=r"cannot write to .*file/run: Not a directory"):
        run_in_process(RunConfig.from_flat(TINY), tmp_path / "file" / "run")


def test_a_file_system_without_locks_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with sole_use(tmp_path / "run", 0.0), sole_use(tmp_path / "run", 0.0):
        pass
