"""``fedbicross status`` tells what is in the folder, at every point of a run."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from locked_files import locked
from rich.console import Console
from small_runs import tiny as small
from tool_runs import Fedbicross, finished

from fedbicross_flwr.centre import roster
from fedbicross_flwr.centre.roster import Roster, SiteEntry
from fedbicross_flwr.progress import EventLog
from fedbicross_flwr.runs.folder import FAILED, RunFolder
from fedbicross_flwr.status.display import show_status, watch_status
from fedbicross_flwr.status.run_status import STAGES, read_status

OPENED = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fedbicross:
    return Fedbicross(monkeypatch, capsys)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run that a test may take back to an earlier point."""
    return Path(shutil.copytree(finished(), tmp_path / "run"))


def shown(path: Path, now: datetime | None = None) -> str:
    """What is printed, lines unbroken."""
    console = Console(width=200, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(show_status(read_status(path), now))
    return captured.get()


def line_of(text: str, start: str) -> str:
    return next(line.strip() for line in text.splitlines() if line.strip().startswith(start))


def take_back(run: Path, *patterns: str) -> None:
    """Remove files, as if they had not been written yet."""
    for pattern in patterns:
        for path in run.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def site(name: str, client: int, state: str, minutes: int | None = None, **more: Any) -> SiteEntry:
    """A site that sent its model some minutes after the window was opened."""
    sent = None if minutes is None else (OPENED + timedelta(minutes=minutes)).isoformat()
    return SiteEntry(name, client, state, uploaded=sent, **more)


def deployment(path: Path, stage: str, *sites: SiteEntry, **more: Any) -> Path:
    """A run's folder as the server of a deployment has it."""
    names = ",".join(one.site for one in sites)
    config = small(deployment__sites=names, deployment__class_names="a,b", clustering__clusters=1,
                   deployment__min_sites=1)  # fmt: skip
    RunFolder.open(path, config, "data")
    windows: dict[str, Any] = {
        "opened": OPENED.isoformat(),
        "upload_window": 7200.0,
        "personal_window": 3600.0,
    }
    Roster(path / "roster.json", list(sites), stage, **windows | more).write()
    return path


# --- simulations


def test_a_finished_run(command: Fedbicross) -> None:
    answer = command("status", finished())
    assert (answer.status, answer.error) == (0, "")
    assert "run: finished" in answer.output and "left:" not in answer.output
    assert "3 of 3 clients have sent a model, 3 have their personal one" in answer.output
    clusters = json.loads((finished() / "clustering.json").read_text())["assignment"]
    for client, cluster in enumerate(clusters):
        assert line_of(answer.output, f"client-{client:02d}").split()[1:3] == ["done", str(cluster)]
    assert read_status(finished()).ended


def test_a_run_in_its_first_round(run: Path) -> None:
    take_back(
        run, "run.json", "models", "clustering.json", "sites", "progress.jsonl", "uploads/client-0[12]*"
    )
    log = EventLog(run / "progress.jsonl", interval=0.0)
    log.advance("training", 2, 2, client=0)
    log.advance("training", 1, 2, client=1)
    log.note("client 2 is left out: it has no images")
    text = shown(run)
    assert STAGES["uploads"] in text.splitlines()[0]
    assert "1 of 3 clients has sent a model, 0 have their personal one" in text
    assert line_of(text, "left:") == (
        "left: 2 models from client-01, client-02; the method; 3 personal models at client-00, client-01, "
        "client-02; scores and report"
    )
    assert line_of(text, "training").split() == ["training", "75%"]
    assert "note: client 2 is left out: it has no images" in text
    assert line_of(text, "client-00").split()[1] == "uploaded"
    assert line_of(text, "client-01").split()[1] == "expected"


def test_a_run_in_the_method_and_in_the_second_round(run: Path) -> None:
    take_back(run, "run.json", "models", "clustering.json", "sites", "progress.jsonl", "uploads/client-02*")
    log = EventLog(run / "progress.jsonl", interval=0.0)
    log.advance("training", 2, 2, client=1)
    assert read_status(run).stage == "uploads"
    log.advance("synthesis, cluster 0", 1, 4)
    # Client 2 was left out, and the server goes on without it.
    assert read_status(run).stage == "method"
    assert line_of(shown(run), "synthesis, cluster 0").endswith("25%")
    assert line_of(shown(run), "left:").startswith("left: the method; 3 personal models")
    log.advance("synthesis, cluster 0", 4, 4)
    (run / "models").mkdir()
    shutil.copy(finished() / "models" / "cluster-0.safetensors", run / "models")
    shutil.copytree(finished() / "sites" / "client-01", run / "sites" / "client-01")
    text = shown(run)
    assert STAGES["shipping"] in text
    assert line_of(text, "left:") == "left: 2 personal models at client-00, client-02; scores and report"


def test_a_run_that_failed_and_one_that_was_taken_up_again(run: Path) -> None:
    take_back(run, "run.json", "models", "sites")
    log = EventLog(run / "progress.jsonl", interval=0.0)
    log.fail("no client finished its personal model: the disk is full")
    text = shown(run)
    assert f"{run}: failed: no client finished its personal model: the disk is full" in text
    assert "the same command with the same folder goes on" in text and read_status(run).ended
    log.advance("synthesis, cluster 0", 1, 4)
    assert read_status(run).stage == "method"


def test_a_run_that_stands_still_says_how_it_goes_on(run: Path) -> None:
    take_back(run, "run.json")
    last = read_status(run).last
    assert last is not None
    assert "if its process has ended" not in shown(run, last + timedelta(seconds=30))
    text = shown(run, last + timedelta(hours=2))
    assert "last sign of life: 2 h 0 min ago" in text and "if its process has ended" in text


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "run", small(), "data")
    text = shown(tmp_path / "run")
    assert "0 of 3 clients have sent a model" in text and "last sign of life" not in text


