"""The event log and what the terminal makes of it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fedbicross_flwr import progress, progress_display
from fedbicross_flwr.progress import Event, EventLog, new_events, read_events
from fedbicross_flwr.progress_display import ProgressDisplay


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    monkeypatch.setattr(progress_display, "time", made)
    return made


def test_a_stage_is_noted_seldom_but_its_end_always(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path / "log", interval=0.5)
    for step in range(1, 101):
        clock.now += 0.01
        log.advance("a", step, 100)
    done = [event.done for event in new_events(read_events(tmp_path / "log"))]
    assert done[0] == 1 and done[-1] == 100
    assert len(done) == 3  # the first, one half a second later, the last


def test_stages_and_clients_are_throttled_apart(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path / "log")
    for stage, client in (("a", 0), ("a", 1), ("b", 0), ("a", 0)):
        log.advance(stage, 1, 9, client=client)
    found = new_events(read_events(tmp_path / "log"))
    assert [(event.stage, event.client) for event in found] == [("a", 0), ("a", 1), ("b", 0)]


def test_notes_and_failures_are_never_held_back(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path / "log")
    log.note("one")
    log.note("one")
    log.fail("why\nso")
    assert [(event.stage, event.text) for event in new_events(read_events(tmp_path / "log"))] == [
        ("note", "one"),
        ("note", "one"),
        ("error", "why\nso"),
    ]


def test_several_processes_write_into_one_log(tmp_path: Path) -> None:
    # The file alone is run, since the package's dependencies take seconds to import.
    code = (
        "import sys; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[1]); from progress import EventLog\n"
        "log = EventLog(Path(sys.argv[2]), interval=0.0)\n"
        "for step in range(1, 301): log.advance('stage', step, 300, client=int(sys.argv[3]))"
    )
    package = str(Path(progress.__file__).parent)
    writers = [
        subprocess.Popen([sys.executable, "-c", code, package, str(tmp_path / "log"), str(client)])
        for client in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    found = new_events(read_events(tmp_path / "log"))
    for client in range(3):
        assert [event.done for event in found if event.client == client] == list(range(1, 301))


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    path = tmp_path / "log"
    events = read_events(path)
    assert new_events(events) == []  # there is no file yet
    line = json.dumps({"time": 1.0, "stage": "ü", "done": 1, "total": 2, "client": None, "text": ""}) + "\n"
    encoded = line.encode()
    path.write_bytes(encoded + encoded[:20])
    assert new_events(events) == [Event(1.0, "ü", 1, 2)]
    assert new_events(events) == []
    with path.open("ab") as file:
        file.write(encoded[20:])
    assert new_events(events) == [Event(1.0, "ü", 1, 2)]


def test_a_spoilt_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"time": 1.0, "sta\n{"other": 1}\n[]\n')
    EventLog(path).note("after")
    assert [event.text for event in new_events(read_events(path))] == ["after"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_ends_no_run(tmp_path: Path) -> None:
    for log in (EventLog(Path("/dev/full")), EventLog(tmp_path / "absent" / "log")):
        log.advance("training", 1, 1)
        log.note("one")
        log.fail("why")


def shown(path: Path, clients: int = 2) -> tuple[ProgressDisplay, io.StringIO]:
    """A display without a terminal, and what it prints."""
    text = io.StringIO()
    return ProgressDisplay(path, clients, Console(file=text, width=60)), text


def test_without_a_terminal_a_finished_stage_is_one_line(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path / "log", interval=0.0)
    display, text = shown(tmp_path / "log")
    with display:
        log.advance("synthesis", 1, 4)
        display.poll()
        assert text.getvalue() == ""
        clock.now += 3.0
        log.advance("synthesis", 4, 4)
        display.poll()
    assert text.getvalue().splitlines() == ["synthesis: done in 3 s"]


def test_a_long_stage_says_how_far_it_is(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path / "log", interval=0.0)
    display, text = shown(tmp_path / "log")
    for step in range(1, 8):
        log.advance("training", step, 16, client=0)
        log.advance("training", step, 16, client=1)
        display.poll()
        clock.now += 4.0
    lines = text.getvalue().splitlines()
    assert lines == ["training: 22%, about 43 s left", "training: 41%, about 35 s left"]


def test_a_stage_of_the_clients_is_done_when_all_of_them_are(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path / "log", interval=0.0)
    display, text = shown(tmp_path / "log")
    log.advance("training", 2, 2, client=1)
    display.poll()
    assert text.getvalue() == ""
    log.advance("training", 2, 2, client=0)
    display.poll()
    assert text.getvalue() == "training: done in 0 s\n"


def test_a_stage_of_fewer_clients_is_done_when_these_are(tmp_path: Path, clock: Clock) -> None:
    """Of five clients four have uploaded before an interruption."""
    log = EventLog(tmp_path / "log", interval=0.0)
    text = io.StringIO()
    display = ProgressDisplay(tmp_path / "log", 5, Console(file=text, width=60), waiting=1)
    log.advance("training", 1, 2, client=3)
    clock.now += 20.0
    display.poll()
    log.advance("training", 2, 2, client=3)
    display.poll()
    assert text.getvalue().splitlines() == ["training: 50%, about 20 s left", "training: done in 20 s"]


def test_what_the_server_goes_on_without_is_over(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path / "log", interval=0.0)
    display, text = shown(tmp_path / "log", clients=3)
    log.advance("training", 2, 2, client=0)
    log.advance("training", 1, 2, client=1)  # and is lost; the third never began
    display.poll()
    clock.now += 5.0
    log.advance("synthesis", 4, 4)
    display.poll()
    log.advance("training", 2, 2, client=1)
    display.poll()
    assert text.getvalue().splitlines() == ["training: done in 5 s", "synthesis: done in 0 s"]


def test_clients_train_on_while_the_server_counts_rounds(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path / "log", interval=0.0)
    display, text = shown(tmp_path / "log")
    done = []
    for number in (1, 2):
        for client in (0, 1):
            log.advance("training", number, 2, client=client)
        log.advance("rounds", number, 2)
        display.poll()
        done.append("training: done" in text.getvalue())
    assert done == [False, True]


def test_notes_are_shown_as_they_are_and_errors_kept(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path / "log")
    display, text = shown(tmp_path / "log")
    log.note("client 1 is left out: [bold] stays")
    log.fail("no client came through")
    display.poll()
    assert text.getvalue() == "client 1 is left out: [bold] stays\n"
    assert display.error == "no client came through"


def test_what_an_earlier_call_wrote_is_not_shown_again(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path / "log")
    log.fail("yesterday")
    display, text = shown(tmp_path / "log")
    log.note("today")
    display.poll()
    assert (display.error, text.getvalue()) == ("", "today\n")
