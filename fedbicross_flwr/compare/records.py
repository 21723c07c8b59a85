"""The records of a comparison's runs: small enough to publish, and its tables can be made of them again.

Models, images and the partition stay where they are, and so do all paths of the machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from fedbicross_flwr.compare.collect import Run, collect
from fedbicross_flwr.compare.work_log import LOG, work_events
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import write_bytes
from fedbicross_flwr.progress import Event
from fedbicross_flwr.runs.folder import CONFIG, IDENTITY, RUN, check_no_run, flat_to_toml
from fedbicross_flwr.settings import Scalar, read_toml
from fedbicross_flwr.site.path_free import path_free

AS_THEY_ARE: Final = ("metrics.json", "clustering.json", "synthetic.json")
DATA = "data.path"
PATHS: Final = ("out", "cache", "data.root", "deployment.registry")
"""Settings that say where things are on this machine, and nothing of the result."""


def write_records(out: Path, to: Path) -> tuple[list[Path], list[str]]:
    """Write the records of all finished runs of a comparison to another folder, in the same order of folders.

    `fedbicross table`, and those figures that show no images, read it as they read the comparison.

    Parameters
    ----------
    out : Path
        The comparison.
    to : Path
        Records that are there of the same runs are replaced; others stay.

    Returns
    -------
    tuple of (list of Path, list of str)
        The folders that were written, and a line for each run that gave no result.

    Raises
    ------
    FedBiCrossError
        When there is no such comparison, none of its runs is finished, or `to` is a run or holds runs
        themselves. Nothing is written then.
    """
    comparison = collect(out)
    runs = {
        to / run.folder.relative_to(comparison.out): run
        for cell in comparison.cells
        for run, _ in cell.records()
    }
    if not runs:
        raise FedBiCrossError(
            f"{out} has no finished run; `fedbicross compare` with the same --out finishes them"
        )
    check_no_run(to)
    for folder in runs:
        if (folder / IDENTITY).exists():
            raise FedBiCrossError(
                f"{folder} is a run, not its record; name another folder than a comparison's"
            )
    for folder, run in runs.items():
        write_record(folder, record_files(run))
    return list(runs), list(comparison.problems)


def write_record(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a record in place of those that are there; last ``run.json``, which makes it one."""
    (folder / RUN).unlink(missing_ok=True)
    for name in (*AS_THEY_ARE, LOG, CONFIG):
        if name in files:
            write_bytes(folder / name, files[name])
        else:
            (folder / name).unlink(missing_ok=True)
    write_bytes(folder / RUN, files[RUN])


def record_files(run: Run) -> dict[str, bytes]:
    """Return what is kept of a run, by the names of the files."""
    files = {name: run.folder / name for name in AS_THEY_ARE}
    kept = {name: file.read_bytes() for name, file in files.items() if file.exists()}
    said = json.loads((run.folder / RUN).read_text(encoding="utf-8"))
    settings = read_toml(run.folder / CONFIG)
    kept[RUN] = (json.dumps(path_free_record(said, settings), indent=1) + "\n").encode()
    kept[CONFIG] = flat_to_toml(path_free_settings(settings)).encode()
    if (run.folder / LOG).is_file():
        events = ends_of_work(work_events(run.folder))
        kept[LOG] = "".join(json.dumps(asdict(event)) + "\n" for event in events).encode()
    return kept


def path_free_record(said: Mapping[str, Any], settings: Mapping[str, Scalar]) -> dict[str, Any]:
    """Return the content of ``run.json`` without a path: own data go by the name of their file or folder.

    Nor with a fingerprint of theirs, by which somebody who has the file could tell that it was used.
    """
    places = {key: Path(str(settings[key])) for key in (*PATHS, DATA) if settings.get(key)}
    dataset = {**said["dataset"], "source": last_name(said["dataset"]["source"])}
    if settings.get(DATA):
        dataset.pop("fingerprint", None)
    clients = [{**client, "reason": path_free(client["reason"], places)} for client in said["clients"]]
    return {**said, "dataset": dataset, "clients": clients}


def path_free_settings(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return settings without a path."""
    data = last_name(str(settings.get(DATA, "")))
    return {**settings, **{key: "" for key in PATHS if key in settings}, DATA: data}


def last_name(text: str) -> str:
    """Return the name of the file or folder that a text is the path of; another text as it is."""
    return Path(text).name if Path(text).is_absolute() else text


def ends_of_work(events: Iterable[Event]) -> Iterator[Event]:
    """Yield the first event and the last, and between them those that say that a client's work is done."""
    last: Event | None = None
    for number, event in enumerate(events):
        if number == 0 or (event.client is not None and event.done == event.total):
            yield event
            last = None
        else:
            last = event
    if last is not None:
        yield last