def test_rounds_of_flower_s_strategies_keep_no_uploads(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, small(method="flower:FedAvg"), "data")
    EventLog(tmp_path / "progress.jsonl").advance("rounds", 2, 5)
    text = shown(tmp_path)
    assert STAGES["rounds"] in text and line_of(text, "rounds").endswith("40%")


def test_models_of_before_are_no_second_round_while_a_run_begins_anew(run: Path) -> None:
    take_back(run, "run.json", "sites/client-02", "uploads/client-02*")
    assert read_status(run).stage == "shipping"
    log = EventLog(run / "progress.jsonl", interval=0.0)
    log.note("client 2 trains again: another version made its model")
    assert read_status(run).stage == "shipping"
    for stage, client, expected in (
        ("training", 2, "uploads"),
        ("synthesis, cluster 0", None, "method"),
        ("personalisation", 2, "shipping"),
    ):
        log.advance(stage, 1, 4, client=client)
        assert read_status(run).stage == expected


def test_a_run_of_a_comparison_that_failed_says_why(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, small(), "data")
    (tmp_path / FAILED).write_text('{"error": "the run was killed; it may have lacked memory"}')
    text = shown(tmp_path)
    assert f"{tmp_path}: failed: the run was killed" in text and read_status(tmp_path).ended
    os.utime(tmp_path / FAILED, (1e9, 1e9))
    EventLog(tmp_path / "progress.jsonl").advance("training", 1, 4, client=0)
    assert read_status(tmp_path).stage == "uploads", "another process makes it"
    RunFolder.open(tmp_path, small(), "data")
    assert not (tmp_path / FAILED).exists()


def test_a_central_model_waits_for_no_client(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, small(method="central"), "data")
    EventLog(tmp_path / "progress.jsonl").advance("training", 1, 4, client=0)
    text = shown(tmp_path)
    assert STAGES["central"] in text and "client" not in text.replace(str(tmp_path), "")
    assert line_of(text, "left:") == "left: scores and report"
    assert line_of(text, "training").endswith("25%")


# --- deployments


