"""One simulated run under Flower, start to end: what stands behind ``fedbicross simulate``.

The run is the one that ``flwr run`` makes; this file fits it to the machine, hands over the run
configuration, passes the log on line by line, and asks Flower how the run really ended, because
``flwr run --stream`` leaves with status 0 after a failed run as well.
"""

from __future__ import annotations

import contextlib
import json
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, cast

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.launch.app_folder import RunValue, check_app, find_app, run_config_toml, stage_app
from fedbicross_flwr.launch.resources import Resources, fit_resources
from fedbicross_flwr.launch.superlink import CONNECTION, SuperLink, private_superlink

__all__ = ["Resources", "RunStatus", "RunValue", "find_app", "fit_resources", "simulate"]

_POLL_SECONDS = 0.2
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_RUN_ID = re.compile(r"^Successfully started run (\d+)")


@dataclass(frozen=True)
class RunStatus:
    """How a run ended, as Flower's SuperLink has it.

    Parameters
    ----------
    run_id : int
        Flower's number for the run.
    status : str
        ``"completed"``, ``"failed"`` or ``"stopped"``.
    details : str
        One line of Flower's on the reason; empty for a completed run.
    """

    run_id: int
    status: Literal["completed", "failed", "stopped"]
    details: str


def simulate(
    app: Path,
    run_config: Mapping[str, RunValue],
    resources: Resources,
    *,
    on_line: Callable[[str], None],
    poll: Callable[[], None] | None = None,
) -> RunStatus:
    """Run a Flower app once in simulation and leave nothing behind: no process, no port, no folder.

    Parameters
    ----------
    app : Path
        The folder with the app's pyproject.toml.
    run_config : mapping
        Values for keys of the app's ``[tool.flwr.app.config]``; nested keys are joined by dots. Paths
        among the values must be absolute: the run works in a private folder that is removed.
    resources : Resources
        See `fit_resources`.
    on_line : callable
        Called in this thread with each line of the run's log as it comes, without colours or line end.
    poll : callable, optional
        Called in this thread a few times a second, from the start to the end.

    Returns
    -------
    RunStatus
        How the run ended. A failed run is no exception.

    Raises
    ------
    FedBiCrossError
        If the folder is no Flower app, a key of the run configuration is unknown, or Flower does not
        start or refuses the run.
    """
    check_app(app, run_config)
    poll = poll or (lambda: None)
    with _terminate_as_exit(), private_superlink(poll) as superlink:
        overrides = superlink.folder / "run-config.toml"
        overrides.write_text(run_config_toml(run_config), encoding="utf-8")
        bundle = stage_app(app.resolve(), superlink.folder / "app")
        command = ["run", str(bundle), CONNECTION, "--stream"]
        command += ["--run-config", str(overrides), "--federation-config", resources.federation_config()]
        run_id: int | None = None
        said: list[str] = []
        for line in _lines(superlink.start("flwr", *command, output=subprocess.PIPE), poll):
            if run_id is None:
                said.append(line)
                run_id = int(match[1]) if (match := _RUN_ID.match(line)) else None
            else:
                on_line(line)
        if run_id is None:
            raise FedBiCrossError(f"Flower refused to run {app}: {_error_text(said)}")
        return _final_status(superlink, run_id, poll)


@contextlib.contextmanager
def _terminate_as_exit() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, as SIGINT is KeyboardInterrupt, unless the caller handles it."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _lines(process: subprocess.Popen[str], poll: Callable[[], None]) -> Iterator[str]:
    """Yield what `process` prints, line by line, calling `poll` while there is nothing to yield."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in process.stdout or ():
            lines.put(_ANSI.sub("", line).rstrip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    polled = 0.0
    while True:
        if time.monotonic() - polled > _POLL_SECONDS:
            poll()
            polled = time.monotonic()
        with contextlib.suppress(queue.Empty):
            line = lines.get(timeout=_POLL_SECONDS)
            if line is None:
                process.wait()
                return
            yield line


def _final_status(superlink: SuperLink, run_id: int, poll: Callable[[], None]) -> RunStatus:
    """Ask the SuperLink how the run ended; wait for the end if the log stream broke off before it."""
    while True:
        listing = superlink.start(
            "flwr", "list", CONNECTION, "--run-id", str(run_id), "--format", "json", output=subprocess.PIPE
        )
        text = "\n".join(_lines(listing, poll))
        try:
            run = json.loads(text)["runs"][0]
            state, _, how = run["status"].partition(":")
        except (ValueError, LookupError, TypeError) as error:
            raise FedBiCrossError(
                f"Flower's SuperLink is gone, the end of run {run_id} is unknown: {superlink.log_tail()}"
            ) from error
        if state == "finished":
            details = "" if run["status-details"] == "N/A" else " ".join(run["status-details"].split())
            return RunStatus(run_id, cast(Literal["completed", "failed", "stopped"], how), details)


def _error_text(lines: list[str]) -> str:
    """Take the message out of the frame that Flower's command line draws around an error."""
    framed = [line.strip("│ ") for line in lines if line.startswith("│")]
    return " ".join(filter(None, framed or lines)) or "it said nothing"
