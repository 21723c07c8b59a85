"""Prints how far a run is, once or again and again until it ends."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedbicross_flwr.report.units import ABSENT, count, duration
from fedbicross_flwr.status.parties import Party
from fedbicross_flwr.status.run_status import STAGES, RunStatus, read_status

WATCH_SECONDS: Final = 2.0
QUIET_SECONDS: Final = 600.0
"""After so long without a sign of life, it is said how a run that was interrupted goes on."""

NOTES: Final = 5


def show_status(status: RunStatus, now: datetime | None = None) -> RenderableType:
    """Return all that there is to tell, for a console.

    Parameters
    ----------
    status : RunStatus
        What was read.
    now : datetime, optional
        Against which times are told; the present if it is not given.
    """
    now = now or datetime.now(UTC)
    blocks: list[RenderableType] = [Text(line) for line in headlines(status, now)]
    if status.parties:
        blocks.append(parties_table(status))
    if status.steps and not status.ended:
        blocks.append(steps_table(status))
    blocks += [Text(f"note: {note}") for note in status.notes[-NOTES:]]
    left = status.left()
    if left:
        blocks.append(Text("left: " + "; ".join(left)))
    blocks += [Text(line) for line in advice(status, now)]
    return Group(*blocks)


def headlines(status: RunStatus, now: datetime) -> list[str]:
    """Return what matters most."""
    reason = f": {status.reason}" if status.reason else ""
    lines = [f"{status.path}: {STAGES[status.stage]}{reason}"]
    if status.parties:
        lines.append(parties_line(status))
    if status.closes is not None:
        rest = (status.closes - now).total_seconds()
        told = f"in {duration(rest)}" if rest > 0 else "now"
        lines.append(f"the server waits until {clock(status.closes)} UTC: the window closes {told}")
    if status.connected and not status.ended:
        lines.append(f"{count(status.connected, 'node')} connected and at work")
    if status.last is not None and not status.ended:
        lines.append(f"last sign of life: {duration(max((now - status.last).total_seconds(), 0.0))} ago")
    return lines


def parties_line(status: RunStatus) -> str:
    """Return how many sites or clients have done their part."""
    sent = sum(party.sent for party in status.parties)
    done = sum(party.state == "done" for party in status.parties)
    kind = "site" if status.deployment else "client"
    return (
        f"{sent} of {count(len(status.parties), kind)} {'has' if sent == 1 else 'have'} sent a model, "
        f"{done} {'has its' if done == 1 else 'have their'} personal one"
    )


def parties_table(status: RunStatus) -> Table:
    """Return a line for each site or client."""
    table = Table(
        "site" if status.deployment else "client", "state", "cluster", "sent", "done", box=SIMPLE_HEAD
    )
    remarks = [remark_on(party) for party in status.parties]
    if any(remarks):
        table.add_column("remark", overflow="fold")
    for party, remark in zip(status.parties, remarks, strict=True):
        state = f"{party.state}, late" if party.late else party.state
        cluster = ABSENT if party.cluster is None else str(party.cluster)
        cells = [party.name, state, cluster, clock(party.uploaded), clock(party.done)]
        table.add_row(*map(Text, [*cells, remark] if any(remarks) else cells))
    return table


def remark_on(party: Party) -> str:
    """Return what else is to be said of a site or client."""
    handed = f"model handed over {clock(party.handed_over)}" if party.handed_over else ""
    return "; ".join(filter(None, [party.remark, handed]))


def steps_table(status: RunStatus) -> Table:
    """Return a line for each piece of work."""
    table = Table("work", "done", box=SIMPLE_HEAD)
    table.columns[1].justify = "right"
    for step in status.steps:
        table.add_row(Text(step.name), f"{step.share:.0%}")
    return table


def advice(status: RunStatus, now: datetime) -> list[str]:
    """Return what the coordinator can do, if there is anything to do."""
    quiet = status.last is not None and (now - status.last).total_seconds() > QUIET_SECONDS
    again = "the same command with the same folder goes on"
    if status.stage == "failed":
        return [f"when the reason is mended, {again}"]
    if status.stage == "finished" and status.left():
        return [
            f"{again} with those sites alone, or hand their models over: fedbicross export-cluster-model "
            f"{status.path} --site NAME --key signing.pem --out FILE"
        ]
    if quiet and not status.ended:
        return [f"if its process has ended, {again}"]
    return []


def clock(when: datetime | None) -> str:
    """Return a time in UTC, to the minute."""
    return ABSENT if when is None else when.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def watch_status(path: Path, console: Console, every: float = WATCH_SECONDS) -> None:
    """Print how far a run is, again and again until it has ended.

    Raises
    ------
    FedBiCrossError
        See `read_status`.
    """
    status = read_status(path)
    stopped = contextlib.suppress(KeyboardInterrupt)  # which is how one stops looking
    with stopped, Live(show_status(status), console=console, auto_refresh=False) as live:
        while not status.ended:
            time.sleep(every)
            status = read_status(path)
            live.update(show_status(status), refresh=True)