def test_a_deployment_that_takes_uploads(tmp_path: Path) -> None:
    run = deployment(
        tmp_path, "uploads",
        site("north", 0, "uploaded", 5, flags=["its norm is 9 times the median"]),
        site("south", 1, "asked"),
        site("east-2", 2, "refused", reason="fc.bias holds values that are not finite"),
        site("west", 3, "expected"),
        connected=1,
    )  # fmt: skip
    text = shown(run, OPENED + timedelta(hours=1, minutes=30))
    assert "1 of 4 sites has sent a model" in text and "1 node connected and at work" in text
    assert "the server waits until 2026-01-31 14:00 UTC: the window closes in 30 min 0 s" in text
    assert line_of(text, "left:") == (
        "left: 2 models from south, west; the method; 3 personal models at north, south, west; "
        "scores and report"
    )
    assert line_of(text, "north").split()[1:5] == ["uploaded", "–", "2026-01-31", "12:05"]
    assert "its norm is 9 times the median" in line_of(text, "north")
    assert "refused" in line_of(text, "east-2") and "not finite" in line_of(text, "east-2")
    assert "the window closes now" in shown(run, OPENED + timedelta(days=1))


def test_a_window_beyond_all_dates_has_no_end_to_tell(tmp_path: Path) -> None:
    deployment(tmp_path, "uploads", site("north", 0, "expected"), upload_window=1e38)
    status = read_status(tmp_path)
    assert status.closes is None and "waits until" not in shown(tmp_path)


def test_a_deployment_that_ships(tmp_path: Path) -> None:
    sites = (
        site("north", 0, "done", 5, cluster=1, done=(OPENED + timedelta(hours=3)).isoformat()),
        site("south", 1, "shipped", 5, cluster=0),
        site("west", 2, "uploaded", 150, cluster=0, late=True),
        site("east", 3, "refused", reason="label 9 found"),
    )
    shipping = (OPENED + timedelta(hours=2)).isoformat()
    run = deployment(tmp_path, "shipping", *sites, shipping=shipping)
    text = shown(run, OPENED + timedelta(hours=2, minutes=59))
    assert "3 of 4 sites have sent a model, 1 has its personal one" in text
    assert "until 2026-01-31 15:00 UTC: the window closes in 1 min 0 s" in text
    assert line_of(text, "left:") == "left: 2 personal models at south, west; scores and report"
    assert line_of(text, "west").split()[1:4] == ["uploaded,", "late", "0"]
    assert line_of(text, "north").split()[-2:] == ["2026-01-31", "15:00"]


def test_a_finished_deployment_says_who_is_missing_and_what_can_be_done(tmp_path: Path) -> None:
    done, away = site("north", 0, "done", 5, cluster=1), site("south", 1, "missing", 5, cluster=0)
    text = shown(deployment(tmp_path / "run", "finished", done, away, site("west", 2, "missing")))
    assert line_of(text, "left:") == "left: 1 model from west; 2 personal models at south, west"
    said = " ".join(text.split())
    assert "fedbicross export-cluster-model" in said and "--site NAME --key signing.pem --out FILE" in said
    over = shown(deployment(tmp_path / "all", "finished", done, site("east", 1, "refused")))
    assert "left:" not in over and "export-cluster-model" not in over and "window" not in over


def test_a_deployment_that_failed(tmp_path: Path) -> None:
    run = deployment(tmp_path, "failed", site("north", 0, "expected"), reason="1 upload, but min_sites = 2")
    text = shown(run)
    assert "failed: 1 upload, but min_sites = 2" in text
    assert line_of(text, "left:").startswith(
        "left: 1 model from north; the method; 1 personal model at north"
    )


def test_every_stage_of_the_roster_is_told() -> None:
    assert set(roster.STAGES) <= set(STAGES)


# --- watching, and what is no run


def test_watching_ends_with_the_run(tmp_path: Path) -> None:
    run = deployment(tmp_path, "shipping", site("north", 0, "shipped"))
    console = Console(width=200, force_terminal=False)

    def end() -> None:
        time.sleep(0.2)
        deployment(run, "finished", site("north", 0, "done"))

    thread = threading.Thread(target=end)
    start = time.monotonic()
    thread.start()
    with console.capture() as captured:
        watch_status(run, console, every=0.05)
    thread.join()
    assert 0.2 <= time.monotonic() - start < 10
    assert "finished" in captured.get() and "1 has its personal one" in captured.get()


def test_watching_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = deployment(tmp_path, "shipping", site("north", 0, "shipped"))

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", stop)
    watch_status(run, Console(quiet=True))


def test_watching_a_run_that_has_ended_returns_at_once(command: Fedbicross) -> None:
    answer = command("status", "--watch", finished())
    assert answer.status == 0 and "run: finished" in answer.output


Spoil = Callable[[Path], object]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "identity.json").unlink(), ("is not a run folder", "identity.json")),
        (shutil.rmtree, ("is not a run folder", "no such folder")),
        (lambda run: (run / "config.toml").write_text("seed = = 1"), ("config.toml", "not valid TOML")),
        (
            lambda run: (run / "config.toml").write_text('seed = "x"'),
            ("config.toml: seed = 'x' has type str",),
        ),
        (lambda run: (run / "config.toml").write_text("sed = 1"), ("config.toml: unknown setting 'sed'",)),
        (
            lambda run: Roster(
                run / "roster.json", [], "uploads", OPENED.isoformat(), upload_window=cast(Any, "long")
            ).write(),
            ("roster.json", "'long' is no window"),
        ),
        (
            lambda run: Roster(
                run / "roster.json", [], "uploads", OPENED.isoformat(), upload_window=math.nan
            ).write(),
            ("roster.json", "nan is no window"),
        ),
        (
            lambda run: Roster(
                run / "roster.json", [SiteEntry("a", 0, uploaded="9999-12-31T23:59:59-12:00")]
            ).write(),
            ("roster.json", "is no time"),
        ),
        (lambda run: (run / "roster.json").write_text('{"stage": "up'), ("roster.json cannot be read",)),
        (lambda run: (run / "roster.json").write_text('{"stage": "lunch", "sites": []}'), ("stage",)),
        (
            lambda run: Roster(run / "roster.json", [SiteEntry("a", 0, uploaded="at noon")]).write(),
            ("roster.json", "'at noon' is no time"),
        ),
        (lambda run: (run / "clustering.json").write_text("{}"), ("clustering.json", "clients is missing")),
    ],
)
def test_a_folder_that_is_no_run_or_damaged_is_one_line(
    command: Fedbicross, run: Path, spoil: Spoil, words: tuple[str, ...]
) -> None:
    spoil(run)
    command("status", run).is_refusal(str(run), *words)


def test_a_log_that_a_killed_run_left_half_written_is_read(run: Path) -> None:
    take_back(run, "run.json")
    steps = read_status(run).steps
    with (run / "progress.jsonl").open("a") as file:
        file.write('{"time": 1, "sta\n{"time": 2')
    assert read_status(run).steps == steps


@pytest.mark.parametrize(
    "wrong",
    [
        {"time": "now"},
        {"time": None},
        {"time": 1e300},
        {"time": -1.0},
        {"time": float("nan")},
        {"done": "1"},
        {"done": None},
        {"done": 10**400},
        {"total": float("inf")},
        {"client": "north"},
        {"client": {}},
        {"stage": 5},
        {"stage": None},
        {"text": ["a"]},
        {"text": "\ud800"},
        {"more": 1},
    ],
)
def test_a_line_of_a_log_that_is_no_event_is_passed_over(run: Path, wrong: dict[str, Any]) -> None:
    take_back(run, "run.json")
    now = datetime.now(UTC)
    before = shown(run, now)
    event = {"time": 2e9, "stage": "note", "done": 1, "total": 1, "client": None, "text": "a note"}
    with (run / "progress.jsonl").open("a") as file:
        file.write(json.dumps({**event, **wrong}) + "\n" + "[" * 100_000 + "\n[1]\n3\n" + "9" * 5000 + "\n")
    assert shown(run, now) == before


def test_a_run_that_may_not_be_looked_at_is_one_line(command: Fedbicross, run: Path) -> None:
    with locked(run):
        command("status", run).is_refusal(str(run), "Permission denied; check the path")
        command("status", run / "sites" / "x").is_refusal(str(run), "Permission denied; check the path")
        command("card", "--model", run / "personal.safetensors").is_refusal(
            "Permission denied; check the path"
        )
    with locked(run / "progress.jsonl"):
        command("status", run).is_refusal(f"{run}/progress.jsonl: Permission denied; check the path")
    assert command("status", run).status == 0
